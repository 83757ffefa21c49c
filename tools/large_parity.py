"""Are our logits of a checkpoint of full size as close to float32 as those of transformers in bfloat16?

    tessera synth --like 120b /data/random-120b
    python tools/large_parity.py /data/random-120b --tessera target/release/tessera

Truth is transformers in float32, run layer by layer beside its bfloat16 run: each layer is widened from the raw bytes on the
GPU, used in both dtypes, and dropped. Exit status: 1 if ours is further from the truth than bfloat16 or has its best
token less often, 2 if something failed. What the figures mean: tools/README.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from transformers.initialization import no_init_weights
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer, GptOssRMSNorm, GptOssRotaryEmbedding

import formula
import golden

N_TOKENS = 512
DTYPES = (torch.float32, torch.bfloat16)
EXPERTS_AT_ONCE = 8  # decoded together: about 1.5 GB at the 120b's shapes
MAX_WHOLE_DISTANCE = 1e-4  # layer by layer against golden.py's whole model, logits near 1; measured 0


def main():
    args = arguments()
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums in float32, as ours
    config = golden.eager_config(args.model)
    tokens = json.loads(args.tokens.read_text()) if args.tokens else random_tokens(config, args.seed)
    last = min(args.last or N_TOKENS, len(tokens))
    timed = Timed()
    # Ours first: PyTorch has no memory on the GPU yet.
    ours = timed("tessera", lambda: our_logits(args, tokens, last, ["--device", args.device, "--precision", "bf16"]))
    theirs, chosen = timed("transformers", lambda: layer_by_layer(args, config, tokens, last))
    truth, runs = theirs.pop("float32"), {"tessera": ours, **theirs}
    if args.truth == "oracle":
        runs["transformers float32"] = truth
        truth = timed("oracle", lambda: our_logits(args, tokens, last, ["--device", "cpu", "--precision", "f32"]))
    if args.whole:
        compare_whole(args, tokens, theirs, truth if args.truth == "transformers" else runs["transformers float32"])
    report = compare(runs, truth, chosen)
    report = {"model": str(args.model), "truth": args.truth, "tokens": len(tokens), **report, "seconds": timed.seconds,
              "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "made_with": golden.versions()}
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0 if report["passed"] else 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="folder in the Hugging Face layout")
    parser.add_argument("--tokens", type=pathlib.Path, help=f"JSON list of token ids; else {N_TOKENS} random ones")
    parser.add_argument("--last", type=int, help=f"positions compared, counted from the end; at most {N_TOKENS} by default")
    parser.add_argument("--seed", type=int, default=1, help="of the random tokens")
    parser.add_argument("--truth", choices=["transformers", "oracle"], default="transformers",
                        help="float32 of transformers, or of `tessera logits --precision f32` on the processor (slow)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="of both programs")
    parser.add_argument("--tessera", default="tessera", help="the program")
    parser.add_argument("--whole", action="store_true", help="for small models: check against golden.py's whole model")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.whole and args.device != "cpu":
        parser.error("--whole is for --device cpu")
    return args


def random_tokens(config, seed):
    """Ids below the special ones."""
    special = [config.pad_token_id, *np.atleast_1d(config.eos_token_id).tolist()]
    end = min(token for token in special if token is not None)
    return np.random.default_rng(seed).integers(0, end, N_TOKENS).tolist()


class Timed:
    def __init__(self):
        self.seconds = {}

    def __call__(self, name, run):
        started = time.monotonic()
        result = run()
        self.seconds[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {self.seconds[name]} s", file=sys.stderr, flush=True)
        return result


def our_logits(args, tokens, last, how):
    with tempfile.TemporaryDirectory() as folder:
        ids, out = pathlib.Path(folder, "ids.json"), pathlib.Path(folder, "logits.npy")
        ids.write_text(json.dumps(tokens))
        command = [args.tessera, "logits", args.model, "--tokens", ids, "--last", str(last), *how, "--out", out]
        subprocess.run(command, stdout=sys.stderr, check=True)
        return np.load(out)


# ---- transformers, one layer at a time ---------------------------------------------------------------------------


class Checkpoint:
    """Tensors by name, read straight to the device; each once."""

    def __init__(self, folder, device):
        files = [safetensors.safe_open(path, "pt", device=device) for path in golden.tensor_files(folder)]
        self.unread = {name: file for file in files for name in file.keys()}

    def take(self, name):
        if name not in self.unread:
            raise ValueError(f"checkpoint lacks {name}")
        return self.unread.pop(name).get_tensor(name)


@torch.no_grad()
def layer_by_layer(args, config, tokens, last):
    """Logits by name, float32 numpy [last, vocab]; and per dtype the experts chosen, [layers, tokens, top_k]."""
    checkpoint = Checkpoint(args.model, args.device)
    rows = checkpoint.take("model.embed_tokens.weight")[torch.tensor(tokens, device=args.device)][None]
    runs = [Run(config, rows.to(dtype)) for dtype in DTYPES]
    table = pair_values().to(args.device)
    for i in range(config.num_hidden_layers):
        started = time.monotonic()
        layers = loaded_layers(checkpoint, table, config, i, args.device)
        for run, layer in zip(runs, layers):
            run.advance(layer, config.layer_types[i])
        del layers, layer  # before the next ones take their memory
        print(f"layer {i}: {time.monotonic() - started:.2f} s", file=sys.stderr, flush=True)
    norm, head = checkpoint.take("model.norm.weight"), checkpoint.take("lm_head.weight")
    if checkpoint.unread:
        raise ValueError(f"not used: {sorted(checkpoint.unread)}")
    exact, rounded = (run.normed(norm)[-last:] for run in runs)
    logits = {"transformers bf16": F.linear(rounded, head)}
    head = head.float()
    logits |= {"float32": F.linear(exact, head), "transformers bf16, logits not rounded": F.linear(rounded.float(), head)}
    return {name: x.float().cpu().numpy() for name, x in logits.items()}, [np.stack(run.chosen) for run in runs]


class Run:
    """The hidden states of one dtype on their way through the layers: what `GptOssModel.forward` does."""

    def __init__(self, config, hidden):
        self.config, self.hidden, self.chosen = config, hidden, []
        self.positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        self.rotary = GptOssRotaryEmbedding(config).to(hidden.device)(hidden, self.positions)
        how = {"config": config, "inputs_embeds": hidden, "attention_mask": None, "past_key_values": None}
        self.masks = {
            "full_attention": create_causal_mask(**how),
            "sliding_attention": create_sliding_window_causal_mask(**how),
        }

    def advance(self, layer, kind):
        layer.mlp.router.register_forward_hook(lambda _m, _i, out: self.chosen.append(out[2].sort(-1).values.cpu().numpy()))
        self.hidden = layer(
            self.hidden, attention_mask=self.masks[kind], position_ids=self.positions, position_embeddings=self.rotary,
            use_cache=False,
        )

    def normed(self, weight):
        norm = GptOssRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps).to(self.hidden)
        golden.copy_exact(norm.weight, weight)
        return norm(self.hidden)[0]


def loaded_layers(checkpoint, table, config, i, device):
    """Decoder layer `i` of transformers, in every dtype."""
    layers = [new_layer(config, i, dtype, device) for dtype in DTYPES]
    parameters = [dict(layer.named_parameters()) for layer in layers]
    for name in parameters[0]:
        targets, full = [p[name] for p in parameters], f"model.layers.{i}.{name}"
        if full + "_blocks" in checkpoint.unread:
            copy_experts(targets, checkpoint.take(full + "_blocks"), checkpoint.take(full + "_scales"), table)
        else:
            tensor = checkpoint.take(full)
            for target in targets:
                golden.copy_exact(target, tensor)
    return layers


def new_layer(config, i, dtype, device):
    torch.set_default_dtype(dtype)
    with torch.device(device), no_init_weights():
        layer = GptOssDecoderLayer(config, i).eval()
    torch.set_default_dtype(torch.float32)
    if any(p.dtype != dtype for p in layer.parameters()):
        raise ValueError("a parameter has another dtype than asked for")
    return layer


def pair_values():
    """By scale * 256 + byte, the two float32 values of a byte of MXFP4 as one int64, from formula.py."""
    scales = np.repeat(np.arange(255, dtype=np.uint8)[:, None], 16, axis=1)
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (255, 16, 16))
    with np.errstate(over="ignore"):
        values = formula.dequantise(blocks, scales).astype(np.float32)
    return torch.from_numpy(values).view(torch.int64).flatten()


def copy_experts(targets, blocks, scales, table):
    """blocks [E, rows, K/32, 16] into each target's [E, K, rows]."""
    if (scales == 255).any():
        raise ValueError("scale byte 255 is NaN")
    for at in range(0, len(blocks), EXPERTS_AT_ONCE):
        some = slice(at, at + EXPERTS_AT_ONCE)
        index = scales[some].int()[..., None] * 256 + blocks[some]
        values = table[index].view(torch.float32).flatten(-2).transpose(1, 2).contiguous()
        for target in targets:
            golden.copy_exact(target[some], values)


