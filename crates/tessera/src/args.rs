//! Flags that several commands share.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::Value;
use tessera_cuda::{MoeChoice, MoeKernel};
use tessera_harmony::message::ReasoningEffort;
use tessera_model::Sampling;
use tessera_model::synth::Like;

use crate::executor::Precision;

/// Which model, and how to run it.
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Checkpoint folder, .safetensors file, index, hub id such as openai/gpt-oss-20b[@revision], or demo
    /// [env: TESSERA_MODEL] [default: demo]
    ///
    /// A hub id is looked for in the Hugging Face cache and else downloaded into it (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
    /// HF_TOKEN and HF_HUB_OFFLINE are honoured). demo is the small trained model that is built in; a folder of that name
    /// is ./demo.
    #[arg(short, long)]
    pub model: Option<String>,
    /// How exactly to compute
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = threads)]
    pub threads: Option<usize>,
    /// Most positions that prompt and answer take together; the answer's last token takes none
    #[arg(short, long, value_name = "TOKENS", value_parser = at_least_one)]
    pub context: Option<usize>,
}

/// Which model, as the first argument or by flag.
#[derive(clap::Args)]
pub struct ModelName {
    /// Folder, .safetensors file, index, hub id or demo; may also be named with --model [env: TESSERA_MODEL]
    /// [default: demo, the built-in model]
    #[arg(value_name = "MODEL")]
    first: Option<String>,
    /// The same as MODEL
    #[arg(short, long, conflicts_with = "first")]
    model: Option<String>,
}

/// How to choose the next token. What is not given comes from the checkpoint's generation_config.json; where that is
/// missing or says so, the most probable token is taken.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling (defaults: generation_config.json, else greedy)")]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the most probable token
    #[arg(long, value_parser = temperature)]
    pub temperature: Option<f32>,
    /// Choose among the most probable tokens that together have this probability
    #[arg(long, value_parser = probability)]
    pub top_p: Option<f32>,
    /// Choose among this many most probable tokens; 0 for all
    #[arg(long, value_parser = from_zero::<usize>)]
    pub top_k: Option<usize>,
    /// Number that decides every random choice: the same seed gives the same answer [default: a new one each time]
    #[arg(long, value_parser = from_zero::<u64>)]
    pub seed: Option<u64>,
}

/// What computes the steps that `verify` judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The processor
    Cpu,
    /// An NVIDIA GPU: H100 or H200
    Cuda,
}

/// Which of the experts' matrix products run on a GPU: they differ in speed, and in no bit of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MoeKernelArg {
    /// The fastest for the number of tokens
    Auto,
    /// For few tokens per expert
    Stream,
    /// For some tens per expert
    Mid,
    /// For many
    Prefill,
}

impl From<MoeKernelArg> for MoeChoice {
    fn from(kernel: MoeKernelArg) -> Self {
        match kernel {
            MoeKernelArg::Auto => Self::Auto,
            MoeKernelArg::Stream => Self::Fixed(MoeKernel::Stream),
            MoeKernelArg::Mid => Self::Fixed(MoeKernel::Mid),
            MoeKernelArg::Prefill => Self::Fixed(MoeKernel::Prefill),
        }
    }
}

/// How much the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    Low,
    Medium,
    High,
}

impl From<Effort> for ReasoningEffort {
    fn from(effort: Effort) -> Self {
        match effort {
            Effort::Low => Self::Low,
            Effort::Medium => Self::Medium,
            Effort::High => Self::High,
        }
    }
}

impl ModelName {
    pub fn get(&self) -> Option<&str> {
        self.first.as_deref().or(self.model.as_deref())
    }
}

/// The part of `generation_config.json` that says how to sample.
#[derive(Debug, Default)]
struct GenerationConfig {
    do_sample: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
}

impl SamplingArgs {
    /// The flags, completed from the checkpoint's defaults.
    ///
    /// # Errors
    /// When a field of `generation_config.json` that no flag stands for has no sense.
    pub fn sampling(&self, checkpoint: Option<&Path>) -> anyhow::Result<Sampling> {
        let defaults = checkpoint.map(|checkpoint| self.generation_config(checkpoint)).transpose()?;
        Ok(self.over(&defaults.unwrap_or_default()))
    }

    fn over(&self, defaults: &GenerationConfig) -> Sampling {
        let default_temperature = if defaults.do_sample { defaults.temperature.unwrap_or(1.0) } else { 0.0 };
        Sampling {
            temperature: self.temperature.unwrap_or(default_temperature),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            seed: self.seed.unwrap_or_else(new_seed),
        }
    }

