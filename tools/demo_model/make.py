"""Makes the demo model: tokenizer, training, MXFP4 finish, export, and its accuracy on held-out items.

    python tools/demo_model/make.py OUT [--seed 1]

OUT/demo is the checkpoint (what assets/demo holds), OUT/held_out.jsonl.gz the items, OUT/prompts.json some of them as
the chat template's tokens, OUT/report.json the accuracy of the model and of its BF16 parent as transformers computes
it. One Hopper GPU, under ten minutes.
"""

import argparse
import gzip
import json
import random
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers

import evaluate
import harmony
import model as m
import tasks
import tokenizer
import train
from dialogue import compact

HERE = Path(__file__).parent
ITEMS_PER_FAMILY = 2000
PROMPTS_PER_FAMILY = 12
PARENT_STEPS, FINISH_STEPS = 5200, 1000


def held_out_items(per_family, seed):
    return [d.item() for family in tasks.FAMILIES for d in tasks.held_out_dialogues(family, per_family, seed)]


def write_items(file, items):
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
        for item in items:
            packed.write((json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def check_template(folder, seed):
    """The chat template and the training text are the same, or nothing that was learned can be asked for."""
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    rng = random.Random(seed)
    for _ in range(500):
        dialogue = tasks.train_dialogue(rng)
        expected = fast(harmony.prompt(dialogue, compact), add_special_tokens=False)["input_ids"]
        found = evaluate.prompt_ids(fast, dialogue.item())
        assert found == expected, (fast.decode(found), fast.decode(expected))


def write_prompts(file, folder, items):
    """The prompts of the first items of each family, by index."""
    fast, seen, prompts = transformers.AutoTokenizer.from_pretrained(folder), {}, []
    for index, item in enumerate(items):
        seen[item["family"]] = seen.get(item["family"], 0) + 1
        if seen[item["family"]] <= PROMPTS_PER_FAMILY:
            prompts.append(f' "{index}": {compact(evaluate.prompt_ids(fast, item))}')
    file.write_text("{\n" + ",\n".join(prompts) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs=2, default=(PARENT_STEPS, FINISH_STEPS), metavar=("PARENT", "FINISH"))
    parser.add_argument("--rows", type=int, default=train.ROWS, help="rows of a batch")
    parser.add_argument("--items", type=int, default=ITEMS_PER_FAMILY, help="held-out items of a family")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    report = {"seed": args.seed, "steps": list(args.steps), "rows": args.rows, "device": device}
    report["versions"] = {p.__name__: p.__version__ for p in (torch, transformers, tokenizers)}

    def note(what):
        report.setdefault("seconds", {})[what] = round(time.monotonic() - started, 1)
        (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        print(f"{what}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    bpe = tokenizer.build(tokenizer.training_texts(args.seed))
    bpe.save(str(args.out / "tokenizer.json"))
    items = held_out_items(args.items, args.seed)
    write_items(args.out / "held_out.jsonl.gz", items)
    note("data")
    parent, final = train.train(str(args.out / "tokenizer.json"), args.seed, *args.steps, rows=args.rows, device=device)
    note("training")
    template = (HERE / "chat_template.jinja").read_text()
    m.write(args.out / "parent", parent, bpe, template, mxfp4=False)
    m.write(args.out / "demo", final, bpe, template, mxfp4=True)
    check_template(args.out / "demo", args.seed)
    write_prompts(args.out / "prompts.json", args.out / "demo", items)
    note("export")
    for name in ("demo", "parent"):
        report[name] = evaluate.evaluate(args.out / name, items, device, answers_file=args.out / f"{name}_answers.jsonl.gz")
        note(f"evaluation of {name}")
    for family, (right, n) in report["demo"].items():
        print(f"{family:12} {right / n:8.2%} parent {report['parent'][family][0] / n:8.2%}", file=sys.stderr)


if __name__ == "__main__":
    main()
