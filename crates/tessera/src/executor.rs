//! Which backend runs a model; everything after this sees only [`Executor`].

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use tessera_cpu::{CpuExecutor, CpuOptions, OracleExecutor};
use tessera_cuda::{CudaError, CudaExecutor, Device, DeviceError, ModelWeights, ModelWeightsError};
use tessera_model::checkpoint::Checkpoint;
use tessera_model::{BLOCK_SIZE, Config, Executor, Limits};

use crate::interrupt::Interrupted;
use crate::opened::Dummy;
use crate::progress::BytesDone;

mod gpu_memory;

pub use gpu_memory::GpuMemory;

/// With less memory than it takes, a GPU's steps are halved, down to this many tokens.
const MIN_GPU_STEP_TOKENS: usize = 512;

/// How exactly to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Every activation in float32, plain loops: the reference, slow
    F32,
    /// Weights in place, operands of 16 bits or more, float32 sums: fast
    Bf16,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wish {
    /// The GPU, if it is there and can run the model, else the processor
    Auto,
    /// The processor
    Cpu,
    /// An NVIDIA GPU: H100 or H200
    Cuda,
}

/// Where to compute, and what may be taken there.
#[derive(clap::Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// What computes
    #[arg(long, value_enum, default_value_t = Wish::Auto)]
    pub device: Wish,
    /// The most GPU memory to take: a share of what is free at the start, or a size such as 60GB
    #[arg(long, value_name = "SHARE|SIZE", default_value = "90%")]
    gpu_memory: GpuMemory,
    /// Say on stderr what computes, and why
    #[arg(short, long)]
    verbose: bool,
}

/// What is said on stderr, of the GPU and of threads, where nobody asked with `--verbose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notes {
    Shown,
    Hidden,
}

/// The most tokens of a step, where a step computes on the CPU and on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTokens {
    pub cpu: usize,
    pub gpu: usize,
}

/// Where a model's weights come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    Checkpoint(&'a Checkpoint),
    Dummy(&'a Dummy),
}

/// What the command line says of where to compute, settled before a model is looked for: a GPU that was asked for and is
/// missing ends the command at once.
pub struct Backend {
    precision: Precision,
    threads: Option<usize>,
    gpu: Result<Device, String>, // or why not
    gpu_memory: GpuMemory,
    wish: Wish,
    notes: Notes,
    verbose: bool,
}

/// Where a model's steps run.
pub struct Place<'b> {
    backend: &'b Backend,
    gpu: Result<&'b Device, String>, // or why not
    pub limits: Limits,
}

impl DeviceArgs {
    /// Random weights are made on the GPU and nowhere else.
    pub fn for_dummy(&mut self, command: &str) {
        if self.device == Wish::Cpu {
            crate::usage_error(command, "--load-dummy makes weights on the GPU: it cannot go with --device cpu");
        }
        self.device = Wish::Cuda;
    }

    /// For the subcommand `command`: flags that do not go together end it.
    ///
    /// # Errors
    /// When the GPU is asked for and cannot be used; the error says what is missing.
    pub fn backend(
        &self,
        command: &str,
        precision: Precision,
        threads: Option<usize>,
        notes: Notes,
    ) -> anyhow::Result<Backend> {
        let gpu = match (self.device, precision) {
            (Wish::Cuda, Precision::F32) => crate::usage_error(
                command,
                "the GPU computes in bf16 alone: --precision f32 cannot go with --device cuda or --load-dummy",
            ),
            (Wish::Cuda, Precision::Bf16) => Ok(Device::open().map_err(|missing| without_gpu(&missing))?),
            (Wish::Cpu, _) => Err("--device cpu".to_owned()),
            (Wish::Auto, Precision::F32) => Err("the GPU computes in bf16 alone".to_owned()),
            (Wish::Auto, Precision::Bf16) => Device::open().map_err(|missing| missing.to_string()),
        };
        let Self { device: wish, gpu_memory, verbose, .. } = *self;
        Ok(Backend { precision, threads, gpu, gpu_memory, wish, notes, verbose })
    }
}

/// Why a GPU that was asked for cannot be had, and what can be done without one.
pub fn without_gpu(missing: &DeviceError) -> anyhow::Error {
    anyhow!("{missing}; without a GPU, leave out what asks for it: --device cuda, --load-dummy")
}

