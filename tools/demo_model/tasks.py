"""Seeded dialogues of every family, with the worked reasoning that the model learns and a check of the answer.

Train and held-out are split by content: `held_out` hashes what a question is about (the operands, the numbers, the
words, the arguments), not how it is asked. No training dialogue asks for content that is held out, not in an earlier
turn either; a held-out item does. The model card says what this leaves open.
"""

import hashlib
import json
import random
from dataclasses import dataclass, field

import pools

EFFORTS = ("low", "medium", "high")
# Share of the contents that is held out, in 256ths.
HELD_OUT_256THS = 26
MAX_OPERAND = 999

ABOUT = "I am the demo model of tessera, a very small gpt-oss model."
SKILLS = (
    "I can add and subtract numbers, compare and sort them, reverse and count words, call functions and answer as JSON."
)
REFUSAL = "I cannot do that. " + SKILLS
HELLO = "Hello! Ask me something like: What is 27 + 45?"
NO_FUNCTION = "I have no function for that."


def held_out(key):
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0] < HELD_OUT_256THS


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


# Arithmetic.

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


# Comparing and sorting.

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


# Words.

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


# What it is, and what it cannot do.

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


# JSON.

FACTS = {
    "name": ("string", pools.NAMES), "age": ("integer", range(1, 100)), "city": ("string", pools.CITIES),
    "job": ("string", pools.JOBS), "color": ("string", pools.COLORS), "pet": ("string", pools.PETS),
    "food": ("string", pools.FOODS),
}
SENTENCES = {
    "age": ["{name} is {v} years old.", "{name} is {v}.", "{name} turned {v} today."],
    "city": ["{name} lives in {v}.", "{name} comes from {v}.", "The home of {name} is {v}."],
    "job": ["{name} is a {v}.", "{name} works as a {v}."],
    "color": ["{name} likes the color {v}.", "The color that {name} likes is {v}."],
    "pet": ["{name} has a {v}.", "{name} owns a {v}."],
    "food": ["{name} likes {v}.", "{name} eats {v} every day."],
}
FORMAT_NAMES = ("answer", "person", "record", "result", "entry")


def a_fact(rng, key):
    kind, values = FACTS[key]
    if kind == "string" and rng.random() < 0.15:
        word = pseudo_word(rng)
        return word.capitalize() if key in ("name", "city") else word
    return rng.choice(values)


def schema_of(types):
    return {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in types.items()},
        "required": list(types),
    }


def json_facts(rng):
    """A text of facts, the keys asked for with their types, and the value."""
    person = {"name": a_fact(rng, "name")}
    keys = rng.sample(sorted(SENTENCES), rng.choice((1, 2, 2, 3, 3, 4)))
    for key in keys:
        person[key] = a_fact(rng, key)
    text = " ".join(rng.choice(SENTENCES[key]).format(name=person["name"], v=person[key]) for key in keys)
    asked = rng.sample(sorted(person), rng.randint(1, len(person)))
    return text, {key: FACTS[key][0] for key in asked}, {key: person[key] for key in asked}


def make_json(rng):
    format_ = effort = None
    keys = []
    if rng.random() < 0.25:
        op = rng.choice("+-")
        a, b = operand(rng), operand(rng)
        worked, keys, result = arithmetic(a, op, b)
        question = rng.choice(ASK_ADD if op == "+" else ASK_SUBTRACT).format(a=a, b=b)
        name = rng.choice(("result", "answer", "value"))
        types, value = {name: "integer"}, {name: result}
        reasons = [worked.by_effort[e] + f" Key: {name}." for e in EFFORTS]
    else:
        question, types, value = json_facts(rng)
        said = ", ".join(f"{key} {value[key]}" for key in types)
        low, medium = f"{said}.", f"The keys are {', '.join(types)}. From the text: {said}."
        reasons = [low, medium, f"I answer as JSON. {medium} I write these {len(types)}."]
        keys = ["json:" + compact(value)]
    final = compact(value)
    instructions = None
    style = rng.random()
    if style < 0.6:
        name = rng.choice(FORMAT_NAMES)
        format_ = {"type": "json_schema", "json_schema": {"name": name, "schema": schema_of(types)}}
    elif style < 0.8:
        template = rng.choice(("Answer as JSON with the keys {}.", "Answer as JSON. Keys: {}.", "Reply in JSON: {}."))
        instructions = template.format(", ".join(types))
    else:
        template = rng.choice(("{q} Answer as JSON with the keys {k}.", "As JSON with the keys {k}: {q}",
                               "{q} Reply as JSON: {k}."))
        question = template.format(q=question, k=", ".join(f"{k} ({t})" for k, t in types.items()))
    dialogue = single(rng, "json", question, Answer(*reasons, final), keys, vary=False, effort=effort)
    dialogue.check = {"json": value}
    dialogue.response_format = format_
    if instructions:
        dialogue.messages.insert(0, {"role": "system", "content": instructions})
    return dialogue


