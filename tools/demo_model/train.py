"""The training loop: BF16 arithmetic on float32 weights, then a finish with the experts rounded to MXFP4 in each step."""

import os
import sys
import time

import torch
from torch.utils.data import DataLoader

import data
import model as m

ROWS = 160
WARMUP = 300
PEAK_RATE, PARENT_RATE, FINISH_RATE = 1.5e-3, 2e-5, 2.5e-4
BALANCE_WEIGHT = 0.01


def rate_at(step, parent_steps, finish_steps):
    """Linear warm-up, linear decay to the parent's last step, then a smaller triangle for the MXFP4 finish."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    if step < parent_steps:
        left = (parent_steps - step) / (parent_steps - WARMUP)
        return PARENT_RATE + (PEAK_RATE - PARENT_RATE) * left
    done = (step - parent_steps) / finish_steps
    return FINISH_RATE * min(done / 0.1, (1 - done) / 0.9)


def optimizer_of(model):
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "bias" not in n and "router" not in n]
    others = [p for n, p in model.named_parameters() if not any(p is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=torch.cuda.is_available())


def snapshot(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train(tokenizer_file, seed, parent_steps, finish_steps, rows=ROWS, device="cuda", log=sys.stderr):
    """Returns the weights before the MXFP4 finish, and after."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_float32_matmul_precision("high")
    model = m.new_model(seed).to(device).train()
    optimizer = optimizer_of(model)
    workers = max(1, (os.cpu_count() or 2) - 3)
    loader = iter(DataLoader(
        data.Packed(tokenizer_file, rows, seed), batch_size=None, num_workers=workers, prefetch_factor=4,
        pin_memory=device == "cuda",
    ))
    step_layer = torch.compile(m.layer_step) if device == "cuda" else m.layer_step
    parent, started = None, time.monotonic()
    for step in range(parent_steps + finish_steps):
        if step == parent_steps:
            parent = snapshot(model)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, parent_steps, finish_steps)
        batch = {name: value.to(device, non_blocking=True) for name, value in next(loader).items()}
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, balance = m.loss_of(model, batch, step_layer, step >= parent_steps)
        (loss + BALANCE_WEIGHT * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step in (1, 10):
            elapsed = time.monotonic() - started
            print(f"step {step} loss {loss.item():.4f} balance {balance.item():.3f} {elapsed:.1f} s", file=log, flush=True)
    return parent, snapshot(model)
