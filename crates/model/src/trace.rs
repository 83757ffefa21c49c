//! Names for the steps of the forward pass, the same in every backend, and a way to look at (and replace) their values.

/// The steps of the forward pass in the order in which they run; the first and the last two run once, the rest per layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Rows of the embedding, `[tokens, hidden]`.
    Embed,
    /// RMSNorm before attention, `[tokens, hidden]`.
    AttnNorm,
    /// Queries, keys and values with their biases, before RoPE, `[tokens, q_dim + 2 kv_dim]`.
    Qkv,
    /// The same after RoPE on queries and keys, as stored in the cache.
    RopeStore,
    /// Attention over the cache, `[tokens, q_dim]`.
    Attend,
    /// Output projection plus bias plus residual, `[tokens, hidden]`.
    AttnOut,
    /// RMSNorm before the MoE, `[tokens, hidden]`.
    MlpNorm,
    /// Router logits, `[tokens, experts]`. The choice of experts follows from the values that the trace leaves behind.
    Router,
    /// Gate weights, 0 for experts that were not chosen, `[tokens, experts]`.
    Route,
    /// Gate and up rows with their biases, `[tokens * top_k, 2 intermediate]`; pairs by token, then by ascending expert id.
    GateUp,
    /// `[tokens * top_k, intermediate]`, pairs in the same order.
    Swiglu,
    /// Down projection plus bias, not yet weighted, `[tokens * top_k, hidden]`, pairs in the same order.
    Down,
    /// Weighted sum over the experts plus residual, `[tokens, hidden]`.
    Combine,
    /// Final RMSNorm of the tokens that want logits, `[n_logits, hidden]`.
    FinalNorm,
    /// Logits, `[n_logits, vocab]`.
    Logits,
}

/// A stage of a layer; `layer` is `None` outside the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub layer: Option<usize>,
    pub stage: Stage,
}

/// Sees every stage's values as they are computed, as float32.
pub trait Trace {
    /// `values` is `[rows, width]`, row-major. Whatever is written into it is what the next stage reads, so that a
    /// comparison can put the reference's values in place and judge each stage by itself.
    fn visit(&mut self, site: Site, width: usize, values: &mut [f32]);
}

impl Stage {
    pub const ALL: [Stage; 15] = [
        Stage::Embed,
        Stage::AttnNorm,
        Stage::Qkv,
        Stage::RopeStore,
        Stage::Attend,
        Stage::AttnOut,
        Stage::MlpNorm,
        Stage::Router,
        Stage::Route,
        Stage::GateUp,
        Stage::Swiglu,
        Stage::Down,
        Stage::Combine,
        Stage::FinalNorm,
        Stage::Logits,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Embed => "embed",
            Stage::AttnNorm => "attn_norm",
            Stage::Qkv => "qkv",
            Stage::RopeStore => "rope_store",
            Stage::Attend => "attend",
            Stage::AttnOut => "attn_out",
            Stage::MlpNorm => "mlp_norm",
            Stage::Router => "router",
            Stage::Route => "route",
            Stage::GateUp => "gate_up",
            Stage::Swiglu => "swiglu",
            Stage::Down => "down",
            Stage::Combine => "combine",
            Stage::FinalNorm => "final_norm",
            Stage::Logits => "logits",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layer {layer} {}", self.stage),
            None => write!(f, "{}", self.stage),
        }
    }
}