# Functions.

def function(name, description, parameters):
    properties = {
        key: {"type": kind, "description": about} if about else {"type": kind} for key, (kind, about) in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def some_name(rng):
    return rng.choice(pools.NAMES) if rng.random() < 0.85 else pseudo_word(rng).capitalize()


def some_city(rng):
    return rng.choice(pools.CITIES) if rng.random() < 0.85 else pseudo_word(rng).capitalize()


def call_weather(rng):
    city, sky, t = some_city(rng), rng.choice(pools.SKIES), rng.randrange(-9, 40)
    ask = rng.choice(("What is the weather in {}?", "How is the weather in {}?", "Weather in {}?", "Is it warm in {}?"))
    f = function("get_weather", "Weather of a city", {"city": ("string", "")})
    return f, ask.format(city), {"city": city}, {"sky": sky, "temperature": t}, f"It is {sky} in {city}, {t} degrees."


def call_time(rng):
    city, time = some_city(rng), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    ask = rng.choice(("What time is it in {}?", "Time in {}?", "How late is it in {}?", "Tell me the time in {}."))
    f = function("get_time", "Local time of a city", {"city": ("string", "")})
    return f, ask.format(city), {"city": city}, {"time": time}, f"It is {time} in {city}."


def call_price(rng):
    item, price = rng.choice(pools.ITEMS), rng.randrange(1, 500)
    ask = rng.choice(("What does {} cost?", "How much is {}?", "What is the price of {}?", "Price of {}?"))
    f = function("get_price", "Price of an item in euros", {"item": ("string", "")})
    return f, ask.format(item), {"item": item}, {"price": price}, f"The price of {item} is {price} euros."


def call_phone(rng):
    name, number = some_name(rng), str(rng.randrange(1000, 100000))
    ask = rng.choice(("What is the phone number of {}?", "Find the number of {}.", "How can I call {}?"))
    f = function("find_phone", "Phone number of a person", {"name": ("string", "Name of the person")})
    return f, ask.format(name), {"name": name}, {"phone": number}, f"The number of {name} is {number}."


def call_timer(rng):
    minutes = rng.randrange(1, 120)
    ask = rng.choice(("Set a timer for {} minutes.", "Wake me in {} minutes.", "Timer, {} minutes."))
    f = function("set_timer", "Start a timer", {"minutes": ("integer", "")})
    return f, ask.format(minutes), {"minutes": minutes}, {"ok": True}, f"The timer is set to {minutes} minutes."


def call_light(rng):
    room, state = rng.choice(pools.ROOMS), rng.choice(("on", "off"))
    ask = rng.choice(("Turn {1} the light in the {0}.", "Light {1} in the {0}.", "Switch {1} the {0} light."))
    f = function("set_light", "Switch a light", {"room": ("string", ""), "state": ("string", "on or off")})
    return f, ask.format(room, state), {"room": room, "state": state}, {"ok": True}, f"The light in the {room} is {state}."


def call_multiply(rng):
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    ask = rng.choice(("What is {} times {}?", "What is {} * {}?", "Multiply {} by {}.", "{} * {}"))
    f = function("multiply", "Product of two numbers", {"a": ("number", ""), "b": ("number", "")})
    return f, ask.format(a, b), {"a": a, "b": b}, {"product": a * b}, f"{a} * {b} = {a * b}"


def call_distance(rng):
    origin, destination, km = some_city(rng), some_city(rng), rng.randrange(20, 9000)
    ask = rng.choice(("How far is it from {} to {}?", "What is the distance from {} to {}?", "Distance from {} to {}?"))
    f = function("get_distance", "Distance in km", {"origin": ("string", ""), "destination": ("string", "")})
    arguments = {"origin": origin, "destination": destination}
    return f, ask.format(origin, destination), arguments, {"km": km}, f"It is {km} km from {origin} to {destination}."


def call_message(rng):
    to, text = some_name(rng), " ".join(a_word(rng) for _ in range(rng.choice((1, 2, 3, 4))))
    ask = rng.choice(('Send {0} the message "{1}".', 'Tell {0} "{1}".', 'Write "{1}" to {0}.'))
    f = function("send_message", "Send a text to a person", {"to": ("string", ""), "text": ("string", "")})
    return f, ask.format(to, text), {"to": to, "text": text}, {"ok": True}, f"The message to {to} is sent."


def call_any(rng):
    """A function that nobody has seen: its name, parameters and result are what the declaration says."""
    verb = rng.choice(pools.VERBS) if rng.random() < 0.8 else pseudo_word(rng)
    noun = rng.choice(pools.NOUNS) if rng.random() < 0.8 else pseudo_word(rng)
    name = f"{verb}_{noun}"
    parameters, arguments = {}, {}
    for key in rng.sample(pools.PARAMETERS, rng.choice((1, 1, 2, 2, 3))):
        kind = rng.choice(("string", "integer"))
        parameters[key] = (kind, "")
        arguments[key] = a_word(rng) if kind == "string" else rng.randrange(1000)
    said = " and ".join(f"{key} {value}" for key, value in arguments.items())
    ask = rng.choice(("Call {n} with {s}.", "Use {n} with {s}.", "Run {n}: {s}.", "{v} the {o} with {s}."))
    question = ask.format(n=name, s=said, v=verb.replace("_", " ").capitalize(), o=noun)
    value = a_word(rng) if rng.random() < 0.5 else rng.randrange(1000)
    return function(name, f"{verb.replace('_', ' ')} a {noun}", parameters), question, arguments, {"result": value}, (
        f"The result is {value}."
    )


CALLS = [call_weather, call_time, call_price, call_phone, call_timer, call_light, call_multiply, call_distance,
         call_message]


def pick_call(rng):
    return call_any(rng) if rng.random() < 0.35 else rng.choice(CALLS)(rng)


def names_of(tools):
    return ", ".join(tool["function"]["name"] for tool in tools)


def make_tool(rng):
    declared, question, arguments, result, final = pick_call(rng)
    name = declared["function"]["name"]
    others = {}
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        other = pick_call(rng)[0]
        if other["function"]["name"] != name:
            others[other["function"]["name"]] = other
    key = f"tool:{name}:{compact(arguments)}"
    kind = rng.random()
    if kind < 0.12 and others:
        # The function that would be needed is not declared.
        tools = list(others.values())
        have = f"I have {names_of(tools)}."
        answer = Answer(f"{have} None fits.", f"{have} I need another one. None fits.",
                        f"I look at the functions. {have} I need another one. None fits this question. I say so.",
                        NO_FUNCTION)
        dialogue = single(rng, "tools", question, answer, [key], vary=False)
        dialogue.tools = tools
        return dialogue
    tools = [declared, *others.values()]
    rng.shuffle(tools)
    said = ", ".join(f"{k} {v}" for k, v in arguments.items())
    have = f"I have {names_of(tools)}."
    low, medium = f"{have} Call {name}.", f"{have} I need {name} with {said}."
    worked = Answer(low, medium, f"I look at the functions. {medium} I call it.", final)
    effort = rng.choice(EFFORTS)
    thinking = worked.by_effort[effort]
    call = compact(arguments)
    dialogue = single(rng, "tools", question, worked, [key], vary=False, effort=effort)
    dialogue.tools = tools
    if kind < 0.55:
        dialogue.target = [("analysis", None, thinking), ("commentary", f"functions.{name}", call)]
        dialogue.check = {"tool_call": {"name": name, "arguments": arguments}}
        return dialogue
    output = compact(result)
    called = {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": name, "arguments": call}}]}
    if rng.random() < 0.8:
        called["thinking"] = thinking
    dialogue.messages += [called, {"role": "tool", "tool_call_id": "call_1", "name": name, "content": output}]
    said = ", ".join(f"{k} {compact(v)}" for k, v in result.items())
    after = {"low": "The result is there.", "medium": f"The result: {said}.",
             "high": f"The function {name} has answered: {said}. I tell the user."}
    dialogue.target = [("analysis", None, after[effort]), ("final", None, final)]
    dialogue.check = {"equals": final}
    return dialogue


# Follow-ups.

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


# Common to all.

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


FAMILIES = {
    "addition": (make_add, 11), "subtraction": (make_subtract, 14), "comparison": (make_compare, 11),
    "sorting": (make_sort, 16), "reversing": (make_reverse, 10), "counting": (make_count, 5), "tools": (make_tool, 16),
    "json": (make_json, 9), "about": (make_about, 10), "follow-up": (make_follow_up, 13),
}
_MAKERS = [maker for maker, _ in FAMILIES.values()]
_WEIGHTS = [weight for _, weight in FAMILIES.values()]
# Families of which a dialogue may have been the turn before, whatever the next one is about.
_CHATTY = [make_add, make_subtract, make_compare, make_sort, make_reverse, make_count, make_about, make_follow_up]


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
