"""Dialogues as harmony text, for training. The chat template says the same; `check_template` in make.py compares them."""

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
CUTOFF = "Knowledge cutoff: 2024-06"
CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
CALLS = "Calls to these tools must go to the commentary channel: 'functions'."

# In the order of o200k_harmony's ids.
SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
            "<|message|>", "<|call|>"]


def type_of(schema):
    kind = schema.get("type")
    if kind == "string" and schema.get("enum"):
        return " | ".join(f'"{value}"' for value in schema["enum"])
    return {"string": "string", "integer": "number", "number": "number", "boolean": "boolean"}.get(kind, "any")


def render_function(function):
    out = "".join(f"// {line}\n" for line in function["description"].splitlines())
    properties = ""
    for name, schema in function["parameters"]["properties"].items():
        if "description" in schema:
            properties += f"// {schema['description']}\n"
        mark = "" if name in function["parameters"]["required"] else "?"
        properties += f"{name}{mark}: {type_of(schema)},\n"
    return out + f"type {function['name']} = (_: {{\n{properties}}}) => any;\n\n"


def system(dialogue):
    head = [IDENTITY, CUTOFF]
    if dialogue.date:
        head.append(f"Current date: {dialogue.date}")
    tail = CHANNELS + ("\n" + CALLS if dialogue.tools else "")
    return "\n\n".join(["\n".join(head), f"Reasoning: {dialogue.effort}", tail])


def developer(dialogue, compact):
    sections = [f"# Instructions\n\n{m['content']}" for m in dialogue.messages if m["role"] == "system"]
    if dialogue.tools:
        functions = "".join(render_function(tool["function"]) for tool in dialogue.tools)
        sections.append(f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{functions}}} // namespace functions")
    if dialogue.response_format:
        named = dialogue.response_format["json_schema"]
        sections.append(f"# Response Formats\n\n## {named['name']}\n\n{compact(named['schema'])}")
    return "\n\n".join(sections)


def message(header, content, end="<|end|>"):
    return f"<|start|>{header}<|message|>{content}{end}"


def prompt(dialogue, compact):
    out = message("system", system(dialogue))
    instructions = developer(dialogue, compact)
    if instructions:
        out += message("developer", instructions)
    for m in dialogue.messages:
        if m["role"] == "user":
            out += message("user", m["content"])
        elif m["role"] == "tool":
            out += message(f"functions.{m['name']} to=assistant<|channel|>commentary", m["content"])
        elif m.get("tool_calls"):
            if m.get("thinking"):
                out += message("assistant<|channel|>analysis", m["thinking"])
            call = m["tool_calls"][0]["function"]
            header = f"assistant to=functions.{call['name']}<|channel|>commentary <|constrain|>json"
            out += message(header, call["arguments"], "<|call|>")
        elif m["role"] == "assistant":
            out += message("assistant<|channel|>final", m["content"])
    return out + "<|start|>assistant"


def target(dialogue):
    """What follows the prompt: messages, the last one closed by its stop token."""
    parts = []
    for channel, recipient, text in dialogue.target:
        to = f" to={recipient} <|constrain|>json" if recipient else ""
        end = "<|call|>" if recipient else "<|return|>" if channel == "final" else "<|end|>"
        parts.append(f"<|channel|>{channel}{to}<|message|>{text}{end}")
    return "<|start|>assistant".join(parts)
