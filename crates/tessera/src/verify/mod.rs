//! `tessera verify`: the checkpoint's structure, then the fast path's numbers against the oracle's, stage by stage.

use std::io::Write;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_model::{Config, Limits, Site, Stage, Weights};

use crate::args::at_least_one;
use crate::opened;

use lockstep::{Filter, Lockstep, Record};
use moe::SyntheticMoe;
use probe::Probe;
use report::{Report, Section};

#[cfg(test)]
mod faults;
mod lockstep;
mod measure;
mod moe;
mod probe;
mod report;

/// Seed of the weights of `--moe-only`'s synthetic layer.
const SYNTHETIC_SEED: u64 = 17;

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
    let checkpoint = opened::without_tokenizer(Some(&args.model))?.checkpoint;
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
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
    let mut options = CpuOptions::default();
    options.threads = args.threads.unwrap_or(options.threads);
    let filter = Filter { layer: args.layer, stage: args.stage };
    let sections = match args.moe_only {
        true => moe_sections(config, &weights, filter, options)?,
        false => vec![whole_model(config, weights, filter, options, &args)?],
    };
    checkpoint.still_unchanged()?;
    let report = Report { model: &args.model, checkpoint: &checkpoint, options, filter, sections };
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.to_string() };
    let shown = std::io::stdout().write_all(text.as_bytes());
    // A reader that has closed the pipe must not turn a failure into success.
    report.verdict()?;
    Ok(shown?)
}

/// Both executors over one probe, built alike.
pub struct Pair<'a> {
    oracle: OracleExecutor<'a>,
    fast: CpuExecutor<'a>,
}

impl<'a> Pair<'a> {
    fn new(config: &Config, weights: &Weights<'a>, limits: Limits, options: CpuOptions) -> Self {
        Self {
            oracle: OracleExecutor::new(config, weights.clone(), limits, options.threads),
            fast: CpuExecutor::new(config, weights.clone(), limits, options),
        }
    }

    fn run(&mut self, lockstep: &Lockstep, record: &mut Record) -> anyhow::Result<()> {
        lockstep.run(&mut self.oracle, &mut self.fast, record)
    }
}

/// The forward pass from embedding to logits, or to the layer that is asked for.
fn whole_model(
    config: &Config,
    mut weights: Weights,
    filter: Filter,
    options: CpuOptions,
    args: &Args,
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
    let Probe { steps, limits } = Probe::new(&config, prompt, decode, row_logits);
    let bar = bar(steps.len() * config.num_hidden_layers);
    let lockstep = Lockstep {
        steps: &steps,
        steer: &|_, site, _, values| probe::round_operands(site, values),
        judges: &|site| filter.judges(site),
        first_layer: 0,
        progress: &|site| advance(&bar, site),
    };
    let mut record = Record::default();
    Pair::new(&config, &weights, limits, options).run(&lockstep, &mut record)?;
    bar.finish_and_clear();
    let probe = format!(
        "a prompt of {prompt} tokens in chunks, {decode} decoded one by one, one beside another sequence's prompt;\n\
         the sliding window of {} {}",
        config.sliding_window,
        if prompt > config.sliding_window { "is passed" } else { "is NOT passed: --tokens sets the prompt's length" },
    );
    Ok(Section { name: "model", probe, layers: config.num_hidden_layers, record })
}

/// Each layer's mixture of experts with the checkpoint's weights, then one with random weights.
fn moe_sections(
    config: &Config,
    weights: &Weights,
    filter: Filter,
    options: CpuOptions,
) -> anyhow::Result<Vec<Section>> {
    let Probe { steps, limits } = moe::probe(config);
    let layers: Vec<usize> =
        (0..config.num_hidden_layers).filter(|&l| filter.layer.is_none_or(|only| only == l)).collect();
    let bar = bar(steps.len() * (layers.len() + 1));
    let judge = |weights: &Weights, layer: usize, filter: Filter, record: &mut Record| {
        let (config, weights) = moe::single_layer(config, weights, weights.layers[layer]);
        let lockstep = Lockstep {
            steps: &steps,
            steer: &|step, site, width, values| moe::steer(&config, step, site, width, values),
            judges: &|site| moe::judges(site) && filter.judges(site),
            first_layer: layer,
            progress: &|site| advance(&bar, site),
        };
        Pair::new(&config, &weights, limits, options).run(&lockstep, record)
    };

    let mut real = Record::default();
    for &layer in &layers {
        judge(weights, layer, filter, &mut real)?;
    }
    let mut random = Record::default();
    let synthetic = SyntheticMoe::new(config, SYNTHETIC_SEED);
    let layer = synthetic.layer(weights.layers[0]);
    judge(&Weights { layers: vec![layer], ..weights.clone() }, 0, Filter { layer: None, ..filter }, &mut random)?;
    bar.finish_and_clear();
    let probe = format!(
        "synthetic activations of {} tokens sent to all experts in turn, then {} single ones",
        steps[0].batch.tokens.len(),
        steps.len() - 1
    );
    Ok(vec![
        Section { name: "checkpoint's weights", probe: probe.clone(), layers: layers.len(), record: real },
        Section { name: "random weights", probe, layers: 1, record: random },
    ])
}

/// Counts layers; hidden where stderr is no terminal.
fn bar(layers: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("comparing [{bar:40}] {pos}/{len} layers {msg}").expect("a fixed template");
    ProgressBar::new(layers as u64).with_style(style.progress_chars("=> "))
}

fn advance(bar: &ProgressBar, site: Site) {
    if site.stage == Stage::Combine {
        bar.inc(1);
    }
}
