"""Family json: answers as JSON of the keys asked for."""

import pools
from arithmetic import ASK_ADD, ASK_SUBTRACT, arithmetic, operand
from dialogue import EFFORTS, Answer, compact, single
from words import pseudo_word

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
