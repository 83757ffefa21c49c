"""Family tools: a call of a declared function, what is said of its result, and that none fits."""

import pools
from dialogue import EFFORTS, Answer, compact, single
from words import a_word, pseudo_word

NO_FUNCTION = "I have no function for that."


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
