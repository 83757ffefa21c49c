//! Prefill and decode on the CPU, beside the rate at which the same threads read plain memory.

use std::fmt::Write;

use anyhow::ensure;
use serde::Serialize;
use tessera_cpu::{CpuExecutor, CpuOptions, Isa, memory_read_rate};

use super::cost::Cost;
use super::sequences::{Plan, Rates, Sequences};
use super::{IsaArg, STEP_TOKENS, test_name};
use crate::executor::{Precision, cache_bytes};
use crate::memory;
use crate::opened::Opened;

#[derive(Serialize)]
pub struct Report {
    model: String,
    device: &'static str,
    /// Why not on the GPU, if nobody asked for the CPU.
    why_cpu: Option<String>,
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
    /// As [`test_name`]; `x8` of 8 sequences together.
    name: String,
    /// Of each sequence.
    tokens: usize,
    batch: usize,
    /// Of all sequences together.
    tokens_per_s: f64,
    deviation: f64,
    /// Weight bytes that a step of decoding reads, times steps per second; only for decoding. Of experts, as many as
    /// uniform routing makes of a batch.
    weights_gb_s: Option<f64>,
}

pub fn options(threads: Option<usize>, isa: Option<IsaArg>) -> anyhow::Result<CpuOptions> {
    let mut options = CpuOptions::default();
    if let Some(threads) = threads {
        options.threads = threads;
    }
    if let Some(isa) = isa {
        options.isa = match isa {
            IsaArg::Scalar => Isa::Scalar,
            IsaArg::Avx2 => Isa::Avx2,
            IsaArg::Avx512 => Isa::Avx512,
        };
        ensure!(options.isa.is_available(), "this machine has no {}", options.isa.name());
    }
    Ok(options)
}

pub fn measure(opened: &Opened, plan: &Plan, options: CpuOptions, why: Option<&str>) -> anyhow::Result<Report> {
    let checkpoint = &opened.checkpoint;
    let config = checkpoint.config();
    let limits = plan.limits(config, STEP_TOKENS.cpu);
    check_memory(cache_bytes(config, Precision::Bf16, limits))?;
    let mut executor = CpuExecutor::new(config, checkpoint.weights(), limits, options);
    let mut sequences = Sequences::new(&mut executor, config, plan);
    let mut tests = Vec::new();
    for &n in &plan.prompts {
        tests.push(Test::prefill(plan, n, &sequences.prefill(n)?));
    }
    for &n in &plan.decodes {
        for &rows in &plan.batches {
            let mut cost = Cost::default();
            plan.decode_steps(rows, n).for_each(|step| cost += step.cost(config));
            tests.push(Test::decode(plan, rows, n, &sequences.decode(rows, n)?, &cost));
        }
    }
    Ok(Report {
        model: opened.name.clone(),
        device: "cpu",
        why_cpu: why.map(str::to_owned),
        weight_bytes: checkpoint.tensors().iter().map(|t| t.bytes).sum(),
        isa: options.isa.name(),
        threads: options.threads,
        // In this order: the buffer that the reading rate takes is none of the model's.
        peak_memory_bytes: memory::peak(),
        memory_read_gb_s: memory_read_rate(&options) / 1e9,
        tests,
    })
}

/// A cache that the machine cannot hold would end the program when it is made, or when it fills.
fn check_memory(cache_bytes: u64) -> anyhow::Result<()> {
    let Some(memory) = memory::total() else { return Ok(()) };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    ensure!(
        cache_bytes <= memory,
        "the tests need a cache of {:.1} GB, more than the machine's memory of {:.1} GB; lower --batch or --depth",
        gb(cache_bytes),
        gb(memory)
    );
    Ok(())
}

impl Test {
    fn prefill(plan: &Plan, n: usize, rates: &Rates) -> Self {
        Self {
            name: test_name("pp", n, plan.prompt_depth),
            tokens: n,
            batch: 1,
            tokens_per_s: rates.mean(),
            deviation: rates.deviation(),
            weights_gb_s: None,
        }
    }

    /// `cost` is that of all `n` steps.
    fn decode(plan: &Plan, batch: usize, n: usize, rates: &Rates, cost: &Cost) -> Self {
        let together = if batch > 1 { format!(" x{batch}") } else { String::new() };
        let times_per_s = rates.mean() / (batch * n) as f64;
        Self {
            name: test_name("tg", n, plan.decode_depth) + &together,
            tokens: n,
            batch,
            tokens_per_s: rates.mean(),
            deviation: rates.deviation(),
            weights_gb_s: Some(cost.weight_bytes() * times_per_s / 1e9),
        }
    }
}

impl Report {
    pub fn print(&self, json: bool) -> anyhow::Result<String> {
        if json { Ok(serde_json::to_string_pretty(self)? + "\n") } else { Ok(self.table()?) }
    }

    fn table(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        if let Some(why) = &self.why_cpu {
            writeln!(out, "on the CPU: {why}")?;
        }
        writeln!(
            out,
            "{}: {:.2} GB of weights, {} threads, {}; plain reading takes {:.1} GB/s",
            self.model,
            self.weight_bytes as f64 / 1e9,
            self.threads,
            self.isa,
            self.memory_read_gb_s
        )?;
        writeln!(out, "| test            |                t/s | weights GB/s | of plain reading |")?;
        writeln!(out, "|-----------------|-------------------:|-------------:|-----------------:|")?;
        for t in &self.tests {
            let rate = format!("{:.2} ± {:.2}", t.tokens_per_s, t.deviation);
            let weights = t.weights_gb_s.map_or(String::new(), |w| format!("{w:.1}"));
            let share = t.weights_gb_s.map_or(String::new(), |w| format!("{:.0} %", 100.0 * w / self.memory_read_gb_s));
            writeln!(out, "| {:15} | {rate:>18} | {weights:>12} | {share:>16} |", t.name)?;
        }
        if let Some(peak) = self.peak_memory_bytes {
            writeln!(out, "peak memory {:.2} GB, the mapped weights included", peak as f64 / 1e9)?;
        }
        Ok(out)
    }
}
