"""Families reversing and counting, of words."""

import pools
from dialogue import Answer, single

ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sl sn sp st sw th tr".split()
VOWELS = "a e i o u a e i o ai ea ee oo ou".split()
CODAS = ["", "", "", "n", "m", "r", "l", "s", "t", "d", "k", "p", "ck", "ng", "nd", "st"]


def pseudo_word(rng):
    n = rng.choice((1, 1, 2, 2, 3))
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(n))


def a_word(rng):
    word = rng.choice(pools.WORDS) if rng.random() < 0.75 else pseudo_word(rng)
    if rng.random() < 0.05:
        word = word.capitalize()
    return word


def phrase(rng):
    return [a_word(rng) for _ in range(rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7, 8)))]


def words_key(words):
    return "words:" + " ".join(sorted(word.lower() for word in words))


def numbered(words, start=1, step=1):
    return ", ".join(f"{start + step * i} {word}" for i, word in enumerate(words))


def reverse_answer(words):
    back = words[::-1]
    low = f"{numbered(words)}."
    medium = f"In order: {numbered(words)}. Backwards: {numbered(back, len(words), -1)}."
    return Answer(low, medium, f"I number the words and go back from the last one. {medium}", " ".join(back))


def count_answer(words):
    n = len(words)
    low = f"{numbered(words)}."
    medium = f"Count: {numbered(words)}. That makes {n}."
    return Answer(low, medium, f"I count the words one by one. {medium} The last one is {words[-1]}.", str(n))


ASK_REVERSE = ["Reverse the words: {w}", 'Reverse the order of the words in "{w}".', 'Reverse the words in "{w}".',
               "Write these words backwards: {w}", "Reverse: {w}", "Reverse the word order of: {w}",
               'Put the words of "{w}" in reverse order.']
ASK_COUNT = ["How many words are in: {w}", 'How many words are in "{w}"?', "Count the words: {w}",
             'Count the words in "{w}".', 'How many words does "{w}" have?', "Number of words in: {w}"]


def make_reverse(rng):
    words = phrase(rng)
    question = rng.choice(ASK_REVERSE).format(w=" ".join(words))
    return single(rng, "reversing", question, reverse_answer(words), [words_key(words)])


def make_count(rng):
    words = phrase(rng)
    question = rng.choice(ASK_COUNT).format(w=" ".join(words))
    return single(rng, "counting", question, count_answer(words), [words_key(words)])
