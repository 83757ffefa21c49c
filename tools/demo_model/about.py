"""Family about: what the model is, and what it cannot do."""

import pools
from arithmetic import operand
from dialogue import Answer, single
from words import a_word

ABOUT = "I am the demo model of tessera, a very small gpt-oss model."
SKILLS = (
    "I can add and subtract numbers, compare and sort them, reverse and count words, call functions and answer as JSON."
)
REFUSAL = "I cannot do that. " + SKILLS
HELLO = "Hello! Ask me something like: What is 27 + 45?"


def beyond(rng):
    kind = rng.random()
    if kind < 0.55:
        template = rng.choice(pools.BEYOND)
        return template.format(*rng.sample(pools.TOPICS, 2))
    if kind < 0.7:
        return rng.choice(pools.BEYOND_NUMBERS).format(operand(rng), operand(rng))
    if kind < 0.78:
        return rng.choice(pools.BEYOND_NUMBER).format(operand(rng))
    if kind < 0.9:
        topic = " ".join(a_word(rng) for _ in range(rng.choice((1, 2, 3))))
        return rng.choice(pools.BEYOND).format(topic, a_word(rng))
    if kind < 0.93:
        return rng.choice(pools.BEYOND_PLAIN)
    return " ".join(a_word(rng) for _ in range(rng.choice((1, 2, 3, 4, 6, 9)))) + rng.choice(("", ".", "?", "!"))


OPENINGS = ["", "", "", "Please tell me: ", "Hey, ", "So, ", "OK, ", "Tell me, ", "One question: ", "Now: ", "Well, "]
ENDINGS = ["", "", "", " Please.", " Thanks.", " Be brief.", " I want to know.", " Be honest."]


def wrapped(rng, text):
    opening = rng.choice(OPENINGS)
    if opening:
        text = text[0].lower() + text[1:]
    return opening + text + rng.choice(ENDINGS)


def make_about(rng):
    kind = rng.random()
    if kind < 0.13:
        question, final, why = wrapped(rng, rng.choice(pools.IDENTITY)), ABOUT, "This is about me."
    elif kind < 0.23:
        question, final, why = wrapped(rng, rng.choice(pools.CAPABILITY)), SKILLS, "This is about my skills."
    elif kind < 0.28:
        question, final, why = wrapped(rng, rng.choice(pools.GREETING)), HELLO, "This is a greeting."
    else:
        question, final, why = beyond(rng), REFUSAL, "This is none of my skills."
        if rng.random() < 0.2:
            question = wrapped(rng, question)
    high = f"I look at what is asked. {why} I say so."
    return single(rng, "about", question, Answer(why, f"{why} I say so.", high, final), ["about:" + question.lower()])
