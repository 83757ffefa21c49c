//! Prefill and decode on the GPU, beside its roofline.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use tessera_cuda::{Device, ModelWeights};
use tessera_model::{Config, Limits};

use super::cost::{Ceilings, Cost, Step};
use super::roofline::{self, Point, Roofline};
use super::sequences::{Plan, Rates, Sequences};
use super::stages::{self, Stages, StepStages};
use super::test_name;
use crate::executor::Place;
use crate::opened::Model;
use crate::progress;

#[derive(Serialize)]
pub struct Report {
    model: String,
    device: String,
    /// As they lie in a checkpoint.
    weight_bytes: u64,
    /// Of the GPU, weights included.
    memory_bytes: u64,
    kv_blocks: KvBlocks,
    max_step_tokens: usize,
    ceilings: Ceilings,
    tests: Vec<Test>,
    /// Of one step of decoding for each batch, if they are asked for.
    stages: Vec<StepStages>,
}

#[derive(Serialize)]
struct KvBlocks {
    full: usize,
    sliding: usize,
}

#[derive(Debug, Serialize)]
struct Test {
    /// As [`test_name`].
    name: String,
    /// Of each sequence.
    tokens: usize,
    /// Sequences.
    batch: usize,
    /// Of all sequences together.
    tokens_per_s: f64,
    deviation: f64,
    /// Of a whole prompt, or of one step of decoding, as all the others below.
    ms: f64,
    /// What must be read at least, and computed.
    bytes: f64,
    gb_s: f64,
    operations: f64,
    tflop_s: f64,
    /// The larger of the times that reading and computing take at the ceilings.
    floor_ms: f64,
    of_floor: f64,
}

/// Measures the ceilings first: nothing else is on the GPU then.
pub fn measure(place: &Place, device: &Device, model: &Model, plan: &Plan, stages: Stages) -> anyhow::Result<Report> {
    let ceilings = Ceilings::measure(device)?;
    let config = model.config();
    let free_bytes = device.memory()?.free_bytes;
    let mut executor = place.open_gpu(device, model.weights())?;
    let memory_bytes = free_bytes.saturating_sub(device.memory()?.free_bytes) as u64;
    let measuring = progress::steps(
        "measuring [{bar:40}] {pos}/{len}",
        plan.prompts.len() + plan.decodes.len() * plan.batches.len(),
    );
    let step_tokens = place.limits.max_step_tokens;
    let (mut tests, mut timed) = (Vec::new(), Vec::new());
    let of = |name: String, rates: &Rates, steps: Vec<Step>, per: Per| {
        let test = Test::new(name, rates, &steps, per, config, ceilings);
        measuring.inc(1);
        test
    };
    for &n in &plan.prompts {
        let steps = plan.prompt_steps(n, step_tokens).collect();
        let rates = Sequences::new(&mut executor, config, plan).prefill(n)?;
        tests.push(of(test_name("pp", n, plan.prompt_depth), &rates, steps, Per::Prompt));
    }
    for (i, &n) in plan.decodes.iter().enumerate() {
        for &rows in &plan.batches {
            let steps = plan.decode_steps(rows, n).collect();
            let rates = Sequences::new(&mut executor, config, plan).decode(rows, n)?;
            tests.push(of(test_name("tg", n, plan.decode_depth), &rates, steps, Per::Step));
            if stages == Stages::Timed && i == 0 {
                let batch = plan.decode_batch(config, rows, n, step_tokens);
                timed.push(StepStages::measure(&mut executor, &batch, plan.repetitions)?);
            }
        }
    }
    measuring.finish_and_clear();
    let Limits { full_blocks: full, sliding_blocks: sliding, max_step_tokens } = place.limits;
    Ok(Report {
        model: model.name().to_owned(),
        device: device.properties().name.clone(),
        weight_bytes: ModelWeights::checkpoint_bytes(config),
        memory_bytes,
        kv_blocks: KvBlocks { full, sliding },
        max_step_tokens,
        ceilings,
        tests,
        stages: timed,
    })
}

