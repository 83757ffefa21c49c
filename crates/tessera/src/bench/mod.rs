//! `tessera bench`: prefill and decode speed beside what the machine's memory allows.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use tessera_cuda::MAX_STEP_ROWS;
use tessera_model::Config;
use tessera_model::synth::Like;

use crate::args::{ModelName, published_model, whole_number};
use crate::executor::{Backend, DeviceArgs, Notes, Precision, StepTokens, Wish};
use crate::opened::Model;

use sequences::Plan;
use stages::Stages;

mod cost;
mod cpu;
mod gpu;
mod moe;
mod roofline;
mod sequences;
mod stages;

/// Tokens that one step takes, as in `generate`.
const STEP_TOKENS: StepTokens = crate::session::PROMPT_CHUNK;
/// Sequences that decode together where `--batch` does not say.
const CPU_BATCHES: [usize; 1] = [1];
const GPU_BATCHES: [usize; 4] = [1, 8, 64, 256];
/// Tokens before those that are decoded on the GPU where `--depth` does not say: without any, a batch would be flattered.
const GPU_DECODE_DEPTH: usize = 1024;

/// Measure prefill and decode speed
///
/// On the CPU: tokens per second, the weight bytes that a second reads, and the rate at which the same number of threads can
/// read plain memory, measured in the same run: decoding one sequence cannot be faster than that.
///
/// On the GPU: tokens per second of prompts, and of decoding with several numbers of sequences together; the bytes that a
/// second of it must read, and how near each test is to its roofline. That is the rate at which memory is copied or that of
/// cuBLAS, where the library is found, whichever takes longer; both are measured in the same run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera bench openai/gpt-oss-20b
  tessera bench -p 128 -n 64                                  the demo model
  tessera bench /data/gpt-oss-20b -p 128,512 -n 64 -r 5 --json
  tessera bench /data/gpt-oss-20b -p 0 -n 32 --depth 8192     decode after 8,192 tokens
  tessera bench --load-dummy 120b --batch 1,16 --stages       random weights, on the GPU
  tessera bench moe --plot roofline.svg                       the experts alone, on the GPU")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    model: ModelName,
    /// Instead of a model: its shapes with random weights, made on the GPU
    #[arg(long, value_name = "SHAPES", value_parser = published_model(), conflicts_with_all = ["first", "model"])]
    load_dummy: Option<Like>,
    /// Prompt lengths to measure; 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to decode; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "32")]
    n_gen: Vec<usize>,
    /// Numbers of sequences that decode together [default: 1; on the GPU 1,8,64,256, as far as there is room]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = batch)]
    batch: Vec<usize>,
    /// Tokens that stand before what is measured, of each sequence [default: 0; before decoding on the GPU 1024]
    #[arg(short, long, value_name = "TOKENS", visible_alias = "context")]
    depth: Option<usize>,
    /// Times each test is repeated, after one that does not count
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Instruction set of the CPU; the best that the machine has by default
    #[arg(long, value_enum)]
    isa: Option<IsaArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Time each stage of a step of decoding by itself as well; on the GPU
    #[arg(long, help_heading = "Device")]
    stages: bool,
    /// Draw where the tests stand below the roofline; on the GPU
    #[arg(long, value_name = "FILE.svg", help_heading = "Device")]
    plot: Option<PathBuf>,
}

