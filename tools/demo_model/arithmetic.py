"""Families addition and subtraction, column by column."""

from dialogue import Answer, single

PLACES = ("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands")


def digits(n):
    return [int(d) for d in reversed(str(n))]


def add_columns(a, b):
    """The columns of a + b from the right; each is (sum in words, carry)."""
    x, y, carry, columns = digits(a), digits(b), 0, []
    for i in range(max(len(x), len(y))):
        p, q = (v[i] if i < len(v) else 0 for v in (x, y))
        total = p + q + carry
        columns.append((f"{p}+{q}{'+1' if carry else ''}={total}", total >= 10))
        carry = int(total >= 10)
    return columns


def subtract_columns(a, b):
    """The columns of a - b, a >= b, from the right; each is (difference in words, borrow)."""
    x, y, borrow, columns = digits(a), digits(b), 0, []
    for i in range(len(x)):
        p, q = x[i], y[i] if i < len(y) else 0
        borrowed = p - borrow < q
        top = p + 10 if borrowed else p
        result = top - borrow - q
        columns.append((f"{top}{'-1' if borrow else ''}-{q}={result}", borrowed))
        borrow = int(borrowed)
    return columns


def spell_columns(columns, word):
    parts = [f"{PLACES[i]}: {text}{f', {word} 1' if moved else ''}." for i, (text, moved) in enumerate(columns)]
    return " ".join(parts)


def magnitude_key(op, p, q):
    return f"{op}:{max(p, q)}:{min(p, q)}"


def arithmetic(a, op, b):
    """a op b for any whole a and b >= 0: reasoning, the answer, and the contents that it uses."""
    result = a + b if op == "+" else a - b
    ask = f"{a}{op}{b}"
    # As magnitudes: what is computed, what is said first, and the sign of the result.
    if op == "+" and a >= 0:
        kind, p, q, intro = "+", a, b, ""
    elif op == "-" and a < 0:
        kind, p, q, intro = "+", -a, b, f"That is -({-a}+{b}). "
    else:
        p, q = (a, b) if a >= 0 else (b, -a)
        kind, intro = "-", "" if a >= 0 else f"That is {b}-{-a}. "
        if p < q:
            p, q, intro = q, p, intro + f"{p}<{q}, so -({q}-{p}). "
    columns = add_columns(p, q) if kind == "+" else subtract_columns(p, q)
    word = "carry" if kind == "+" else "borrow"
    bare = ", ".join(text for text, _ in columns)
    spelled = spell_columns(columns, word)
    inverse = f"{p + q}-{q}={p}" if kind == "+" else f"{p - q}+{q}={p}"
    low = f"{ask}: {intro}{bare}. So {result}."
    medium = f"{ask}: {intro}{spelled} So {result}."
    high = f"I work on {ask} column by column, from the right. {intro}{spelled} So {result}. Check: {inverse}."
    keys = [magnitude_key(kind, p, q)]
    keys.append(magnitude_key("-", p + q, q) if kind == "+" else magnitude_key("+", p - q, q))
    return Answer(low, medium, high, str(result)), keys, result


ASK_ADD = [
    "What is {a} + {b}?", "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a}+{b}", "Add {a} and {b}.",
    "Compute {a} + {b}.", "What's {a} + {b}?", "Calculate {a} + {b}.", "{a} + {b} = ?", "{a} plus {b}",
    "What is the sum of {a} and {b}?", "How much is {a} + {b}?", "{a} + {b} =", "Can you add {a} and {b}?",
    "How much is {a} plus {b}?",
]
ASK_SUBTRACT = [
    "What is {a} - {b}?", "What is {a} - {b}?", "What is {a} minus {b}?", "{a} - {b}", "{a}-{b}", "Compute {a} - {b}.",
    "Subtract {b} from {a}.", "What's {a} - {b}?", "Calculate {a} - {b}.", "{a} - {b} = ?", "{a} minus {b}",
    "Take {b} away from {a}.", "How much is {a} - {b}?", "{a} - {b} =", "How much is {a} minus {b}?",
    "Can you subtract {b} from {a}?",
]


def operand(rng):
    return rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 3)))


def make_add(rng):
    a, b = operand(rng), operand(rng)
    answer, keys, _ = arithmetic(a, "+", b)
    return single(rng, "addition", rng.choice(ASK_ADD).format(a=a, b=b), answer, keys)


def make_subtract(rng):
    a, b = operand(rng), operand(rng)
    if a < b and rng.random() < 0.6:
        a, b = b, a
    answer, keys, _ = arithmetic(a, "-", b)
    return single(rng, "subtraction", rng.choice(ASK_SUBTRACT).format(a=a, b=b), answer, keys)