# ---- the comparison ----------------------------------------------------------------------------------------------


def compare(runs, truth, chosen):
    otherwise = (chosen[0] != chosen[1]).any(-1)  # [layers, tokens]
    alike = ~otherwise.any(0)[-len(truth) :]
    if any(logits.shape != truth.shape for logits in runs.values()):
        raise ValueError(f"shapes {[logits.shape for logits in runs.values()]}, truth {truth.shape}")
    figures = {name: distance(logits, truth, alike) for name, logits in runs.items()}
    ours, theirs = figures["tessera"], figures["transformers bf16"]
    return {
        "positions": len(truth),
        "positions_routed_alike": int(alike.sum()),
        "bf16_routed_otherwise": int(otherwise.sum()),
        "routed": otherwise.size,
        "logits_rms": golden.rms(truth),
        "runs": figures,
        "passed": ours["rms_distance"] <= theirs["rms_distance"] and ours["top1"] >= theirs["top1"],
    }


def distance(logits, truth, alike):
    same, difference = logits.argmax(-1) == truth.argmax(-1), logits - truth
    return {
        "rms_distance": golden.rms(difference),
        "top1": float(same.mean()),
        "rms_distance_routed_alike": golden.rms(difference[alike]) if alike.any() else None,
        "top1_routed_alike": float(same[alike].mean()) if alike.any() else None,
    }


