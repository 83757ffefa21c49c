//! `tessera bench moe`: the experts on the GPU, from router logits to the layer's output.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use tessera_cuda::{Device, MAX_TOKENS, MoeShape};

use crate::args::{MoeKernelArg, at_least_one, whole_number};
use crate::progress;

use super::cost::Ceilings;
use super::roofline::{self, Point, Roofline};
use rig::{Rig, Stages, Timing};

mod rig;

/// Measure the experts' layer on the GPU: routing, gate and up with SwiGLU, down, combining
///
/// Random weights of the published sizes, layers in turn so that the L2 cache does not hold them, uniformly random routing,
/// one CUDA graph of all layers, medians of its replays. In the same run: the rate at which memory is copied, and cuBLAS's
/// product of two BF16 matrices of 8192 x 8192, where that library is found.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera bench moe
  tessera bench moe --shape 120b --tokens 1,64 --stages
  tessera bench moe --tokens 64 --moe-kernel mid
  tessera bench moe --plot roofline.svg --json > moe.json")]
pub struct Args {
    /// Sizes of the experts
    #[arg(long, value_enum, default_value_t = Model::B20)]
    shape: Model,
    /// Numbers of tokens to measure
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1,8,64,256,1024,4096,8192",
          value_parser = n_tokens)]
    tokens: Vec<usize>,
    /// Which matrix products run
    #[arg(long, value_enum, default_value_t = MoeKernelArg::Auto)]
    moe_kernel: MoeKernelArg,
    /// Layers that take turns
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = at_least_one)]
    layers: usize,
    /// Replays that count
    #[arg(short, long, value_name = "N", default_value_t = 9, value_parser = at_least_one)]
    repetitions: usize,
    /// Measure each stage by itself as well
    #[arg(long)]
    stages: bool,
    /// Draw where the tests stand below the roofline
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
enum Model {
    /// 32 experts of gpt-oss-20b
    #[value(name = "20b")]
    #[serde(rename = "20b")]
    B20,
    /// 128 experts of gpt-oss-120b
    #[value(name = "120b")]
    #[serde(rename = "120b")]
    B120,
}

impl Model {
    fn shape(self) -> MoeShape {
        let experts = match self {
            Self::B20 => 32,
            Self::B120 => 128,
        };
        MoeShape { hidden: 2880, intermediate: 2880, experts, top_k: 4 }
    }
}

#[derive(Serialize)]
struct Report {
    device: String,
    shape: Model,
    layers: usize,
    ceilings: Ceilings,
    tests: Vec<Test>,
}

#[derive(Serialize)]
struct Test {
    tokens: usize,
    /// The kernels of the two matrix products.
    gate_up: &'static str,
    down: &'static str,
    /// Of one layer: the median, the fastest and the slowest replay.
    us: f64,
    us_min: f64,
    us_max: f64,
    /// Experts that have tokens, on average of the layers.
    active_experts: f64,
    /// Of the active experts' weights.
    weights_gb_s: f64,
    of_copy: f64,
    tflop_s: f64,
    of_cublas: Option<f64>,
    /// Operations per byte of weights.
    intensity: f64,
    stages_us: Option<Stages>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let device = Device::open().context("bench moe needs a GPU")?;
    let ceilings = Ceilings::measure(&device)?;
    let (shape, choice) = (args.shape.shape(), args.moe_kernel.into());
    let loading = progress::steps("loading weights [{bar:40}] {pos}/{len}", args.layers);
    let rig = Rig::new(&device, shape, args.layers, || loading.inc(1))
        .with_context(|| format!("{} layers of {:?} experts; --layers asks for fewer", args.layers, args.shape))?;
    loading.finish_and_clear();
    let measuring = progress::steps("measuring [{bar:40}] {pos}/{len}", args.tokens.len());
    let mut tests = Vec::new();
    for &n_tokens in &args.tokens {
        let timing = rig.measure(n_tokens, choice, args.repetitions)?;
        let stages = match args.stages {
            true => Some(rig.stages(n_tokens, timing.kernel, args.repetitions)?),
            false => None,
        };
        tests.push(Test::new(shape, n_tokens, &timing, stages, ceilings));
        measuring.inc(1);
    }
    measuring.finish_and_clear();
    let device = device.properties().name.clone();
    let report = Report { device, shape: args.shape, layers: args.layers, ceilings, tests };
    if let Some(path) = &args.plot {
        std::fs::write(path, report.draw()?).with_context(|| path.display().to_string())?;
    }
    let text = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn n_tokens(text: &str) -> Result<usize, String> {
    whole_number(text, 1..=MAX_TOKENS)
}

impl Test {
    fn new(shape: MoeShape, n_tokens: usize, timing: &Timing, stages_us: Option<Stages>, ceilings: Ceilings) -> Self {
        let us = timing.us[timing.us.len() / 2];
        let bytes = timing.active_experts * timing.expert_bytes as f64;
        let operations = operations(shape, n_tokens);
        let (weights_gb_s, tflop_s) = (bytes / us / 1e3, operations / us / 1e6);
        Self {
            tokens: n_tokens,
            gate_up: timing.launched.gate_up,
            down: timing.launched.down,
            us,
            us_min: timing.us[0],
            us_max: timing.us[timing.us.len() - 1],
            active_experts: timing.active_experts,
            weights_gb_s,
            of_copy: weights_gb_s / ceilings.copy_gb_s,
            tflop_s,
            of_cublas: ceilings.cublas_tflop_s.map(|rate| tflop_s / rate),
            intensity: operations / bytes,
            stages_us,
        }
    }
}

/// Of the matrix products, two for each weight and each token that meets it.
fn operations(shape: MoeShape, n_tokens: usize) -> f64 {
    let weights = 3 * shape.hidden * shape.intermediate; // gate, up, down
    (2 * n_tokens * shape.top_k * weights) as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.shape.shape().experts;
        writeln!(f, "{}; {n} experts a layer, {} layers in turn", self.device, self.layers)?;
        writeln!(f, "{}", self.ceilings)?;
        writeln!(
            f,
            "\n| tokens |       us | experts | weights GB/s | of copying | TFLOP/s | of cuBLAS | kernel              |"
        )?;
        writeln!(
            f,
            "|-------:|---------:|--------:|-------------:|-----------:|--------:|----------:|---------------------|"
        )?;
        for t in &self.tests {
            let of_cublas = t.of_cublas.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
            let of_copy = format!("{:.0} %", 100.0 * t.of_copy);
            writeln!(
                f,
                "| {:6} | {:8.1} | {:7.1} | {:12.0} | {of_copy:>10} | {:7.1} | {of_cublas:>9} | {:19} |",
                t.tokens, t.us, t.active_experts, t.weights_gb_s, t.tflop_s, t.gate_up
            )?;
        }
        if self.tests.iter().any(|t| t.stages_us.is_some()) {
            self.write_stages(f)?;
        }
        Ok(())
    }
}

