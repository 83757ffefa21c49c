//! `tessera bench`: prefill and decode speed beside what the machine's memory allows.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;
use tessera_cpu::{CpuExecutor, CpuOptions, Isa, memory_read_rate};
use tessera_model::batch::sliding_blocks;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{Batch, BlockTables, Config, Executor, Limits, Row, Sampling, Token, Weights};

use crate::args::ModelName;
use crate::memory;
use crate::opened::{self, Opened};

mod moe;

/// Tokens that one step takes, as in `generate`.
const STEP_TOKENS: usize = 512;

/// Measure prefill and decode speed
///
/// Prints tokens per second, the weight bytes that a second reads, and the rate at which the same number of threads can
/// read plain memory, measured in the same run: decoding one sequence cannot be faster than that.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera bench openai/gpt-oss-20b
  tessera bench -p 128 -n 64                                  the demo model
  tessera bench /data/gpt-oss-20b -p 128,512 -n 64 -r 5 --json
  tessera bench /data/gpt-oss-20b -p 0 -n 32 --depth 8192     decode after 8,192 tokens
  tessera bench moe --plot roofline.svg                       the experts alone, on the GPU")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    model: ModelName,
    /// Prompt lengths to measure; 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Numbers of tokens to decode; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "32")]
    n_gen: Vec<usize>,
    /// Tokens that stand before what is measured
    #[arg(short, long, default_value_t = 0)]
    depth: usize,
    /// Times each test is repeated, after one that does not count
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Instruction set; the best that the machine has by default
    #[arg(long, value_enum)]
    isa: Option<IsaArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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

#[derive(Serialize)]
struct Report {
    model: String,
    weight_bytes: u64,
    isa: &'static str,
    threads: usize,
    /// Plain reading by the same number of threads, in this run.
    memory_read_gb_s: f64,
    peak_memory_bytes: Option<u64>,
    tests: Vec<Test>,
}

#[derive(Serialize)]
struct Test {
    /// `pp512` reads a prompt of 512 tokens, `tg32` decodes 32, `@d1000` after 1,000 others.
    name: String,
    tokens: usize,
    tokens_per_s: f64,
    deviation: f64,
    /// Weight bytes that each decoded token reads, times tokens per second; only for decoding.
    weights_gb_s: Option<f64>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.part {
        Some(Part::Moe(args)) => moe::run(args),
        None => run_model(args),
    }
}

fn run_model(args: Args) -> anyhow::Result<()> {
    let options = options(&args)?;
    let Opened { name, checkpoint, .. } = opened::without_tokenizer(args.model.get())?;
    let mut report = Report {
        model: name,
        weight_bytes: checkpoint.tensors().iter().map(|t| t.bytes).sum(),
        isa: options.isa.name(),
        threads: options.threads,
        memory_read_gb_s: 0.0,
        peak_memory_bytes: None,
        tests: Vec::new(),
    };
    let mut bench = Bench::new(&checkpoint, &args, options)?;
    for &n in args.n_prompt.iter().filter(|&&n| n > 0) {
        report.tests.push(bench.prefill(n)?);
    }
    for &n in args.n_gen.iter().filter(|&&n| n > 0) {
        report.tests.push(bench.decode(n)?);
    }
    // In this order: the buffer that the reading rate takes is none of the model's.
    report.peak_memory_bytes = memory::peak();
    report.memory_read_gb_s = memory_read_rate(&options) / 1e9;
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print_table(&report)?;
    }
    Ok(())
}

fn options(args: &Args) -> anyhow::Result<CpuOptions> {
    let mut options = CpuOptions::default();
    if let Some(threads) = args.threads {
        options.threads = threads;
    }
    if let Some(isa) = args.isa {
        options.isa = match isa {
            IsaArg::Scalar => Isa::Scalar,
            IsaArg::Avx2 => Isa::Avx2,
            IsaArg::Avx512 => Isa::Avx512,
        };
        anyhow::ensure!(options.isa.is_available(), "this machine has no {}", options.isa.name());
    }
    Ok(options)
}

struct Bench<'a> {
    executor: CpuExecutor<'a>,
    vocab_size: usize,
    ring: usize,
    depth: usize,
    repetitions: u32,
    decode_bytes: u64,
}

