//! `tessera verify`: the checkpoint's structure, then the fast path's numbers against the oracle's, stage by stage.

use std::io::Write;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::ProgressBar;
use tessera_cpu::CpuOptions;
use tessera_model::{Config, Site, Stage, Weights};

use crate::args::{Device, MoeKernelArg, at_least_one};
use crate::opened;
use crate::progress;

use cuda::Gpu;
use lockstep::Filter;
use moe::{Fast, Layers};
use probe::Probe;
use report::{FastPath, Report, Section};
use whole::Whole;

mod cuda;
#[cfg(test)]
mod faults;
mod lockstep;
mod measure;
mod moe;
#[cfg(test)]
mod moe_faults;
#[cfg(test)]
mod on_the_gpu;
mod probe;
mod report;
mod whole;
#[cfg(test)]
mod whole_faults;

/// Check a checkpoint's files, then compare every layer and stage of the fast path with the float32 oracle
///
/// A probe prompt, decode steps and a mixture of both run through both. Each stage starts from the oracle's values, so
/// that it is judged by itself. The last line says which layer and stage failed first, and the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera verify openai/gpt-oss-20b
  tessera verify demo                            the built-in model, in seconds
  tessera verify DIR --layer 3 --stage gate_up   one stage of one layer
  tessera verify DIR --moe-only                  every expert of every layer, without attention
  tessera verify DIR --device cuda               the whole model on the GPU
  tessera verify DIR --moe-only --device cuda    every expert on the GPU
  tessera verify DIR --moe-only --device cuda --moe-kernel prefill
                                                 with one of its kernels
  tessera verify DIR --json | jq .first_failure")]
pub struct Args {
    /// Checkpoint folder, .safetensors file, index, hub id or demo
    model: String,
    /// Judge this layer alone
    #[arg(long)]
    layer: Option<usize>,
    /// Judge this stage alone, and show every layer of it
    #[arg(long, value_parser = stage_parser())]
    stage: Option<Stage>,
    /// Feed synthetic activations to every expert of each layer by itself: first with the checkpoint's weights, then once
    /// with random ones, which tells a broken checkpoint from a broken program
    #[arg(long)]
    moe_only: bool,
    /// What to judge: the CPU's fast path, or the one on an NVIDIA GPU
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Which of the GPU's matrix products to judge; with --moe-only --device cuda [default: auto]
    #[arg(long, value_enum)]
    moe_kernel: Option<MoeKernelArg>,
    /// Tokens of the probe prompt [default: past the sliding window, if that takes minutes at most]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    tokens: Option<usize>,
    /// Tokens decoded after the prompt
    #[arg(long, value_name = "N", default_value_t = 4)]
    decode: usize,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

fn stage_parser() -> impl TypedValueParser<Value = Stage> {
    let names = PossibleValuesParser::new(Stage::ALL.map(Stage::name));
    names.map(|name| Stage::ALL.into_iter().find(|s| s.name() == name).expect("one of the names"))
}

pub fn run(args: Args) -> anyhow::Result<()> {
    check_flags(&args);
    // First: that there is no GPU should not be said after minutes of download.
    let device = (args.device == Device::Cuda).then(tessera_cuda::Device::open).transpose();
    let device = device.map_err(|missing| crate::executor::without_gpu(&missing))?;
    let checkpoint = opened::without_tokenizer(Some(&args.model))?.checkpoint;
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    check_room(&args, config)?;
    let mut options = CpuOptions::default();
    options.threads = args.threads.unwrap_or(options.threads);
    let filter = Filter { layer: args.layer, stage: args.stage };
    let kernel = args.moe_kernel.unwrap_or(MoeKernelArg::Auto);
    let (mut experts, model) = match args.moe_only {
        true => (device.map(|device| experts_on(device, config, kernel)).transpose()?, None),
        false => (None, device),
    };
    let sections = match (&mut experts, args.moe_only) {
        (Some(gpu), _) => moe_sections(config, &weights, filter, options, Fast::Cuda(gpu))?,
        (None, true) => moe_sections(config, &weights, filter, options, Fast::Cpu)?,
        (None, false) => vec![whole_model(config, weights, filter, options, &args, model.as_ref())?],
    };
    checkpoint.still_unchanged()?;
    let fast = match (&experts, &model) {
        (Some(gpu), _) => FastPath::CudaExperts { name: gpu.name(), kernel, launched: gpu.launched() },
        (None, Some(gpu)) => FastPath::CudaModel { name: &gpu.properties().name },
        (None, None) => FastPath::Cpu(options),
    };
    let report = Report { model: &args.model, checkpoint: &checkpoint, fast, filter, sections };
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.to_string() };
    let shown = std::io::stdout().write_all(text.as_bytes());
    // A reader that has closed the pipe must not turn a failure into success.
    report.verdict()?;
    Ok(shown?)
}

