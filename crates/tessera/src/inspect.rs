//! `tessera inspect`: what a checkpoint holds, and whether it would load.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Value, json};
use tessera_cuda::ModelWeights;
use tessera_model::checkpoint::{Depth, Layout, Part, Survey};
use tessera_model::{Config, LayerType};

/// Reasons not to load that the table prints; the rest are counted. `--json` has them all.
const MAX_SHOWN_REFUSALS: usize = 20;
/// Width of the longest bar of the histogram.
const BAR_WIDTH: u64 = 40;

/// Say what a checkpoint holds and whether it would load
///
/// Works on broken checkpoints, too: every reason not to load is listed. The exit status is 0 even then.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera inspect openai/gpt-oss-20b
  tessera inspect demo                           the built-in model
  tessera inspect ./gpt-oss-20b --json | jq .refusals")]
pub struct Args {
    /// Checkpoint folder, .safetensors file, index, hub id or demo
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let path = crate::source::resolve(&args.model)?;
    let report = Report::new(&Survey::take(&path, Depth::Values));
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{:#}", report.to_json(&args.model))?;
    } else {
        write!(out, "{}", report.to_text(&args.model))?;
    }
    Ok(())
}

/// Count and bytes of some tensors.
#[derive(Clone, Copy, Default)]
struct Sum {
    tensors: u64,
    bytes: u64,
}

/// The scale bytes of one projection.
struct Scales {
    projection: &'static str,
    counts: Vec<(u8, u64)>, // those that occur, ascending
}

struct Report {
    files: Vec<(String, u64)>,
    layout: Option<Layout>,
    verdict: &'static str,
    qkv: &'static str,
    prefixes: BTreeMap<String, u64>,
    groups: BTreeMap<(String, String), Sum>, // by group and dtype
    total: Sum,
    scales: Vec<Scales>,
    config: Option<Config>,
    /// What the weights take on a GPU, or why its kernels cannot run the model; none without a configuration.
    gpu: Option<Result<u64, String>>,
    notes: Vec<String>,
    refusals: Vec<String>,
}

impl Report {
    fn new(survey: &Survey) -> Self {
        let (mut prefixes, mut groups, mut total) = (BTreeMap::new(), BTreeMap::new(), Sum::default());
        let known = survey.specs_by_name();
        for tensor in &survey.tensors {
            *prefixes.entry(prefix(&tensor.name)).or_insert(0) += 1;
            let group = known.get(&tensor.name).map_or("unknown", |spec| spec.part.group());
            let sum: &mut Sum = groups.entry((group.to_owned(), tensor.dtype.to_string())).or_default();
            for sum in [sum, &mut total] {
                sum.tensors += 1;
                sum.bytes += tensor.bytes;
            }
        }
        let scales = [("gate_up", Part::GateUpScales), ("down", Part::DownScales)];
        let scales = scales.map(|(name, part)| Scales::new(name, &survey.scale_histogram(part)));
        Self {
            files: survey.files().map(|(path, len)| (path.display().to_string(), len)).collect(),
            layout: survey.layout,
            verdict: verdict(survey),
            qkv: qkv_style(survey),
            prefixes,
            groups,
            total,
            scales: scales.into_iter().filter(|s| !s.counts.is_empty()).collect(),
            config: survey.config.clone(),
            gpu: survey.config.as_ref().map(|c| ModelWeights::bytes(c).map_err(|reason| reason.to_string())),
            notes: survey.notes.clone(),
            refusals: survey.refusals.iter().map(|r| r.to_string()).collect(),
        }
    }

    fn to_text(&self, model: &str) -> String {
        let mut out = format!("{model}\n\nlayout   {}\nq, k, v  {}\n", self.verdict, self.qkv);
        if let Some(gpu) = &self.gpu {
            let _ = writeln!(out, "gpu      {}", gpu_line(gpu));
        }
        self.write_files(&mut out);
        if let Some(config) = &self.config {
            let _ = writeln!(out, "\nconfig");
            for (name, value) in config_rows(config) {
                let _ = writeln!(out, "  {name:<28} {value}");
            }
        }
        let _ = writeln!(out, "\n{:<40} {:>10}", "key prefix", "tensors");
        for (prefix, count) in &self.prefixes {
            let _ = writeln!(out, "  {prefix:<38} {count:>10}");
        }
        self.write_groups(&mut out);
        for scales in &self.scales {
            scales.write(&mut out);
        }
        for note in &self.notes {
            let _ = writeln!(out, "\nnote: {note}");
        }
        self.write_refusals(&mut out);
        out
    }

    fn write_files(&self, out: &mut String) {
        let _ = writeln!(out, "files    {}", self.files.len());
        for (path, len) in &self.files {
            let _ = writeln!(out, "  {len:>16}  {path}");
        }
    }

    fn write_groups(&self, out: &mut String) {
        let _ = writeln!(out, "\n{:<20} {:<6} {:>9} {:>16}", "group", "dtype", "tensors", "bytes");
        let mut row = |group: &str, dtype: &str, sum: &Sum| {
            let _ = writeln!(out, "  {group:<18} {dtype:<6} {:>9} {:>16}", sum.tensors, sum.bytes);
        };
        for ((group, dtype), sum) in &self.groups {
            row(group, dtype, sum);
        }
        row("total", "", &self.total);
    }

    fn write_refusals(&self, out: &mut String) {
        if self.refusals.is_empty() {
            let _ = writeln!(out, "\nwould load");
            return;
        }
        let _ = writeln!(out, "\nwould not load, {} reason(s):", self.refusals.len());
        for refusal in self.refusals.iter().take(MAX_SHOWN_REFUSALS) {
            let _ = writeln!(out, "  {refusal}");
        }
        if self.refusals.len() > MAX_SHOWN_REFUSALS {
            let _ = writeln!(out, "  and {} more; --json lists all", self.refusals.len() - MAX_SHOWN_REFUSALS);
        }
    }