impl<'a> Bench<'a> {
    fn new(checkpoint: &'a Checkpoint, args: &Args, options: CpuOptions) -> anyhow::Result<Self> {
        let config = checkpoint.config();
        let longest = args.n_prompt.iter().chain(&args.n_gen).max().copied().unwrap_or(0);
        let context = args.depth.checked_add(longest + 1).context("--depth is too large")?;
        anyhow::ensure!(
            context <= config.max_position_embeddings,
            "the longest test ends at position {context}, beyond the model's context of {}",
            config.max_position_embeddings
        );
        let limits = Limits::for_sequences(config, 1, context, STEP_TOKENS);
        let weights = checkpoint.weights();
        Ok(Self {
            decode_bytes: bytes_per_token(config, &weights),
            executor: CpuExecutor::new(config, weights, limits, options),
            vocab_size: config.vocab_size,
            ring: sliding_blocks(config.sliding_window, STEP_TOKENS).min(limits.sliding_blocks),
            depth: args.depth,
            repetitions: args.repetitions,
        })
    }

    fn prefill(&mut self, n: usize) -> anyhow::Result<Test> {
        self.measure("pp", n, None, |bench| bench.read(bench.depth, n))
    }

    fn decode(&mut self, n: usize) -> anyhow::Result<Test> {
        self.read(0, self.depth + 1)?;
        let bytes = self.decode_bytes;
        self.measure("tg", n, Some(bytes), |bench| {
            let mut token = 0;
            for position in bench.depth + 1..bench.depth + 1 + n {
                token = bench.step(position, vec![token])?;
            }
            Ok(())
        })
    }

    fn measure(
        &mut self,
        kind: &str,
        n: usize,
        bytes: Option<u64>,
        mut work: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Test> {
        self.read(0, self.depth)?;
        let mut rates = Vec::new();
        for _ in 0..=self.repetitions {
            let start = Instant::now();
            work(self)?;
            rates.push(n as f64 / start.elapsed().as_secs_f64());
        }
        let rates = &rates[1..]; // the first one warms up
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (rates.len().max(2) - 1) as f64;
        let depth = if self.depth > 0 { format!(" @d{}", self.depth) } else { String::new() };
        Ok(Test {
            name: format!("{kind}{n}{depth}"),
            tokens: n,
            tokens_per_s: mean,
            deviation: variance.sqrt(),
            weights_gb_s: bytes.map(|b| b as f64 * mean / 1e9),
        })
    }

    /// Reads `n` seeded random tokens from position `start` on.
    fn read(&mut self, start: usize, n: usize) -> anyhow::Result<()> {
        let tokens: Vec<Token> = (start..start + n).map(|p| (p * 7919 + 13) as u32 % self.vocab_size as u32).collect();
        for (i, tokens) in tokens.chunks(STEP_TOKENS).enumerate() {
            self.step(start + i * STEP_TOKENS, tokens.to_vec())?;
        }
        Ok(())
    }

    fn step(&mut self, start: usize, tokens: Vec<Token>) -> anyhow::Result<Token> {
        let row = Row {
            n_tokens: tokens.len(),
            start,
            block_tables: BlockTables::sole(start + tokens.len(), self.ring),
            n_logits: 1,
            sampling: Some(Sampling::GREEDY),
        };
        Ok(self.executor.step(&Batch { tokens, rows: vec![row] })?[0])
    }
}

/// Weight bytes that decoding one token reads: everything dense but the embedding, and the chosen experts.
fn bytes_per_token(config: &Config, weights: &Weights) -> u64 {
    let layers = weights.layers.iter().map(|l| {
        let dense: usize = [l.q, l.k, l.v, l.o, l.router].iter().map(|l| 2 * l.weight.data.len()).sum();
        let experts: usize = [l.gate_up, l.down].iter().map(|e| (e.blocks.len() + e.scales.len()) / e.experts).sum();
        dense + experts * config.num_experts_per_tok
    });
    (layers.sum::<usize>() + 2 * weights.lm_head.data.len()) as u64
}

fn print_table(report: &Report) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "{}: {:.2} GB of weights, {} threads, {}; plain reading takes {:.1} GB/s",
        report.model,
        report.weight_bytes as f64 / 1e9,
        report.threads,
        report.isa,
        report.memory_read_gb_s
    )?;
    writeln!(out, "| test            |            t/s | weights GB/s | of plain reading |")?;
    writeln!(out, "|-----------------|---------------:|-------------:|-----------------:|")?;
    for t in &report.tests {
        let rate = format!("{:.2} ± {:.2}", t.tokens_per_s, t.deviation);
        let weights = t.weights_gb_s.map_or(String::new(), |w| format!("{w:.1}"));
        let share = t.weights_gb_s.map_or(String::new(), |w| format!("{:.0} %", 100.0 * w / report.memory_read_gb_s));
        writeln!(out, "| {:15} | {rate:>14} | {weights:>12} | {share:>16} |", t.name)?;
    }
    if let Some(peak) = report.peak_memory_bytes {
        writeln!(out, "peak memory {:.2} GB, the mapped weights included", peak as f64 / 1e9)?;
    }
    Ok(())
}
