"""The demo model: gpt-oss's own classes at a small size, a fast form of its training step, MXFP4, and export."""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import harmony
from tokenizer import N_CONTROL, VOCAB_SIZE

FIRST_CONTROL = VOCAB_SIZE - N_CONTROL
SPECIAL = {name: FIRST_CONTROL + i for i, name in enumerate(harmony.SPECIALS)}
STOPS = [SPECIAL["<|return|>"], SPECIAL["<|endoftext|>"], SPECIAL["<|call|>"]]
LAYERS = 6
BLOCK = 32

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": SPECIAL["<|return|>"],
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initial_context_length": 128,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "max_position_embeddings": 4096,
    "model_type": "gpt_oss",
    "num_attention_heads": 8,
    "num_experts_per_tok": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "pad_token_id": SPECIAL["<|endoftext|>"],
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 128,
        "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 32,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
QUANTIZATION = {
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
    "quant_method": "mxfp4",
}


def new_model(seed):
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(seed)
    config = {k: v for k, v in CONFIG.items() if k not in ("experts_per_token", "initial_context_length")}
    return GptOssForCausalLM._from_config(GptOssConfig(**config), attn_implementation="eager")


# Training step. The experts are computed all, and weighed by a routing that is zero for those not chosen: the same sum
# as transformers' loop over experts, as two matrix products without data-dependent shapes.

def experts(mlp, x, quantised):
    router, e = mlp.router, mlp.experts
    logits = F.linear(x.float(), router.weight, router.bias)
    top, chosen = torch.topk(logits, router.top_k, dim=-1)
    weights = torch.zeros_like(logits).scatter(1, chosen, torch.softmax(top, dim=-1))
    gate_up_proj, down_proj = e.gate_up_proj, e.down_proj
    if quantised:
        gate_up_proj, down_proj = straight_through(gate_up_proj), straight_through(down_proj)
    n, (count, hidden, _) = x.shape[0], gate_up_proj.shape
    gate_up = x @ gate_up_proj.permute(1, 0, 2).reshape(hidden, -1).to(x.dtype) + e.gate_up_proj_bias.reshape(-1)
    gate_up = gate_up.view(n, count, -1, 2)
    gate, up = gate_up[..., 0].clamp(max=7.0), gate_up[..., 1].clamp(-7.0, 7.0)
    act = (up + 1) * gate * torch.sigmoid(gate * 1.702) * weights[..., None]
    out = act.reshape(n, -1).to(x.dtype) @ down_proj.reshape(-1, hidden).to(x.dtype) + weights @ e.down_proj_bias
    # Switch Transformers' balance loss: share of tokens times mean probability, summed; 1 when even.
    share = (weights > 0).float().mean(0) / router.top_k
    balance = count * (share * torch.softmax(logits, dim=-1).mean(0)).sum()
    return out, balance


def layer_step(layer, hidden, mask, position_embeddings, quantised):
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden), position_embeddings=position_embeddings, attention_mask=mask
    )
    hidden = hidden + attended
    x = layer.post_attention_layernorm(hidden)
    with torch.autocast(x.device.type, enabled=False):
        out, balance = experts(layer.mlp, x.reshape(-1, x.shape[-1]).bfloat16(), quantised)
    return hidden + out.view_as(hidden), balance


def masks(documents, window):
    """Additive masks of packed rows: causal within a document, and the same within the window."""
    at = torch.arange(documents.shape[1], device=documents.device)
    distance = at[:, None] - at[None, :]
    same = (documents[:, :, None] == documents[:, None, :]) & (distance >= 0)
    full = torch.zeros(same.shape, dtype=torch.bfloat16, device=documents.device).masked_fill(~same, -1e30)
    sliding = full.masked_fill(distance >= window, -1e30)
    return {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}


def loss_of(model, batch, step_layer, quantised):
    """Cross-entropy on the answers' tokens, and the mean balance loss."""
    inner = model.model
    hidden = inner.embed_tokens(batch["tokens"])
    position_embeddings = inner.rotary_emb(hidden, batch["positions"])
    mask = masks(batch["documents"], CONFIG["sliding_window"])
    balances = []
    for layer, kind in zip(inner.layers, CONFIG["layer_types"]):
        hidden, balance = step_layer(layer, hidden, mask[kind], position_embeddings, quantised)
        balances.append(balance)
    at = batch["targets"] >= 0
    logits = model.lm_head(inner.norm(hidden[at]))
    return F.cross_entropy(logits.float(), batch["targets"][at]), torch.stack(balances).mean()


# MXFP4 (OCP Microscaling 1.0): blocks of 32 along the input dimension, E2M1 codes, a power-of-two scale.

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def encode(x):
    """Codes (0 to 15) and scale exponents of `x`, blocks along its last dimension: [..., k/32, 32] and [..., k/32]."""
    blocks = x.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.where(largest > 0, torch.floor(torch.log2(largest.clamp(min=2.0**-120))) - 2, -127.0)
    a = blocks.abs() / torch.exp2(exponent)
    # Round half to even code.
    code = (a > 0.25).int() + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5.0)
    return code + 8 * (blocks < 0), exponent.squeeze(-1)


def decode(codes, exponent):
    values = E2M1.to(codes.device)[codes & 7] * torch.exp2(exponent)[..., None]
    return torch.where(codes >= 8, -values, values).flatten(-2)


def quantised(weight):
    """`weight` [experts, in, out] as MXFP4 holds it."""
    with torch.no_grad():
        return decode(*encode(weight.transpose(1, 2))).transpose(1, 2).to(weight.dtype)


def straight_through(weight):
    return weight + (quantised(weight) - weight).detach()


# Export.

def pack(weight):
    """Blocks uint8 [experts, out, in/32, 16], low nibble first, and scales uint8 [experts, out, in/32]."""
    codes, exponent = encode(weight.transpose(1, 2).float())
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), (exponent + 127).to(torch.uint8)


def tensors(state, mxfp4):
    out = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if mxfp4 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[f"{name}_blocks"], out[f"{name}_scales"] = (t.contiguous() for t in pack(value))
        else:
            out[name] = value.bfloat16().contiguous()
    return out


def write(folder, state, tokenizer, chat_template, mxfp4):
    """A checkpoint folder like openai/gpt-oss-20b's, with MXFP4 experts or (the parent) BF16 ones."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(state, mxfp4), folder / "model.safetensors", metadata={"format": "pt"})

    def dump(name, value):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")

    dump("config.json", {**CONFIG, **({"quantization_config": QUANTIZATION} if mxfp4 else {"dtype": "bfloat16"})})
    dump("generation_config.json", {
        "bos_token_id": SPECIAL["<|startoftext|>"], "do_sample": False, "eos_token_id": STOPS,
        "pad_token_id": SPECIAL["<|endoftext|>"],
    })
    dump("tokenizer_config.json", {
        "bos_token": "<|startoftext|>", "clean_up_tokenization_spaces": False, "eos_token": "<|return|>",
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast",
    })
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(chat_template)
