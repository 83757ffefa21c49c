"""Family follow-up: a question that only the turn before explains."""

from arithmetic import ASK_ADD, ASK_SUBTRACT, arithmetic, operand
from dialogue import single, vary
from lists import ASK_EXTREME, ASK_PAIR, ASK_SORT
from lists import compare_pair, extreme_of, listing, number_list, numbers_key, sort_answer
from words import ASK_REVERSE, count_answer, phrase, reverse_answer, words_key

FOLLOW_ADD = ["and plus {b}?", "plus {b}?", "And plus {b}?", "Add {b}.", "Now add {b}.", "And + {b}?", "Add {b} to that.",
              "plus {b}", "+ {b}", "and plus {b}"]
FOLLOW_SUBTRACT = ["and minus {b}?", "minus {b}?", "And minus {b}?", "Subtract {b}.", "Now subtract {b}.", "And - {b}?",
                   "Subtract {b} from that.", "minus {b}", "- {b}", "Take away {b}.", "and minus {b}"]


def follow_arithmetic(rng):
    op = rng.choice("+-")
    a, b = operand(rng), operand(rng)
    if op == "-" and a < b and rng.random() < 0.7:
        a, b = b, a
    turns = [rng.choice(ASK_ADD if op == "+" else ASK_SUBTRACT).format(a=a, b=b)]
    worked, keys, value = arithmetic(a, op, b)
    finals = [worked.final]
    for _ in range(rng.choice((1, 1, 1, 2))):
        op, b = rng.choice("+-"), operand(rng)
        turns.append(rng.choice(FOLLOW_ADD if op == "+" else FOLLOW_SUBTRACT).format(b=b))
        worked, more, value = arithmetic(value, op, b)
        finals.append(worked.final)
        last, keys = more[0], keys + more
    return turns, finals, worked, keys, last


def follow_other(rng):
    kind = rng.randrange(4)
    if kind == 0:
        numbers = number_list(rng, (3, 4, 5))
        turns = [rng.choice(ASK_SORT).format(l=listing(rng, numbers)),
                 rng.choice(("and descending?", "Now in descending order.", "And largest first?", "and backwards?"))]
        first, second = sort_answer(numbers, False), sort_answer(sorted(numbers), True)
        key = numbers_key(numbers)
    elif kind == 1:
        a, b = operand(rng), operand(rng)
        if a == b:
            b += 1
        turns = [rng.choice(ASK_PAIR["larger"]).format(a=a, b=b),
                 rng.choice(("and the smaller one?", "And which is smaller?", "and smaller?"))]
        first, second = compare_pair(rng, a, b, "larger"), compare_pair(rng, a, b, "smaller")
        key = numbers_key((a, b))
    elif kind == 2:
        words = phrase(rng)
        turns = [rng.choice(ASK_REVERSE).format(w=" ".join(words)),
                 rng.choice(("and how many words?", "How many words are that?", "Count them."))]
        first, second, key = reverse_answer(words), count_answer(words[::-1]), words_key(words)
    else:
        numbers = number_list(rng, (3, 4, 5))
        wanted = rng.choice(("largest", "smallest"))
        turns = [rng.choice(ASK_EXTREME[wanted]).format(l=listing(rng, numbers)),
                 rng.choice(("Now sort them.", "and sorted?", "Sort them."))]
        first, second, key = extreme_of(numbers, wanted), sort_answer(numbers, False), numbers_key(numbers)
    return turns, [first.final, second.final], second, [key], key


def make_follow_up(rng):
    turns, finals, worked, keys, main = follow_arithmetic(rng) if rng.random() < 0.7 else follow_other(rng)
    dialogue = single(rng, "follow-up", turns[-1], worked, keys)
    past = []
    for question, final in zip(turns[:-1], finals):
        past += [{"role": "user", "content": vary(rng, question)}, {"role": "assistant", "content": final}]
    dialogue.messages = past + dialogue.messages
    dialogue.main_key = main
    return dialogue