/// Ends the program where flags do not go together.
fn check_flags(args: &Args) {
    let wrong = |message: &str| crate::usage_error("verify", message);
    match (args.device, args.moe_only, args.moe_kernel, args.stage) {
        (Device::Cpu, _, Some(_), _) | (Device::Cuda, false, Some(_), _) => {
            wrong("--moe-kernel is about the GPU's experts by themselves: it needs --device cuda --moe-only")
        }
        (Device::Cuda, false, _, Some(stage)) if !whole::cuda_judges(stage) => {
            wrong(&format!("--stage {stage} is not judged with --device cuda: it is part of swiglu's kernel"))
        }
        (Device::Cuda, true, _, Some(stage)) if !cuda::judges(stage) => wrong(&format!(
            "--stage {stage} is not judged with --moe-only --device cuda: route, swiglu (gate_up is part of its kernel), \
             down and combine are"
        )),
        (Device::Cpu, true, _, Some(stage)) if !moe::CPU_STAGES.contains(&stage) => {
            wrong(&format!("--stage {stage} is not judged with --moe-only: mlp_norm to combine are"))
        }
        (_, _, _, Some(stage @ (Stage::Embed | Stage::FinalNorm | Stage::Logits))) if args.layer.is_some() => {
            wrong(&format!("--stage {stage} is of no layer: it cannot go with --layer"))
        }
        _ => (),
    }
}

fn experts_on(device: tessera_cuda::Device, config: &Config, kernel: MoeKernelArg) -> anyhow::Result<Gpu> {
    Gpu::new(device, config, moe::probe(config).limits.max_step_tokens, kernel.into())
}

/// Whether the model has the layer and the positions that are asked for.
fn check_room(args: &Args, config: &Config) -> anyhow::Result<()> {
    if let Some(layer) = args.layer.filter(|&l| l >= config.num_hidden_layers) {
        anyhow::bail!("--layer {layer}: the model has layers 0 to {}", config.num_hidden_layers - 1);
    }
    let (asked, room) = (args.tokens.unwrap_or(0), config.max_position_embeddings);
    if asked.saturating_add(args.decode) >= room {
        anyhow::bail!(
            "--tokens {asked} and --decode {} exceed the model's context of {room}; ask for fewer",
            args.decode
        );
    }
    Ok(())
}

/// The forward pass from embedding to logits, or to the layer that is asked for.
fn whole_model(
    config: &Config,
    mut weights: Weights,
    filter: Filter,
    options: CpuOptions,
    args: &Args,
    gpu: Option<&tessera_cuda::Device>,
) -> anyhow::Result<Section> {
    let mut config = config.clone();
    if let Some(layer) = filter.layer {
        config.num_hidden_layers = layer + 1;
        config.layer_types.truncate(layer + 1);
        weights.layers.truncate(layer + 1);
    }
    let decode = args.decode;
    let room = config.max_position_embeddings.saturating_sub(decode + 1);
    let prompt = args.tokens.unwrap_or_else(|| probe::prompt_tokens(&config)).min(room);
    let row_logits = if filter.layer.is_some() { 0 } else { probe::ROW_LOGITS };
    let probe = Probe::new(&config, prompt, decode, row_logits);
    let bar = bar(probe.steps.len() * config.num_hidden_layers);
    let whole = Whole { config: &config, probe: &probe, filter, options, progress: &|site| advance(&bar, site) };
    let words = format!(
        "a prompt of {prompt} tokens in chunks, {decode} decoded one by one, one beside another sequence's prompt;\n\
         the sliding window of {} {}",
        config.sliding_window,
        if prompt > config.sliding_window { "is passed" } else { "is NOT passed: --tokens sets the prompt's length" },
    );
    let section = whole.section(&weights, gpu, words)?;
    bar.finish_and_clear();
    Ok(section)
}

/// Each layer's mixture of experts by itself.
fn moe_sections(
    config: &Config,
    weights: &Weights,
    filter: Filter,
    options: CpuOptions,
    fast: Fast,
) -> anyhow::Result<Vec<Section>> {
    let probe = moe::probe(config);
    let bar = bar(0);
    let layers = Layers { config, probe: &probe, filter, options, progress: &|site| advance(&bar, site) };
    bar.set_length((probe.steps.len() * (layers.layers().len() + 1)) as u64);
    let sections = layers.sections(weights, fast)?;
    bar.finish_and_clear();
    Ok(sections)
}

/// Counts layers; hidden where stderr is no terminal.
fn bar(layers: usize) -> ProgressBar {
    progress::steps("comparing [{bar:40}] {pos}/{len} layers {msg}", layers)
}

fn advance(bar: &ProgressBar, site: Site) {
    if site.stage == Stage::Combine {
        bar.inc(1);
    }
}