/// A part of the model by itself.
#[derive(clap::Subcommand)]
enum Part {
    Moe(moe::Args),
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum IsaArg {
    Scalar,
    Avx2,
    Avx512,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.part {
        Some(Part::Moe(args)) => moe::run(args),
        None => run_model(args),
    }
}

fn run_model(mut args: Args) -> anyhow::Result<()> {
    args.settle_device();
    let backend = args.device.backend("bench", Precision::Bf16, args.threads, Notes::Hidden)?;
    let options = cpu::options(args.threads, args.isa)?;
    let model = Model::open(args.model.get(), args.load_dummy)?;
    let config = model.config();
    let plan = args.gpu_plan(&backend, config);
    plan.check(config)?;
    if plan.prompts.is_empty() && plan.decodes.is_empty() {
        bail!("-p and -n leave nothing to measure");
    }
    let place = backend.place(config, STEP_TOKENS, |step_tokens| plan.limits(config, step_tokens))?;
    let text = match (place.gpu(), &model) {
        (Some(device), model) => {
            let stages = if args.stages { Stages::Timed } else { Stages::Untimed };
            let report = gpu::measure(&place, device, model, &plan, stages)?;
            if let Some(path) = &args.plot {
                report.plot(path)?;
            }
            report.print(args.json)?
        }
        (None, Model::Opened(opened)) => {
            let why = place.why_cpu().filter(|_| args.device.device == Wish::Auto);
            if let Some(flag) = args.gpu_flag() {
                bail!("{flag} is about the GPU: {}", why.unwrap_or_default());
            }
            let plan = args.plan(config, &CPU_BATCHES, 0);
            cpu::measure(opened, &plan, options, why)?.print(args.json)?
        }
        (None, Model::Dummy(_)) => unreachable!("random weights go to the GPU or nowhere"),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl Args {
    /// Flags that are about one device settle which it is.
    fn settle_device(&mut self) {
        if self.load_dummy.is_some() {
            self.device.for_dummy("bench");
        }
        if self.isa.is_some() {
            if self.device.device == Wish::Cuda {
                crate::usage_error("bench", "--isa is about the CPU: it cannot go with the GPU");
            }
            self.device.device = Wish::Cpu;
        }
        if let (Some(flag), Wish::Cpu) = (self.gpu_flag(), self.device.device) {
            crate::usage_error("bench", &format!("{flag} is about the GPU: it cannot go with the CPU"));
        }
    }

    fn gpu_flag(&self) -> Option<&'static str> {
        let plot = self.plot.is_some().then_some("--plot");
        plot.or_else(|| self.stages.then_some("--stages"))
    }

    /// Of the batches that nobody asked for, those for which there is room.
    fn gpu_plan(&self, backend: &Backend, config: &Config) -> Plan {
        let plan = |n: usize| self.plan(config, &GPU_BATCHES[..n], GPU_DECODE_DEPTH);
        let all = plan(GPU_BATCHES.len());
        if !self.batch.is_empty() || all.check(config).is_err() {
            return all;
        }
        let has_room = |plan: &Plan| backend.has_room(config, STEP_TOKENS, |step| plan.limits(config, step));
        // Without room for the fewest, those are what the error is about.
        let Some(n) = (1..=GPU_BATCHES.len()).rev().find(|&n| has_room(&plan(n))) else { return plan(1) };
        for batch in &GPU_BATCHES[n..] {
            eprintln!("note: no GPU memory for {batch} sequences: left out");
        }
        plan(n)
    }

    fn plan(&self, config: &Config, batches: &[usize], decode_depth: usize) -> Plan {
        let some = |lengths: &[usize]| lengths.iter().copied().filter(|&n| n > 0).collect::<Vec<_>>();
        let decodes = some(&self.n_gen);
        let longest = decodes.iter().copied().max().unwrap_or(0);
        let decode_depth = decode_depth.min(config.max_position_embeddings.saturating_sub(longest));
        Plan {
            prompts: some(&self.n_prompt),
            prompt_depth: self.depth.unwrap_or(0),
            decodes,
            batches: if self.batch.is_empty() { batches } else { &self.batch }.to_vec(),
            decode_depth: self.depth.unwrap_or(decode_depth),
            repetitions: self.repetitions as usize,
        }
    }
}

fn batch(text: &str) -> Result<usize, String> {
    whole_number(text, 1..=MAX_STEP_ROWS)
}

/// `pp512` reads a prompt of 512 tokens, `tg32` decodes 32, `@d1000` after 1,000 others.
fn test_name(kind: &str, n: usize, depth: usize) -> String {
    let depth = if depth > 0 { format!(" @d{depth}") } else { String::new() };
    format!("{kind}{n}{depth}")
}