    fn to_json(&self, model: &str) -> Value {
        let group = |((group, dtype), sum): (&(String, String), &Sum)| json!({ "group": group, "dtype": dtype, "tensors": sum.tensors, "bytes": sum.bytes });
        let config = |c: &Config| config_rows(c).into_iter().collect::<serde_json::Map<String, Value>>();
        json!({
            "model": model,
            "loads": self.refusals.is_empty(),
            "refusals": self.refusals,
            "notes": self.notes,
            "layout": self.layout.map(Layout::name),
            "qkv": self.qkv,
            "gpu": self.gpu.as_ref().map(gpu_json),
            "files": self.files.iter().map(|(p, n)| json!({ "path": p, "bytes": n })).collect::<Vec<_>>(),
            "prefixes": self.prefixes,
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "tensors": self.total.tensors,
            "bytes": self.total.bytes,
            "scales": self.scales.iter().map(Scales::to_json).collect::<Vec<_>>(),
            "config": self.config.as_ref().map(config),
        })
    }
}

impl Scales {
    fn new(projection: &'static str, histogram: &[u64; 256]) -> Self {
        let counts = (0..=255u8).zip(*histogram).filter(|(_, n)| *n > 0).collect();
        Self { projection, counts }
    }

    fn range(&self) -> (u8, u8) {
        (self.counts.first().map_or(0, |c| c.0), self.counts.last().map_or(0, |c| c.0))
    }

    fn write(&self, out: &mut String) {
        let (min, max) = self.range();
        let (all, most) = self.counts.iter().fold((0, 1), |(sum, most), (_, n)| (sum + n, most.max(*n)));
        let _ = writeln!(out, "\n{} scale bytes {min} to {max}, {all} blocks", self.projection);
        for (byte, n) in &self.counts {
            let bar = "#".repeat((n * BAR_WIDTH).div_ceil(most) as usize);
            let percent = 100.0 * *n as f64 / all as f64;
            let _ = writeln!(out, "  {byte:>3}  2^{:<5} {n:>12} {percent:>6.2} %  {bar}", i32::from(*byte) - 127);
        }
    }

    fn to_json(&self) -> Value {
        let (min, max) = self.range();
        let histogram: BTreeMap<u8, u64> = self.counts.iter().copied().collect();
        json!({ "projection": self.projection, "min": min, "max": max, "histogram": histogram })
    }
}

/// A tensor's name with the layer's number as `N`, up to the last part that groups tensors: `model.layers.N.self_attn`.
fn prefix(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|part| if number(part) { "N" } else { part }).collect();
    let in_layer = parts.iter().position(|p| *p == "N").map_or(1, |n| n + 2);
    parts[..in_layer.min(parts.len())].join(".")
}

fn verdict(survey: &Survey) -> &'static str {
    match survey.layout {
        Some(Layout::Hf) => "hf: model.layers.N.*, MXFP4 experts",
        Some(Layout::Original) => "original: block.N.*, MXFP4 experts",
        Some(Layout::Bf16) => "bf16: model.layers.N.*, dequantised experts; convert it first",
        None if survey.tensors.is_empty() => "none: no tensors could be read",
        None => "none: the names are not those of a gpt-oss checkpoint",
    }
}

fn qkv_style(survey: &Survey) -> &'static str {
    let any = |end: &str| survey.tensors.iter().any(|t| t.name.ends_with(end));
    match (any("attn.q_proj.weight"), any("attn.qkv.weight")) {
        (true, false) => "split",
        (false, true) => "fused by rows",
        (true, true) => "split and fused, both",
        (false, false) => "none",
    }
}

fn gpu_line(gpu: &Result<u64, String>) -> String {
    match gpu {
        Ok(bytes) => {
            format!("the kernels can run it (H100, H200); {:.1} GB there for the weights", *bytes as f64 / 1e9)
        }
        Err(reason) => format!("the kernels cannot run it: {reason}"),
    }
}

fn gpu_json(gpu: &Result<u64, String>) -> Value {
    json!({ "runs": gpu.is_ok(), "weight_bytes": gpu.as_ref().ok(), "reason": gpu.as_ref().err() })
}

fn config_rows(c: &Config) -> Vec<(String, Value)> {
    let sliding = c.layer_types.iter().filter(|t| **t == LayerType::Sliding).count();
    let rows = [
        ("vocab_size", json!(c.vocab_size)),
        ("hidden_size", json!(c.hidden_size)),
        ("intermediate_size", json!(c.intermediate_size)),
        ("num_hidden_layers", json!(c.num_hidden_layers)),
        ("sliding layers", json!(sliding)),
        ("full layers", json!(c.layer_types.len() - sliding)),
        ("sliding_window", json!(c.sliding_window)),
        ("num_attention_heads", json!(c.num_attention_heads)),
        ("num_key_value_heads", json!(c.num_key_value_heads)),
        ("head_dim", json!(c.head_dim)),
        ("num_local_experts", json!(c.num_local_experts)),
        ("num_experts_per_tok", json!(c.num_experts_per_tok)),
        ("max_position_embeddings", json!(c.max_position_embeddings)),
        ("rope_theta", json!(c.rope.theta)),
        ("rope factor", json!(c.rope.factor)),
        ("rope original context", json!(c.rope.original_max_position_embeddings)),
        ("swiglu_limit", json!(c.swiglu_limit)),
        ("eos_token_ids", json!(c.eos_token_ids)),
    ];
    rows.into_iter().map(|(name, value)| (name.replace(' ', "_"), value)).collect()
}
