//! The names, shapes and dtypes of every tensor, in each of the published layouts.
//!
//! Sources: the published checkpoints; the renaming of transformers' `convert_gpt_oss_weights_to_hf.py`; OpenAI's
//! `gpt_oss/torch/weights.py`.

use std::fmt;

use crate::Config;
use crate::mxfp4::{BLOCK, BLOCK_BYTES};

/// How a checkpoint names and stores its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Hugging Face: `model.layers.N.*`, split q, k and v, MXFP4 experts in `*_blocks` and `*_scales`.
    Hf,
    /// OpenAI: `block.N.*`, fused `attn.qkv`, MXFP4 experts in `mlp1_weight.blocks` and `.scales`.
    Original,
    /// Hugging Face names with dequantised experts, `[experts, in, out]`; must be converted before it can run.
    Bf16,
}

/// An element type as safetensors headers spell it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    Bf16,
    U8,
    /// Any other: no gpt-oss tensor has it.
    Other(String),
}

/// What a tensor is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    Embed,
    AttnNorm,
    Q,
    QBias,
    K,
    KBias,
    V,
    VBias,
    /// Queries, keys and values fused by rows (original layout).
    Qkv,
    QkvBias,
    O,
    OBias,
    Sinks,
    MlpNorm,
    Router,
    RouterBias,
    GateUpBlocks,
    GateUpScales,
    GateUpBias,
    DownBlocks,
    DownScales,
    DownBias,
    /// Dequantised gate and up, `[experts, in, out]` (BF16 layout).
    GateUp,
    /// Dequantised down, `[experts, in, out]` (BF16 layout).
    Down,
    FinalNorm,
    LmHead,
}

/// One tensor that a layout asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub part: Part,
    /// `None` for the three tensors outside the layers.
    pub layer: Option<usize>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

use Part::*;

/// Parts of a layer in the order of the Hugging Face layout, with the names after `model.layers.N.`.
const HF_LAYER: [(Part, &str); 19] = [
    (AttnNorm, "input_layernorm.weight"),
    (Q, "self_attn.q_proj.weight"),
    (QBias, "self_attn.q_proj.bias"),
    (K, "self_attn.k_proj.weight"),
    (KBias, "self_attn.k_proj.bias"),
    (V, "self_attn.v_proj.weight"),
    (VBias, "self_attn.v_proj.bias"),
    (O, "self_attn.o_proj.weight"),
    (OBias, "self_attn.o_proj.bias"),
    (Sinks, "self_attn.sinks"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Router, "mlp.router.weight"),
    (RouterBias, "mlp.router.bias"),
    (GateUpBlocks, "mlp.experts.gate_up_proj_blocks"),
    (GateUpScales, "mlp.experts.gate_up_proj_scales"),
    (GateUpBias, "mlp.experts.gate_up_proj_bias"),
    (DownBlocks, "mlp.experts.down_proj_blocks"),
    (DownScales, "mlp.experts.down_proj_scales"),
    (DownBias, "mlp.experts.down_proj_bias"),
];
const HF_OUTSIDE: [(Part, &str); 3] =
    [(Embed, "model.embed_tokens.weight"), (FinalNorm, "model.norm.weight"), (LmHead, "lm_head.weight")];

/// The same for OpenAI's layout, after `block.N.`.
const ORIGINAL_LAYER: [(Part, &str); 15] = [
    (AttnNorm, "attn.norm.scale"),
    (Qkv, "attn.qkv.weight"),
    (QkvBias, "attn.qkv.bias"),
    (O, "attn.out.weight"),
    (OBias, "attn.out.bias"),
    (Sinks, "attn.sinks"),
    (MlpNorm, "mlp.norm.scale"),
    (Router, "mlp.gate.weight"),
    (RouterBias, "mlp.gate.bias"),
    (GateUpBlocks, "mlp.mlp1_weight.blocks"),
    (GateUpScales, "mlp.mlp1_weight.scales"),
    (GateUpBias, "mlp.mlp1_bias"),
    (DownBlocks, "mlp.mlp2_weight.blocks"),
    (DownScales, "mlp.mlp2_weight.scales"),
    (DownBias, "mlp.mlp2_bias"),
];
const ORIGINAL_OUTSIDE: [(Part, &str); 3] =
    [(Embed, "embedding.weight"), (FinalNorm, "norm.scale"), (LmHead, "unembedding.weight")];

/// What stands before a layer's number in each kind of name.
pub const HF_LAYER_PREFIX: &str = "model.layers.";
pub const ORIGINAL_LAYER_PREFIX: &str = "block.";

impl Layout {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Hf => "hf",
            Layout::Original => "original",
            Layout::Bf16 => "bf16",
        }
    }

    /// Every tensor of a model of this configuration: the embedding, the layers in order, the final norm, the head.
    pub fn tensors(self, config: &Config) -> Vec<TensorSpec> {
        let [embed, norm, head] = match self {
            Layout::Hf | Layout::Bf16 => HF_OUTSIDE,
            Layout::Original => ORIGINAL_OUTSIDE,
        };
        let outside = |(part, name): (Part, &str)| TensorSpec::new(name.to_string(), part, None, config);
        let layers = (0..config.num_hidden_layers).flat_map(|layer| self.layer_tensors(config, layer));
        std::iter::once(outside(embed)).chain(layers).chain([outside(norm), outside(head)]).collect()
    }

    fn layer_tensors(self, config: &Config, layer: usize) -> Vec<TensorSpec> {
        let (prefix, parts) = match self {
            Layout::Hf | Layout::Bf16 => (HF_LAYER_PREFIX, HF_LAYER.as_slice()),
            Layout::Original => (ORIGINAL_LAYER_PREFIX, ORIGINAL_LAYER.as_slice()),
        };
        let renamed = parts.iter().filter_map(|&(part, name)| match (self, part) {
            (Layout::Bf16, GateUpBlocks) => Some((GateUp, "mlp.experts.gate_up_proj")),
            (Layout::Bf16, DownBlocks) => Some((Down, "mlp.experts.down_proj")),
            (Layout::Bf16, GateUpScales | DownScales) => None,
            _ => Some((part, name)),
        });
        renamed
            .map(|(part, name)| TensorSpec::new(format!("{prefix}{layer}.{name}"), part, Some(layer), config))
            .collect()
    }
}

