"""Seeded dialogues of every family, with the worked reasoning that the model learns and a check of the answer.

Train and held-out are split by content: `held_out` hashes what a question is about (the operands, the numbers, the
words, the arguments), not how it is asked. No training dialogue asks for content that is held out, not in an earlier
turn either; a held-out item does. The model card says what this leaves open.
"""

import hashlib
import random

import pools
from about import make_about
from arithmetic import make_add, make_subtract
from follow_up import make_follow_up
from functions import make_tool
from lists import make_compare, make_sort
from structured import make_json
from words import a_word, make_count, make_reverse

# Share of the contents that is held out, in 256ths.
HELD_OUT_256THS = 26

FAMILIES = {
    "addition": (make_add, 11), "subtraction": (make_subtract, 14), "comparison": (make_compare, 11),
    "sorting": (make_sort, 16), "reversing": (make_reverse, 10), "counting": (make_count, 5), "tools": (make_tool, 16),
    "json": (make_json, 9), "about": (make_about, 10), "follow-up": (make_follow_up, 13),
}
_MAKERS = [maker for maker, _ in FAMILIES.values()]
_WEIGHTS = [weight for _, weight in FAMILIES.values()]
# Families of which a dialogue may have been the turn before, whatever the next one is about.
_CHATTY = [make_add, make_subtract, make_compare, make_sort, make_reverse, make_count, make_about, make_follow_up]


def held_out(key):
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0] < HELD_OUT_256THS


def train_dialogue(rng):
    while True:
        dialogue = rng.choices(_MAKERS, _WEIGHTS)[0](rng)
        if any(map(held_out, dialogue.keys)):
            continue
        if len(dialogue.messages) == 1 and rng.random() < 0.2:
            earlier = rng.choice(_CHATTY)(rng)
            if not any(map(held_out, earlier.keys)):
                dialogue.messages = earlier.messages + [
                    {"role": "assistant", "content": earlier.target[-1][2]}] + dialogue.messages
        has_system = any(m["role"] == "system" for m in dialogue.messages)
        if not has_system and rng.random() < 0.1:
            text = rng.choice(pools.INSTRUCTIONS)
            if rng.random() < 0.3:
                text = " ".join(a_word(rng) for _ in range(rng.randrange(2, 9))).capitalize() + "."
            dialogue.messages.insert(0, {"role": "system", "content": text})
        return dialogue


def held_out_dialogues(family, n, seed):
    """`n` items of different held-out content."""
    rng = random.Random(f"{seed}/{family}")
    maker, _ = FAMILIES[family]
    found = {}
    while len(found) < n:
        dialogue = maker(rng)
        if held_out(dialogue.main_key):
            found.setdefault(dialogue.main_key, dialogue)
    return list(found.values())
