"""Families comparison and sorting, of numbers."""

from arithmetic import operand
from dialogue import Answer, single


def relation(a, b):
    return "<" if a < b else ">" if a > b else "="


def compare_digits(a, b):
    width = max(len(str(a)), len(str(b)))
    p, q = str(a).zfill(width), str(b).zfill(width)
    steps = []
    for x, y in zip(p, q):
        steps.append(f"{x}{relation(int(x), int(y))}{y}")
        if x != y:
            break
    return f"{p} {q}: {', '.join(steps)}"


def numbers_key(numbers):
    return "numbers:" + ",".join(map(str, sorted(numbers)))


def compare_pair(rng, a, b, wanted):
    """`wanted` is larger, smaller, is larger, is smaller or relation."""
    sign = relation(a, b)
    if wanted in ("is larger", "is smaller"):
        final = "Yes" if sign == (">" if wanted == "is larger" else "<") else "No"
    elif wanted == "relation":
        final = f"{a} {sign} {b}"
    elif sign == "=":
        final = "They are equal."
    else:
        final = str(max(a, b) if wanted == "larger" else min(a, b))
    end = f"So {a}{sign}{b}."
    medium = f"{compare_digits(a, b)}. {end}"
    high = f"I compare the digits from the left. {medium} The answer is: {final}"
    return Answer(end, medium, high, final)


def extreme_of(numbers, wanted):
    best, steps = numbers[0], [f"Start with {numbers[0]}."]
    for n in numbers[1:]:
        better = n > best if wanted == "largest" else n < best
        steps.append(f"{n}{relation(n, best)}{best}{f': {n}' if better else ''}.")
        best = n if better else best
    walk = " ".join(steps)
    listed = " ".join(map(str, numbers))
    low, medium = walk, f"The {wanted} of {listed}. {walk} So {best}."
    return Answer(low, medium, f"I go through the list and keep the {wanted}. {medium}", str(best))


ASK_PAIR = {
    "larger": ["Which is larger, {a} or {b}?", "Which number is bigger, {a} or {b}?", "Which is greater: {a} or {b}?",
               "What is larger, {a} or {b}?", "Which is more, {a} or {b}?", "Is {a} or {b} larger?"],
    "smaller": ["Which is smaller, {a} or {b}?", "Which number is smaller, {a} or {b}?", "Which is less: {a} or {b}?",
                "What is smaller, {a} or {b}?", "Is {a} or {b} smaller?"],
    "is larger": ["Is {a} larger than {b}?", "Is {a} greater than {b}?", "Is {a} > {b}?", "Is {a} more than {b}?",
                  "Is {a} bigger than {b}?"],
    "is smaller": ["Is {a} smaller than {b}?", "Is {a} less than {b}?", "Is {a} < {b}?"],
    "relation": ["Compare {a} and {b}.", "Compare {a} with {b}.", "How do {a} and {b} compare?"],
}
ASK_EXTREME = {
    "largest": ["What is the largest of {l}?", "Which is the largest: {l}?", "Find the maximum of {l}.",
                "What is the maximum of {l}?", "Which of {l} is the largest?", "What is the biggest number in {l}?"],
    "smallest": ["What is the smallest of {l}?", "Which is the smallest: {l}?", "Find the minimum of {l}.",
                 "What is the minimum of {l}?", "Which of {l} is the smallest?", "What is the smallest number in {l}?"],
}


def number_list(rng, lengths):
    top = rng.choice((10, 100, 100, 1000, 1000))
    numbers = [rng.randrange(top) for _ in range(rng.choice(lengths))]
    if rng.random() < 0.1:
        numbers[-1] = numbers[0]
    return numbers


def listing(rng, numbers):
    style = rng.randrange(6)
    if style == 0 and len(numbers) > 1:
        return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    if style == 1:
        return " ".join(map(str, numbers))
    if style == 2:
        return "[" + ", ".join(map(str, numbers)) + "]"
    return ", ".join(map(str, numbers))


def near(rng, a):
    """A number that is hard to tell from `a`."""
    text = list(str(a))
    text[rng.randrange(len(text))] = str(rng.randrange(10))
    return int("".join(text))


def make_compare(rng):
    if rng.random() < 0.6:
        a = operand(rng)
        b = near(rng, a) if rng.random() < 0.35 else operand(rng)
        wanted = rng.choice(("larger", "larger", "smaller", "is larger", "is smaller", "relation"))
        answer = compare_pair(rng, a, b, wanted)
        return single(rng, "comparison", rng.choice(ASK_PAIR[wanted]).format(a=a, b=b), answer, [numbers_key((a, b))])
    numbers = number_list(rng, (3, 3, 4, 5))
    wanted = rng.choice(("largest", "smallest"))
    question = rng.choice(ASK_EXTREME[wanted]).format(l=listing(rng, numbers))
    return single(rng, "comparison", question, extreme_of(numbers, wanted), [numbers_key(numbers)])


ASK_SORT = ["Sort {l}.", "Sort these numbers: {l}", "Sort the list {l}.", "Put {l} in order.", "Order these: {l}",
            "Sort {l} in ascending order.", "Sort from smallest to largest: {l}", "Arrange {l} in ascending order."]
ASK_SORT_DOWN = ["Sort {l} in descending order.", "Sort from largest to smallest: {l}", "Sort {l}, largest first.",
                 "Put {l} in descending order.", "Order these from high to low: {l}"]


def sort_answer(numbers, down):
    ordered = sorted(numbers, reverse=down)
    name = "Largest" if down else "Smallest"
    left, steps = list(numbers), []
    for n in ordered:
        steps.append(f"{name} of {' '.join(map(str, left))}: {n}.")
        left.remove(n)
    final = ", ".join(map(str, ordered))
    low = f"{name} first: {' '.join(map(str, ordered))}."
    medium = " ".join(steps)
    high = f"I take out the {name.lower()} again and again. {medium} That makes {len(ordered)} numbers: {final}."
    return Answer(low, medium, high, final)


def make_sort(rng):
    numbers = number_list(rng, (3, 3, 4, 4, 5, 6))
    down = rng.random() < 0.35
    question = rng.choice(ASK_SORT_DOWN if down else ASK_SORT).format(l=listing(rng, numbers))
    return single(rng, "sorting", question, sort_answer(numbers, down), [numbers_key(numbers)])