    /// Of a checkpoint, which need not have the file.
    fn generation_config(&self, checkpoint: &Path) -> anyhow::Result<GenerationConfig> {
        let folder = if checkpoint.is_dir() { checkpoint.to_owned() } else { parent(checkpoint) };
        let file = folder.join("generation_config.json");
        match std::fs::read(&file) {
            Ok(json) => {
                let fields = serde_json::from_slice(&json).with_context(|| format!("{}", file.display()))?;
                self.defaults(&file, &fields)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(GenerationConfig::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// What `file` says of what no flag stands for: with a temperature, nothing asks whether to sample.
    fn defaults(&self, file: &Path, fields: &Value) -> anyhow::Result<GenerationConfig> {
        let do_sample = |text: &str| text.parse().map_err(|_| "expected true or false".to_owned());
        Ok(GenerationConfig {
            do_sample: default_of(file, fields, "do_sample", self.temperature.is_some(), do_sample)?.unwrap_or(false),
            temperature: default_of(file, fields, "temperature", self.temperature.is_some(), temperature)?,
            top_p: default_of(file, fields, "top_p", self.top_p.is_some(), probability)?,
            top_k: default_of(file, fields, "top_k", self.top_k.is_some(), from_zero)?,
        })
    }
}

/// A field of `generation_config.json`, unless a flag is given in its place.
fn default_of<T>(
    file: &Path,
    fields: &Value,
    name: &str,
    is_given: bool,
    parse: impl Fn(&str) -> Result<T, String>,
) -> anyhow::Result<Option<T>> {
    match fields.get(name) {
        Some(value) if !value.is_null() && !is_given => {
            let parsed = parse(&value.to_string());
            let told =
                |expected| anyhow!("{}: {name} is {value}: {expected}; correct it, or give a flag", file.display());
            parsed.map(Some).map_err(told)
        }
        _ => Ok(None),
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// Short enough to be typed again.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}

/// The shapes that `--load-dummy` knows.
pub fn published_model() -> impl TypedValueParser<Value = Like> {
    PossibleValuesParser::new([Like::Gpt20b, Like::Gpt120b].map(Like::name))
        .try_map(|name| Like::from_name(&name).ok_or("unknown model"))
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number from 1 on".to_owned())
}

fn from_zero<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number from 0 on".to_owned())
}

pub fn whole_number(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let valid = |n: &usize| range.contains(n);
    let expected = || format!("expected a whole number from {} to {}", range.start(), range.end());
    text.parse().ok().filter(valid).ok_or_else(expected)
}

/// How many of the likeliest tokens; as many as OpenAI's API has.
pub fn top_logprobs(text: &str) -> Result<usize, String> {
    const MAX_TOP_LOGPROBS: usize = 20;
    whole_number(text, 0..=MAX_TOP_LOGPROBS)
}

/// A number of threads; starting far more than there are cores only stalls the machine.
///
/// An empty variable is none: all cores, then.
pub fn threads(text: &str) -> Result<usize, String> {
    const MAX_THREADS: usize = 1024;
    if text.is_empty() {
        return Ok(tessera_cpu::CpuOptions::default().threads);
    }
    whole_number(text, 1..=MAX_THREADS).map_err(|expected| format!("{expected}, here or in TESSERA_THREADS"))
}

fn temperature(text: &str) -> Result<f32, String> {
    let valid = |t: &f32| t.is_finite() && *t >= 0.0;
    text.parse().ok().filter(valid).ok_or_else(|| "expected a number from 0 on".to_owned())
}

fn probability(text: &str) -> Result<f32, String> {
    let valid = |p: &f32| *p > 0.0 && *p <= 1.0;
    text.parse().ok().filter(valid).ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FLAGS: SamplingArgs = SamplingArgs { temperature: None, top_p: None, top_k: None, seed: Some(7) };

    fn check(flags: &SamplingArgs, config: &str, expect: (f32, f32, usize)) {
        let defaults = flags.defaults(Path::new("x.json"), &serde_json::from_str(config).unwrap()).unwrap();
        let got = flags.over(&defaults);
        assert_eq!((got.temperature, got.top_p, got.top_k), expect, "{config}");
    }

    #[test]
    fn defaults_come_from_the_generation_config() {
        check(&NO_FLAGS, "{}", (0.0, 1.0, 0));
        check(&NO_FLAGS, r#"{"do_sample": true, "bos_token_id": 1}"#, (1.0, 1.0, 0));
        check(&NO_FLAGS, r#"{"do_sample": false, "temperature": 0.7}"#, (0.0, 1.0, 0));
        check(&NO_FLAGS, r#"{"do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 40}"#, (0.7, 0.9, 40));
        let flags = SamplingArgs { temperature: Some(0.5), top_k: Some(3), ..NO_FLAGS };
        check(&flags, r#"{"do_sample": true, "temperature": 0.7, "top_p": 0.9, "top_k": 40}"#, (0.5, 0.9, 3));
        check(&flags, r#"{"temperature": -3, "top_p": null, "top_k": "all"}"#, (0.5, 1.0, 3));
    }

    #[test]
    fn defaults_without_sense_are_refused() {
        for (config, expected) in [
            (r#"{"temperature": -3}"#, "x.json: temperature is -3: expected a number from 0 on"),
            (r#"{"top_p": 2}"#, "x.json: top_p is 2: expected a number above 0 and at most 1"),
            (r#"{"top_k": -4}"#, "x.json: top_k is -4: expected a whole number from 0 on"),
            (r#"{"do_sample": "yes"}"#, "x.json: do_sample is \"yes\": expected true or false"),
        ] {
            let error = NO_FLAGS.defaults(Path::new("x.json"), &serde_json::from_str(config).unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }
}
