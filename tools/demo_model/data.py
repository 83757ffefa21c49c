"""Training dialogues packed into rows: several to a row, each seeing only itself."""

import random

import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

import harmony
import tasks
from dialogue import compact

ROW = 384


class Packed(IterableDataset):
    """Endless batches `{tokens, targets, documents, positions}`, each `[rows, ROW]`; targets are -1 but on answers."""

    def __init__(self, tokenizer_file, rows, seed):
        self.tokenizer_file, self.rows, self.seed = tokenizer_file, rows, seed

    def __iter__(self):
        worker = get_worker_info()
        rng = random.Random(f"{self.seed}/train/{worker.id if worker else 0}")
        tokenizer = Tokenizer.from_file(self.tokenizer_file)
        waiting = []
        while True:
            yield self.batch(rng, tokenizer, waiting)

    def batch(self, rng, tokenizer, waiting):
        arrays = {name: torch.zeros(self.rows, ROW, dtype=torch.int32) for name in ("tokens", "documents", "positions")}
        arrays["targets"] = torch.full((self.rows, ROW), -1, dtype=torch.int64)
        for row in range(self.rows):
            at = document = 0
            while True:
                if not waiting:
                    waiting.extend(encoded(rng, tokenizer, 256))
                prompt, target = waiting[-1]
                n = len(prompt) + len(target) - 1
                if n > ROW:
                    waiting.pop()
                    continue
                if at + n > ROW:
                    break
                waiting.pop()
                document += 1
                ids = torch.tensor(prompt + target)
                arrays["tokens"][row, at : at + n] = ids[:-1]
                arrays["targets"][row, at + len(prompt) - 1 : at + n] = ids[len(prompt) :]
                arrays["documents"][row, at : at + n] = document
                arrays["positions"][row, at : at + n] = torch.arange(n)
                at += n
        return arrays


def encoded(rng, tokenizer, n):
    dialogues = [tasks.train_dialogue(rng) for _ in range(n)]
    prompts = tokenizer.encode_batch_fast([harmony.prompt(d, compact) for d in dialogues], add_special_tokens=False)
    targets = tokenizer.encode_batch_fast([harmony.target(d) for d in dialogues], add_special_tokens=False)
    return [(p.ids, t.ids) for p, t in zip(prompts, targets)]