impl Report {
    fn draw(&self) -> anyhow::Result<String> {
        let point = |t: &Test| Point { intensity: t.intensity, tflop_s: t.tflop_s, label: t.tokens.to_string() };
        roofline::draw(&Roofline {
            title: format!("{}: {} experts a layer", self.device, self.shape.shape().experts),
            per: "operations per byte of weights",
            ceilings: self.ceilings,
            points: self.tests.iter().map(point).collect(),
        })
    }

    fn write_stages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nEach stage by itself, us; together they gain from starting before the one before has ended")?;
        writeln!(f, "| tokens |    route |  gate_up |     down |  combine |")?;
        writeln!(f, "|-------:|---------:|---------:|---------:|---------:|")?;
        for (t, s) in self.tests.iter().filter_map(|t| Some((t, t.stages_us.as_ref()?))) {
            let Stages { route, gate_up, down, combine } = s;
            writeln!(f, "| {:6} | {route:8.1} | {gate_up:8.1} | {down:8.1} | {combine:8.1} |", t.tokens)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::rig::{Stages, Timing};
    use super::{Ceilings, Model, Report, Test};
    use tessera_cuda::{MoeKernel, MoeLaunched};

    fn report() -> Report {
        let launched = MoeLaunched { gate_up: "moe_gate_up_stream", down: "moe_down_stream" };
        let timing = |us: f64| Timing {
            kernel: MoeKernel::Stream,
            launched,
            us: vec![us - 1.0, us, us + 2.0],
            active_experts: 4.0,
            expert_bytes: 13_250_000,
        };
        let ceilings = Ceilings { copy_gb_s: 4000.0, cublas_tflop_s: Some(800.0) };
        let stages = Stages { route: 5.0, gate_up: 15.0, down: 10.0, combine: 2.0 };
        let tests = vec![
            Test::new(Model::B20.shape(), 1, &timing(26.5), Some(stages), ceilings),
            Test::new(Model::B20.shape(), 4096, &timing(1300.0), None, ceilings),
        ];
        Report { device: "a GPU".into(), shape: Model::B20, layers: 24, ceilings, tests }
    }

    #[test]
    fn rates_follow_from_time_bytes_and_operations() {
        let test = &report().tests[0];
        assert_eq!((test.us, test.us_min, test.us_max), (26.5, 25.5, 28.5));
        assert!((test.weights_gb_s - 2000.0).abs() < 1.0 && (test.of_copy - 0.5).abs() < 1e-3);
        // 2 x 4 experts x 3 x 2880 x 2880 operations in 26.5 us.
        assert!((test.tflop_s - 7.512).abs() < 1e-3, "{}", test.tflop_s);
        assert!((test.of_cublas.unwrap() - 0.00939).abs() < 1e-5);
    }

    #[test]
    fn the_table_names_everything() {
        let text = report().to_string();
        for part in
            ["a GPU; 32 experts", "4000 GB/s", "cuBLAS 800 TFLOP/s", "|      1 |     26.5 |", "moe_gate_up_stream"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(text.matches("\n|      1 |").count(), 2, "{text}");
    }

    #[test]
    fn the_roofline_has_a_point_for_each_test() {
        let svg = report().draw().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in ["4096", "TFLOP/s", "4000 GB/s", "800 TFLOP/s"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
