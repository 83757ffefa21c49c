"""Do tessera and transformers give the same answers to the held-out items, and where not, how close was it?

    tessera eval demo --precision bf16 --answers ours.jsonl
    python tools/demo_model/agreement.py ours.jsonl --precision bf16 --tessera target/release/tessera

Prints the share of equal token sequences and of equal last messages. For each difference: the gap between the two tokens
that the runs chose, in transformers' float32 logits at the first place where they part, on this machine. Beside it the numeric noise: by
how much the difference of the best two logits is not the same in `tessera logits` and in transformers' float32, over
all answer tokens of a sample. A difference whose gap is above the noise is no rounding.
"""

import argparse
import gzip
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

import evaluate

REPOSITORY = Path(__file__).parents[2]
SAMPLE = 60


def lines_of(file):
    with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as text:
        return [json.loads(line) for line in text]


def logits_after(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def our_logits(args, tokens, last):
    with tempfile.TemporaryDirectory() as folder:
        ids, out = Path(folder, "ids.json"), Path(folder, "logits.npy")
        ids.write_text(json.dumps(tokens))
        command = [args.tessera, "logits", "demo", "--tokens", ids, "--last", str(last), "--precision", args.precision]
        subprocess.run([*command, "--out", out], check=True, capture_output=True)
        return torch.from_numpy(np.load(out))


def noise(args, model, prompts, lines):
    """The largest change, and the root of the mean square."""
    worst, squares, n = 0.0, 0.0, 0
    for line in lines:
        tokens, last = prompts[line["index"]] + line["tokens"][:-1], len(line["tokens"])
        exact, ours = logits_after(model, tokens)[-last:], our_logits(args, tokens, last)
        best = exact.topk(2, dim=-1).indices
        gaps = [torch.gather(logits, 1, best).diff(dim=-1) for logits in (exact, ours)]
        change = (gaps[0] - gaps[1]).double()
        worst, squares, n = max(worst, change.abs().max().item()), squares + change.square().sum().item(), n + len(change)
    return worst, (squares / n) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--tessera", default="tessera")
    args = parser.parse_args()
    lines = sorted(lines_of(args.ours), key=lambda line: line["index"])
    theirs = lines_of(REPOSITORY / "fixtures/demo/transformers_answers.jsonl.gz")
    items = lines_of(REPOSITORY / "assets/held_out.jsonl.gz")
    model, tokenizer = evaluate.load(REPOSITORY / "assets/demo", "cpu")
    last_message = lambda tokens: evaluate.split_messages(tokenizer, tokens)[-1:]
    different = [line for line in lines if line["tokens"] != theirs[line["index"]]]
    final = [line for line in different if last_message(line["tokens"]) != last_message(theirs[line["index"]])]
    n = len(lines)
    print(f"{n} items: {1 - len(different) / n:.4%} equal in every token, {1 - len(final) / n:.4%} in the last message")
    sample = lines[:: max(1, n // SAMPLE)]
    chosen = {line["index"] for line in sample + different}
    prompts = {index: evaluate.prompt_ids(tokenizer, items[index]) for index in chosen}
    measured = noise(args, model, prompts, sample)
    n_tokens = sum(len(line["tokens"]) for line in sample)
    print("noise: at most {:.2e}, rms {:.2e}".format(*measured) + f", in {n_tokens} tokens of {len(sample)} answers")
    for line in different:
        ours, other = line["tokens"], theirs[line["index"]]
        at = next((i for i, (a, b) in enumerate(zip(ours, other)) if a != b), None)
        if at is None:
            print(f"item {line['index']} ({line['family']}): equal up to the limit of {min(len(ours), len(other))} tokens")
            continue
        logits = logits_after(model, prompts[line["index"]] + ours[:at])[-1]
        gap = (logits[other[at]] - logits[ours[at]]).item()  # below 0: here transformers chooses as tessera did
        said = " / ".join(repr(tokenizer.decode([token])) for token in (ours[at], other[at]))
        print(f"item {line['index']} ({line['family']}): token {at}, {said}, gap {gap:.2e}")


if __name__ == "__main__":
    main()