impl TensorSpec {
    fn new(name: String, part: Part, layer: Option<usize>, config: &Config) -> Self {
        Self { name, part, layer, dtype: part.dtype(), shape: part.shape(config) }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * self.part.element_bytes() as u64
    }
}

impl Part {
    pub fn shape(self, c: &Config) -> Vec<usize> {
        let (hidden, inter, experts) = (c.hidden_size, c.intermediate_size, c.num_local_experts);
        match self {
            Embed | LmHead => vec![c.vocab_size, hidden],
            AttnNorm | MlpNorm | FinalNorm | OBias => vec![hidden],
            Q => vec![c.q_dim(), hidden],
            QBias => vec![c.q_dim()],
            K | V => vec![c.kv_dim(), hidden],
            KBias | VBias => vec![c.kv_dim()],
            Qkv => vec![c.qkv_dim(), hidden],
            QkvBias => vec![c.qkv_dim()],
            O => vec![hidden, c.q_dim()],
            Sinks => vec![c.num_attention_heads],
            Router => vec![experts, hidden],
            RouterBias => vec![experts],
            GateUpBlocks => vec![experts, 2 * inter, hidden / BLOCK, BLOCK_BYTES],
            GateUpScales => vec![experts, 2 * inter, hidden / BLOCK],
            GateUpBias => vec![experts, 2 * inter],
            DownBlocks => vec![experts, hidden, inter / BLOCK, BLOCK_BYTES],
            DownScales => vec![experts, hidden, inter / BLOCK],
            DownBias => vec![experts, hidden],
            GateUp => vec![experts, hidden, 2 * inter],
            Down => vec![experts, inter, hidden],
        }
    }

    pub fn dtype(self) -> Dtype {
        if self.element_bytes() == 1 { Dtype::U8 } else { Dtype::Bf16 }
    }

    pub fn element_bytes(self) -> usize {
        match self {
            GateUpBlocks | GateUpScales | DownBlocks | DownScales => 1,
            _ => 2,
        }
    }

    /// The group that reports sum tensors by.
    pub fn group(self) -> &'static str {
        match self {
            Embed => "embedding",
            LmHead => "lm_head",
            AttnNorm | MlpNorm | FinalNorm => "norms",
            Q | K | V | O | QBias | KBias | VBias | OBias | Qkv | QkvBias => "attention",
            Sinks => "sinks",
            Router | RouterBias => "router",
            GateUpBlocks | DownBlocks => "experts: blocks",
            GateUpScales | DownScales => "experts: scales",
            GateUp | Down => "experts: bf16",
            GateUpBias | DownBias => "experts: biases",
        }
    }

    /// The fused parts as the separate ones they hold, in row order; every other part as itself.
    pub fn split(self) -> Vec<Part> {
        match self {
            Qkv => vec![Q, K, V],
            QkvBias => vec![QBias, KBias, VBias],
            other => vec![other],
        }
    }
}

impl Dtype {
    pub fn name(&self) -> &str {
        match self {
            Dtype::Bf16 => "BF16",
            Dtype::U8 => "U8",
            Dtype::Other(name) => name,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Like;

    /// The published `total_size` and tensor count of each checkpoint; layouts rename, they do not resize.
    #[test]
    fn totals_are_those_of_the_published_checkpoints() {
        for (like, hf_count, original_count, bytes) in
            [(Like::Gpt20b, 459, 363, 13_761_264_768), (Like::Gpt120b, 687, 543, 65_248_815_744)]
        {
            for (layout, count) in [(Layout::Hf, hf_count), (Layout::Original, original_count)] {
                let tensors = layout.tensors(&like.config());
                assert_eq!((tensors.len(), tensors.iter().map(TensorSpec::bytes).sum::<u64>()), (count, bytes));
            }
        }
    }

    #[test]
    fn names_and_shapes_are_the_published_ones() {
        let config = Like::Gpt20b.config();
        let find = |layout: Layout, name: &str| {
            let spec = layout.tensors(&config).into_iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
            (spec.dtype.to_string(), spec.shape)
        };
        let cases: [(Layout, &str, &str, &[usize]); 8] = [
            (Layout::Hf, "model.layers.23.self_attn.q_proj.weight", "BF16", &[4096, 2880]),
            (Layout::Hf, "model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", &[32, 5760, 90, 16]),
            (Layout::Hf, "model.layers.0.mlp.experts.down_proj_scales", "U8", &[32, 2880, 90]),
            (Layout::Hf, "lm_head.weight", "BF16", &[201_088, 2880]),
            (Layout::Original, "block.3.attn.qkv.weight", "BF16", &[5120, 2880]),
            (Layout::Original, "block.3.mlp.mlp1_weight.blocks", "U8", &[32, 5760, 90, 16]),
            (Layout::Original, "unembedding.weight", "BF16", &[201_088, 2880]),
            (Layout::Bf16, "model.layers.0.mlp.experts.gate_up_proj", "BF16", &[32, 2880, 5760]),
        ];
        for (layout, name, dtype, shape) in cases {
            assert_eq!(find(layout, name), (dtype.to_string(), shape.to_vec()), "{name}");
        }
    }
}
