"""The demo model's tokenizer: byte-level BPE, digits one by one, spaces apart from words, so that a word is spelled by
the same tokens wherever it stands and digits can be counted from the right. The fixed sentences of harmony's system and
developer messages are pieces of their own, and so become single tokens: prompts stay short."""

import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import harmony
import tasks
from dialogue import compact

VOCAB_SIZE = 1024
N_CONTROL = 16
TRAINING_DIALOGUES = 40_000

FIXED = [
    harmony.IDENTITY, "\n" + harmony.CUTOFF, "\nCurrent date: ", "\n\nReasoning: ", "\n\n" + harmony.CHANNELS,
    "\n" + harmony.CALLS, "# Instructions\n\n", "# Tools\n\n## functions\n\nnamespace functions {\n\n",
    "} // namespace functions", "# Response Formats\n\n## ", ") => any;\n\n", " = (_: {\n", ": string,\n",
    ": number,\n", '":{"type":"string"}', '":{"type":"integer"}', '{"type":"object","properties":{"',
    '},"required":["', " to=functions.", " to=assistant",
]
PIECES = r"[\p{L}]+|\p{N}|[^\s\p{L}\p{N}]+|\s+"


def build(texts):
    tokenizer = Tokenizer(models.BPE())
    pattern = "|".join(re.sub(r"([.{}()\[\]|+*?\\^$])", r"\\\1", text) for text in FIXED) + "|" + PIECES
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - N_CONTROL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    n = tokenizer.get_vocab_size()
    assert n == VOCAB_SIZE - N_CONTROL, n
    names = harmony.SPECIALS + [f"<|reserved_{n + i}|>" for i in range(len(harmony.SPECIALS), N_CONTROL)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert tokenizer.token_to_id("<|call|>") == n + len(harmony.SPECIALS) - 1
    return tokenizer


def training_texts(seed):
    rng = random.Random(f"{seed}/tokenizer")
    for _ in range(TRAINING_DIALOGUES):
        dialogue = tasks.train_dialogue(rng)
        text = harmony.prompt(dialogue, compact) + harmony.target(dialogue)
        yield from re.split(r"<\|\w+\|>", text)