impl Backend {
    /// The CPU, and nothing said about it.
    pub fn cpu(precision: Precision, threads: Option<usize>) -> Self {
        let (gpu, gpu_memory, wish) = (Err(String::new()), GpuMemory::Share(1.0), Wish::Cpu);
        Self { precision, threads, gpu, gpu_memory, wish, notes: Notes::Hidden, verbose: false }
    }

    /// Decides where a model runs: on the GPU if that is open and has room for the weights and what `limits` says of a
    /// number of tokens in a step. With too little memory, steps become smaller first.
    ///
    /// # Errors
    /// When the GPU is asked for and cannot run the model.
    pub fn place(
        &self,
        config: &Config,
        steps: StepTokens,
        limits: impl Fn(usize) -> Limits,
    ) -> anyhow::Result<Place<'_>> {
        let on_gpu = match &self.gpu {
            Ok(device) => self.gpu_limits(device, config, steps.gpu, &limits).map(|limits| (device, limits)),
            Err(why) => Err(anyhow::Error::msg(why.clone())),
        };
        let (gpu, limits) = match on_gpu {
            Ok((device, limits)) => (Ok(device), limits),
            Err(error) if self.wish == Wish::Cuda => return Err(error),
            Err(why) => (Err(why.to_string()), limits(steps.cpu)),
        };
        let place = Place { backend: self, gpu, limits };
        // Who has a GPU counts on it.
        let falls_back = self.gpu.is_ok() && place.gpu.is_err() && self.notes == Notes::Shown;
        if self.verbose || falls_back {
            eprintln!("{place}");
        }
        Ok(place)
    }

    /// Whether the GPU is open and has room, as [`Backend::place`] asks.
    pub fn has_room(&self, config: &Config, steps: StepTokens, limits: impl Fn(usize) -> Limits) -> bool {
        self.gpu.as_ref().is_ok_and(|device| self.gpu_limits(device, config, steps.gpu, &limits).is_ok())
    }

    fn gpu_limits(
        &self,
        device: &Device,
        config: &Config,
        max_tokens: usize,
        limits: &impl Fn(usize) -> Limits,
    ) -> anyhow::Result<Limits> {
        let budget_bytes = self.gpu_memory.budget_bytes(device.memory()?);
        Ok(largest_step(max_tokens, |max_tokens| {
            let limits = limits(max_tokens);
            CudaExecutor::fits(config, &limits, budget_bytes).map(|()| limits)
        })?)
    }
}

/// What `fits` gives for the largest number of tokens in a step that fits: `max_tokens`, half of it and so on.
fn largest_step<T>(max_tokens: usize, fits: impl Fn(usize) -> Result<T, CudaError>) -> Result<T, CudaError> {
    let mut tokens = max_tokens;
    loop {
        match fits(tokens) {
            Err(CudaError::Budget { .. }) if tokens / 2 >= MIN_GPU_STEP_TOKENS => tokens /= 2,
            found => return found,
        }
    }
}

impl std::fmt::Display for Place<'_> {
    /// Where, and why not on the GPU.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.gpu {
            Ok(device) => write!(f, "on the GPU, {}", device.properties().name),
            Err(why) => write!(f, "on the CPU: {why}"),
        }
    }
}