/// What a test's times and bytes are given for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Per {
    Prompt,
    Step,
}

impl Test {
    /// Of steps of rows that are alike, which together had the tokens that the rates count.
    fn new(name: String, rates: &Rates, steps: &[Step], per: Per, config: &Config, ceilings: Ceilings) -> Self {
        let (mut cost, mut floor_s) = (Cost::default(), 0.0);
        for step in steps {
            let of_step = step.cost(config);
            floor_s += ceilings.floor_s(&of_step);
            cost += of_step;
        }
        let batch = steps[0].rows;
        let tokens: usize = steps.iter().map(|step| step.tokens).sum();
        let seconds = (batch * tokens) as f64 / rates.mean();
        let n = if per == Per::Step { steps.len() as f64 } else { 1.0 };
        Self {
            name,
            tokens,
            batch,
            tokens_per_s: rates.mean(),
            deviation: rates.deviation(),
            ms: seconds * 1e3 / n,
            bytes: cost.bytes() / n,
            gb_s: cost.bytes() / seconds / 1e9,
            operations: cost.operations / n,
            tflop_s: cost.operations / seconds / 1e12,
            floor_ms: floor_s * 1e3 / n,
            of_floor: floor_s / seconds,
        }
    }
}

impl Report {
    pub fn print(&self, json: bool) -> anyhow::Result<String> {
        Ok(if json { serde_json::to_string_pretty(self)? + "\n" } else { self.to_string() })
    }

