"""The gpt-oss forward pass from its formulas, in float64 numpy, from raw checkpoint bytes.

A second opinion on transformers: `golden.py` refuses to write a fixture unless both agree. It shares no code
with transformers and is slow on purpose. Faults are injected by changing the config or the weights it is given
(`FAULTS`), so every fixture records how far each classic mistake would move its logits.
"""

import math

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SWIGLU_ALPHA = 1.702


def dequantise(blocks, scales):
    """MXFP4 to float64: blocks u8 [..., rows, K/32, 16], scales u8 [..., rows, K/32] -> [..., rows, K].

    The low nibble is the even index; value = E2M1[nibble] * 2**(scale - 127). OCP Microscaling Formats v1.0.
    """
    if (scales == 255).any():
        raise ValueError("scale byte 255 is NaN")
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(E2M1[nibbles], scales.astype(np.int32)[..., None] - 127)
    return values.reshape(*blocks.shape[:-2], blocks.shape[-2] * 32)


def yarn(config):
    """Inverse frequencies [head_dim/2] and the factor on cos and sin. YaRN, arXiv 2309.00071, section 3.4."""
    rope = config.get("rope_scaling") or config["rope_parameters"]
    theta = config.get("rope_theta") or rope["rope_theta"]
    dim, context = config["head_dim"], rope["original_max_position_embeddings"]
    low, high = (
        dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (rope["beta_fast"], rope["beta_slow"])
    )
    if rope["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    i = np.arange(dim // 2)
    extrapolated = theta ** (-2.0 * i / dim)
    keep = 1 - np.clip((i - low) / (high - low), 0, 1)
    inv_freq = extrapolated / rope["factor"] * (1 - keep) + extrapolated * keep
    return inv_freq, 0.1 * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, cos, sin):
    """x [tokens, heads, head_dim]; cos, sin [tokens, head_dim/2]; halves are rotated against each other."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q, k, v, sinks, window):
    """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], sinks [heads] -> [tokens, heads * head_dim]."""
    n, heads, dim = q.shape
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    hidden = (distance < 0) | (distance >= window)
    out = np.empty_like(q)
    for h in range(heads):
        kv = h // (heads // k.shape[1])
        scores = np.where(hidden, -np.inf, q[:, h] @ k[:, kv].T / math.sqrt(dim))
        peak = np.maximum(scores.max(-1, keepdims=True), sinks[h])
        p = np.exp(scores - peak)
        out[:, h] = p @ v[:, kv] / (p.sum(-1, keepdims=True) + np.exp(sinks[h] - peak))
    return out.reshape(n, -1)


def moe(x, w, config):
    """x [tokens, hidden] -> [tokens, hidden]; w holds one layer's `mlp.*` tensors, experts as [E, rows, K]."""
    logits = x @ w["mlp.router.weight"].T + w["mlp.router.bias"]
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : config["num_experts_per_tok"]]
    top = np.take_along_axis(logits, chosen, -1)
    share = np.exp(top - top.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    out, limit = np.zeros_like(x), config["swiglu_limit"]
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)
        h = x[token] @ w["mlp.experts.gate_up_proj"][e].T + w["mlp.experts.gate_up_proj_bias"][e]
        gate, up = np.minimum(h[:, ::2], limit), np.clip(h[:, 1::2], -limit, limit)
        h = gate / (1 + np.exp(np.minimum(-SWIGLU_ALPHA * gate, 700))) * (up + 1)
        y = h @ w["mlp.experts.down_proj"][e].T + w["mlp.experts.down_proj_bias"][e]
        np.add.at(out, token, y * share[token, slot, None])
    return out


def forward(config, weights, tokens, last):
    """float64 logits [last, vocab] of the last positions; weights as from `float64_weights`."""
    n, dim, eps = len(tokens), config["head_dim"], config["rms_norm_eps"]
    inv_freq, concentration = yarn(config)
    angle = np.arange(n)[:, None] * inv_freq
    cos, sin = np.cos(angle) * concentration, np.sin(angle) * concentration
    x = weights["model.embed_tokens.weight"][tokens]
    for layer_idx, kind in enumerate(config["layer_types"]):
        prefix = f"model.layers.{layer_idx}."
        w = {name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            (h @ w[f"self_attn.{p}_proj.weight"].T + w[f"self_attn.{p}_proj.bias"]).reshape(n, -1, dim) for p in "qkv"
        )
        window = config["sliding_window"] if kind == "sliding_attention" else n
        h = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, w["self_attn.sinks"], window)
        x = x + h @ w["self_attn.o_proj.weight"].T + w["self_attn.o_proj.bias"]
        x = x + moe(rms_norm(x, w["post_attention_layernorm.weight"], eps), w, config)
    return rms_norm(x[-last:], weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


def float64_weights(raw):
    """Checkpoint tensors (numpy; BF16 already widened) -> the same names in float64, MXFP4 pairs merged."""
    out = {}
    for name, tensor in raw.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            out[stem] = dequantise(tensor, raw[stem + "_scales"])
        elif not name.endswith("_scales"):
            out[name] = tensor.astype(np.float64)
    return out


def _rope(config, **changes):
    key = "rope_scaling" if "rope_scaling" in config else "rope_parameters"
    return {**config, key: {**config[key], **changes}}


def _each(weights, suffix, change):
    return {name: change(t) if name.endswith(suffix) else t for name, t in weights.items()}


def _swap_pairs(tensor):
    """Swap neighbours on the last axis: what a decoder with the nibbles the wrong way round sees."""
    return tensor.reshape(*tensor.shape[:-1], -1, 2)[..., ::-1].reshape(tensor.shape)


def _swap_rows(tensor):
    return np.swapaxes(_swap_pairs(np.swapaxes(tensor, 1, -1)), 1, -1)


_OTHER_KIND = {"sliding_attention": "full_attention", "full_attention": "sliding_attention"}

# Each fault: (config, weights) -> (config, weights).
FAULTS = {
    "window one shorter": lambda c, w: ({**c, "sliding_window": c["sliding_window"] - 1}, w),
    "window one longer": lambda c, w: ({**c, "sliding_window": c["sliding_window"] + 1}, w),
    "layer kinds swapped": lambda c, w: ({**c, "layer_types": [_OTHER_KIND[t] for t in c["layer_types"]]}, w),
    "yarn range truncated": lambda c, w: (_rope(c, truncate=True), w),
    "yarn factor ignored": lambda c, w: (_rope(c, factor=1.0), w),
    "sinks dropped": lambda c, w: (c, _each(w, "sinks", lambda t: t - 1e9)),
    "value bias forgotten": lambda c, w: (c, _each(w, "v_proj.bias", lambda t: t * 0)),
    "down bias forgotten": lambda c, w: (c, _each(w, "down_proj_bias", lambda t: t * 0)),
    "router bias forgotten": lambda c, w: (c, _each(w, "router.bias", lambda t: t * 0)),
    "one expert fewer": lambda c, w: ({**c, "num_experts_per_tok": c["num_experts_per_tok"] - 1}, w),
    "no clamp": lambda c, w: ({**c, "swiglu_limit": math.inf}, w),
    "gate and up swapped": lambda c, w: (c, _each(w, "gate_up_proj", _swap_rows)),
    "nibbles swapped": lambda c, w: (c, _each(_each(w, "gate_up_proj", _swap_pairs), "down_proj", _swap_pairs)),
    "epsilon 1e-6": lambda c, w: ({**c, "rms_norm_eps": 1e-6}, w),
}