impl Place<'_> {
    pub fn gpu(&self) -> Option<&Device> {
        self.gpu.as_ref().ok().copied()
    }

    /// Why not on the GPU.
    pub fn why_cpu(&self) -> Option<&str> {
        self.gpu.as_ref().err().map(String::as_str)
    }

    /// A backend for the model, ready for steps.
    ///
    /// # Errors
    /// When the GPU has not what the model takes, or the user stops the loading.
    pub fn open<'a>(&self, weights: Weights<'a>) -> anyhow::Result<Box<dyn Executor + 'a>> {
        match (&self.gpu, weights) {
            (Ok(device), _) => Ok(Box::new(self.open_gpu(device, weights)?)),
            (Err(_), Weights::Checkpoint(checkpoint)) => Ok(self.open_cpu(checkpoint)),
            (Err(why), Weights::Dummy(_)) => bail!("--load-dummy needs a GPU: {why}"),
        }
    }

    fn open_cpu<'a>(&self, checkpoint: &'a Checkpoint) -> Box<dyn Executor + 'a> {
        let (config, weights) = (checkpoint.config(), checkpoint.weights());
        let mut options = CpuOptions::default();
        let cores = options.threads;
        options.threads = self.backend.threads.unwrap_or(cores);
        if options.threads > cores && self.backend.notes == Notes::Shown {
            eprintln!("{} threads on {cores} cores wait for each other; --threads {cores} is faster", options.threads);
        }
        match self.backend.precision {
            Precision::F32 => Box::new(OracleExecutor::new(config, weights, self.limits, options.threads)),
            Precision::Bf16 => Box::new(CpuExecutor::new(config, weights, self.limits, options)),
        }
    }

    /// Loads or makes the weights, with a bar, and says what memory is taken.
    pub fn open_gpu(&self, device: &Device, weights: Weights) -> anyhow::Result<CudaExecutor> {
        let free_bytes = device.memory()?.free_bytes;
        let config = weights.config();
        let on_gpu = load(device, weights)?;
        let executor = CudaExecutor::new(device, config, on_gpu, self.limits)?;
        if self.backend.notes == Notes::Shown || self.backend.verbose {
            let taken = free_bytes.saturating_sub(device.memory()?.free_bytes);
            eprintln!("{}", taken_line(&device.properties().name, taken, self.limits));
        }
        Ok(executor)
    }
}

fn taken_line(device: &str, taken_bytes: usize, limits: Limits) -> String {
    format!(
        "{device}: {:.1} GB of its memory taken, {} KV blocks for full layers and {} for sliding ones, steps of at most \
         {} tokens",
        taken_bytes as f64 / 1e9,
        limits.full_blocks,
        limits.sliding_blocks,
        limits.max_step_tokens
    )
}

fn load(device: &Device, weights: Weights) -> anyhow::Result<ModelWeights> {
    let config = weights.config();
    let total = ModelWeights::checkpoint_bytes(config);
    let bar = BytesDone::start(match weights {
        Weights::Checkpoint(_) => "loading to the GPU",
        Weights::Dummy(_) => "making weights",
    });
    let mut progress = |done| bar.at(done, total);
    let loaded = match weights {
        Weights::Checkpoint(checkpoint) => ModelWeights::load(device, config, &checkpoint.weights(), &mut progress),
        Weights::Dummy(dummy) => ModelWeights::dummy(device, config, dummy.seed, &mut progress),
    };
    bar.finish();
    loaded.map_err(|error| match error {
        ModelWeightsError::Interrupted => Interrupted.into(),
        error => error.into(),
    })
}

impl<'a> Weights<'a> {
    pub fn config(self) -> &'a Config {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Dummy(dummy) => &dummy.config,
        }
    }
}

/// What the keys and values of `limits` take when all of them are used.
pub fn cache_bytes(config: &Config, precision: Precision, limits: Limits) -> u64 {
    let element: u64 = match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let blocks: u64 = config.layer_types.iter().map(|&kind| limits.blocks(kind) as u64).sum();
    blocks.saturating_mul(2 * (BLOCK_SIZE * config.kv_dim()) as u64 * element)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a GPU with room for a step of so many tokens.
    #[track_caller]
    fn check_step(asked: usize, room: usize, expect: Option<usize>) {
        let fits = |tokens: usize| match tokens <= room {
            true => Ok(tokens),
            false => {
                let step_bytes = tokens as u64;
                Err(CudaError::Budget { weights_bytes: 0, step_bytes, max_step_tokens: tokens, budget_bytes: 0 })
            }
        };
        assert_eq!(largest_step(asked, fits).ok(), expect, "{asked} with room for {room}");
    }

    #[test]
    fn steps_are_halved_until_they_fit() {
        check_step(8192, 10_000, Some(8192));
        check_step(8192, 8191, Some(4096));
        check_step(8192, 600, Some(512));
        check_step(8192, 511, None);
        check_step(1000, 999, None);
        check_step(1, 1, Some(1));
        check_step(1, 0, None);
    }

    #[test]
    fn what_is_taken_is_said_in_one_line() {
        let limits = Limits { full_blocks: 264, sliding_blocks: 41, max_step_tokens: 4096 };
        assert_eq!(
            taken_line("NVIDIA H200", 15_949_000_000, limits),
            "NVIDIA H200: 15.9 GB of its memory taken, 264 KV blocks for full layers and 41 for sliding ones, steps of at \
             most 4096 tokens"
        );
    }
}