    pub fn plot(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.draw()?).with_context(|| path.display().to_string())
    }

    fn draw(&self) -> anyhow::Result<String> {
        let point = |t: &Test| Point {
            intensity: t.operations / t.bytes,
            tflop_s: t.tflop_s,
            label: if t.batch > 1 { format!("{} x{}", t.name, t.batch) } else { t.name.clone() },
        };
        roofline::draw(&Roofline {
            title: format!("{}: {}", self.device, self.model),
            per: "operations per byte that must be read",
            ceilings: self.ceilings,
            points: self.tests.iter().map(point).collect(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        writeln!(
            f,
            "{}: {:.2} GB of weights; {}, {:.1} GB of its memory taken",
            self.model,
            gb(self.weight_bytes),
            self.device,
            gb(self.memory_bytes)
        )?;
        writeln!(
            f,
            "{} KV blocks for full layers and {} for sliding ones, steps of at most {} tokens",
            self.kv_blocks.full, self.kv_blocks.sliding, self.max_step_tokens
        )?;
        writeln!(f, "{}", self.ceilings)?;
        writeln!(
            f,
            "\n| test            | batch |              t/s |       ms |  GB/s | TFLOP/s | floor ms | of floor |"
        )?;
        writeln!(
            f,
            "|-----------------|------:|-----------------:|---------:|------:|--------:|---------:|---------:|"
        )?;
        for t in &self.tests {
            let rate = format!("{:.1} ± {:.1}", t.tokens_per_s, t.deviation);
            let of_floor = format!("{:.0} %", 100.0 * t.of_floor);
            writeln!(
                f,
                "| {:15} | {:5} | {rate:>16} | {:8.3} | {:5.0} | {:7.1} | {:8.3} | {of_floor:>8} |",
                t.name, t.batch, t.ms, t.gb_s, t.tflop_s, t.floor_ms
            )?;
        }
        writeln!(
            f,
            "\nms: of a whole prompt, or of a step of decoding; floor: reading at the rate of copies, or computing at cuBLAS's"
        )?;
        stages::write(f, &self.stages)
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::synth::Like;

    use super::*;

    const CEILINGS: Ceilings = Ceilings { copy_gb_s: 4000.0, cublas_tflop_s: Some(800.0) };

    /// Of the 20b, by the rates that are given.
    fn report() -> Report {
        let config = Like::Gpt20b.config();
        let decode = |rows, rate| {
            let steps: Vec<Step> = (1024..1026).map(|position| Step::decode(rows, position)).collect();
            Test::new("tg2 @d1024".into(), &Rates(vec![rate, rate]), &steps, Per::Step, &config, CEILINGS)
        };
        let steps = [
            Step { rows: 1, start: 0, tokens: 8192, logits: 0 },
            Step { rows: 1, start: 8192, tokens: 808, logits: 1 },
        ];
        let prefill = Test::new("pp9000".into(), &Rates(vec![90_000.0]), &steps, Per::Prompt, &config, CEILINGS);
        Report {
            model: "random 20b".into(),
            device: "a GPU".into(),
            weight_bytes: 13_760_000_000,
            memory_bytes: 20_000_000_000,
            kv_blocks: KvBlocks { full: 66, sliding: 41 },
            max_step_tokens: 8192,
            ceilings: CEILINGS,
            tests: vec![prefill, decode(1, 500.0), decode(64, 12_800.0)],
            stages: vec![stages::tests::some(1, 1.0), stages::tests::some(64, 2.0)],
        }
    }

    #[track_caller]
    fn check(what: &str, found: f64, expect: f64) {
        assert!((found - expect).abs() <= 1e-6 * expect, "{what}: {found}, expected {expect}");
    }

    #[test]
    fn a_step_of_decoding_follows_from_its_rate() {
        // Cache: 12 layers see 1,025 and 1,026 positions, 12 see 128; 2,048 bytes each.
        let cache = 12.0 * (1025.5 + 128.0) * 2048.0;
        let one = &report().tests[1];
        let bytes = 3_705_753_600.0 + 5_760.0 + cache;
        check("ms", one.ms, 2.0);
        check("bytes", one.bytes, bytes);
        check("GB/s", one.gb_s, bytes / 2e6);
        check("floor", one.floor_ms, bytes / 4e9);
        check("of floor", one.of_floor, bytes / 4e9 / 2.0);
        let many = &report().tests[2];
        let bytes = 2_436_710_400.0 + 24.0 * 31.993_782 * 13_219_200.0 + 64.0 * (5_760.0 + cache);
        check("ms", many.ms, 5.0);
        check("bytes", many.bytes, bytes);
        check("of floor", many.of_floor, bytes / 4e9 / 5.0);
        check("TFLOP/s", many.tflop_s, many.operations / 5e9);
    }

    #[test]
    fn a_prompt_is_given_as_a_whole() {
        let prompt = &report().tests[0];
        check("ms", prompt.ms, 100.0);
        let products = 2.0 * (9000.0 * 24.0 * (26_634_240.0 + 4.0 * 24_883_200.0) + 201_088.0 * 2_880.0);
        let pairs = 9000.0 * 9001.0 / 2.0 + 128.0 * 129.0 / 2.0 + 8872.0 * 128.0;
        check("operations", prompt.operations, products + 4.0 * 4096.0 * 12.0 * pairs);
        check("TFLOP/s", prompt.tflop_s, prompt.operations / 0.1 / 1e12);
        assert_eq!((prompt.tokens, prompt.batch), (9000, 1));
    }

    #[test]
    fn the_table_has_a_row_for_each_test() {
        let text = report().to_string();
        for part in [
            "random 20b: 13.76 GB of weights; a GPU, 20.0 GB",
            "66 KV blocks for full layers and 41 for sliding ones",
            "copying 4000 GB/s",
            "cuBLAS 800 TFLOP/s",
            "| pp9000          |     1 |    90000.0 ± 0.0 |  100.000 |",
            "| tg2 @d1024      |    64 |    12800.0 ± 0.0 |    5.000 |",
            "| stage          |        x1 |       x64 |",
            "| qkv, 2 times   |      22.0 |      44.0 |",
            "| all            |      24.0 |      48.0 |",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn the_roofline_has_a_point_for_each_test() {
        let svg = report().draw().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        for part in ["tg2 @d1024 x64", "pp9000", "a GPU: random 20b", "4000 GB/s"] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
