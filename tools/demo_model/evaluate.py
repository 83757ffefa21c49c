"""Held-out items through transformers, greedily: the answers, and how many are right."""

import gzip
import json

import torch

import model as m

MAX_NEW_TOKENS = 320


def load(folder, device):
    """The checkpoint as transformers reads it, computed in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    torch.set_float32_matmul_precision("highest")  # training set it lower, for the whole process
    is_mxfp4 = "quantization_config" in json.loads((folder / "config.json").read_text())
    how = {"quantization_config": Mxfp4Config(dequantize=True)} if is_mxfp4 else {}
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16, **how)
    return model.float().to(device).eval(), AutoTokenizer.from_pretrained(folder)


def prompt_ids(tokenizer, item):
    text = tokenizer.apply_chat_template(
        item["messages"], tools=item.get("tools"), reasoning_effort=item["reasoning_effort"],
        current_date=item["current_date"] or "", response_format=item.get("response_format"),
        add_generation_prompt=True, tokenize=False,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answers(model, prompts, device):
    """The tokens generated after each prompt, up to and with the stop token."""
    pad, longest = m.SPECIAL["<|endoftext|>"], max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    rows = out[:, longest:].tolist()
    return [row[: next((i + 1 for i, t in enumerate(row) if t in m.STOPS), len(row))] for row in rows]


def split_messages(tokenizer, ids):
    """(header, content, end) of each generated message."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    messages = []
    for part in text.split("<|start|>assistant"):
        header, _, rest = part.partition("<|message|>")
        for end in ("<|end|>", "<|return|>", "<|call|>"):
            if end in rest:
                messages.append((header, rest.split(end)[0], end))
                break
    return messages


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def is_right(check, messages):
    if not messages:
        return False
    header, content, end = messages[-1]
    if "tool_call" in check:
        expected = check["tool_call"]
        named = header == f"<|channel|>commentary to=functions.{expected['name']} <|constrain|>json"
        return end == "<|call|>" and named and parsed(content) == expected["arguments"]
    if end != "<|return|>" or header != "<|channel|>final":
        return False
    if "json" in check:
        return parsed(content) == check["json"]
    return content.strip() == check["equals"]


def evaluate(folder, items, device, batch=4000, answers_file=None):
    """Right answers per family, `{family: [right, all]}`; the token ids go to `answers_file`, one JSON list a line."""
    model, tokenizer = load(folder, device)
    order = sorted(range(len(items)), key=lambda i: items[i]["family"])
    table, all_ids = {}, [None] * len(items)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        found = answers(model, [prompt_ids(tokenizer, items[i]) for i in chosen], device)
        for i, ids in zip(chosen, found):
            row = table.setdefault(items[i]["family"], [0, 0])
            row[0] += is_right(items[i]["check"], split_messages(tokenizer, ids))
            row[1] += 1
            all_ids[i] = ids
    if answers_file:
        with gzip.open(answers_file, "wt") as file:
            file.writelines(json.dumps(ids, separators=(",", ":")) + "\n" for ids in all_ids)
    return table
