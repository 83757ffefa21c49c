"""A question with its past and the answer to learn, whatever it is about."""

import json
from dataclasses import dataclass, field

EFFORTS = ("low", "medium", "high")


@dataclass
class Dialogue:
    """One question with its past. `messages` are as in OpenAI's chat API; `target` is what the model is to say."""

    family: str
    effort: str
    messages: list
    target: list  # (channel, recipient or None, text)
    check: dict
    tools: list = field(default_factory=list)
    response_format: dict | None = None
    date: str | None = None
    keys: list = field(default_factory=list)  # contents, for the split
    main_key: str = ""

    def item(self):
        item = {"family": self.family, "reasoning_effort": self.effort, "current_date": self.date}
        item["messages"] = self.messages
        if self.tools:
            item["tools"] = self.tools
        if self.response_format:
            item["response_format"] = self.response_format
        item["check"] = self.check
        return item


class Answer:
    """Reasoning by effort, and the final text."""

    def __init__(self, low, medium, high, final):
        self.by_effort = {"low": low, "medium": medium, "high": high}
        self.final = final


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def vary(rng, text):
    """The same question as other people would type it."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.08:
        text = text.rstrip(".?")
    if rng.random() < 0.04:
        text = rng.choice(("Please: ", "Hi! ", "Hey, ")) + text
    return text


def a_date(rng):
    return f"{rng.randrange(2024, 2031)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"


def single(rng, family, question, answer, keys, vary=vary, effort=None):
    effort = effort or rng.choice(EFFORTS)
    question = vary(rng, question) if vary else question
    messages = [{"role": "user", "content": question}]
    target = [("analysis", None, answer.by_effort[effort]), ("final", None, answer.final)]
    dialogue = Dialogue(family, effort, messages, target, {"equals": answer.final}, keys=keys, main_key=keys[0])
    dialogue.date = a_date(rng) if rng.random() < 0.9 else None
    return dialogue