def as_text(report):
    width = max(map(len, report["runs"]))
    lines = [
        f"{report['model']}: {report['positions']} positions; "
        f"truth: float32 of {report['truth']}, rms {report['logits_rms']:.4f}",
        f"bf16 routed {report['bf16_routed_otherwise']} of {report['routed']} otherwise (layer, token); "
        f"{report['positions_routed_alike']} positions alike in every layer",
        f"{'':{width}}  rms distance  top-1      routed alike: rms, top-1",
    ]
    for name, run in report["runs"].items():
        line = f"{name:{width}}  {run['rms_distance']:12.4e}  {run['top1']:7.2%}"
        if report["positions_routed_alike"]:
            line += f"    {run['rms_distance_routed_alike']:12.4e}  {run['top1_routed_alike']:7.2%}"
        lines.append(line)
    verdict = (
        "passed: tessera is no further from float32 than transformers' bf16, and has its best token no less often"
        if report["passed"]
        else "FAILED: tessera is further from float32 than transformers' bf16, or has its best token less often"
    )
    return "\n".join([*lines, verdict])


def compare_whole(args, tokens, theirs, exact):
    """Layer by layer must give what the whole model gives, on the CPU."""
    for dtype, logits in zip(DTYPES, (exact, theirs["transformers bf16"])):
        whole = golden.logits_of(golden.load_model(args.model, dtype), tokens, len(logits))
        largest = golden.largest(whole - logits)
        print(f"whole model, {dtype}: largest difference {largest:.2e}", file=sys.stderr)
        if not largest <= MAX_WHOLE_DISTANCE:
            raise ValueError("layer by layer differs from the whole model")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(2)
