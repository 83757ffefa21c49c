//! Rewriting a checkpoint in another layout: original and Hugging Face either way, and dequantised experts to MXFP4.
//!
//! Every byte but the quantised experts' is copied. The work is cut in pieces that several threads read and write at
//! their place: at most one expert's matrix per thread is in memory.

mod quantise;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use quantise::TensorError;

use crate::checkpoint::shards::{Progress, ShardSet, run_jobs};
use crate::checkpoint::staging::StagedFolder;
use crate::checkpoint::{CheckpointError, Depth, Layout, Part, Survey, TensorSpec, WriteError};
use crate::config::{Config, ConfigError};
use crate::synth::{MAX_SHARD_BYTES, original_dtypes};
use quantise::{Expert, Sums};

/// Bytes that a thread copies at a time.
const COPY_BYTES: usize = 8 << 20;
/// Files beside the weights that make up a checkpoint's repository, taken along as they are.
const COMPANIONS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "USAGE_POLICY",
    "README.md",
];

/// What to write.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// [`Layout::Hf`] or [`Layout::Original`].
    pub to: Layout,
    /// Files of the Hugging Face layout hold at most this many bytes of tensors.
    pub max_shard_bytes: u64,
    pub threads: usize,
}

/// What was written.
#[derive(Debug)]
pub struct Report {
    pub from: Layout,
    pub to: Layout,
    pub tensors: usize,
    pub bytes: u64,
    /// Of the tensors that were quantised, in the order of the source's layout.
    pub errors: Vec<TensorError>,
    /// The source's notes.
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{} is in the {layout} layout already: there is nothing to convert", path.display())]
    SameLayout { path: PathBuf, layout: Layout },
    #[error("cannot write the {layout} layout: it does not run; convert to hf or original")]
    Target { layout: Layout },
    #[error("tensor {tensor}: value [{expert}, {row}, {col}] is {value}, which no MXFP4 block can hold")]
    NotFinite { tensor: String, expert: usize, row: usize, col: usize, value: f32 },
    #[error("cannot read {}: {reason}", path.display())]
    Companion { path: PathBuf, reason: std::io::Error },
}

impl Conversion {
    pub fn to(layout: Layout) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { to: layout, max_shard_bytes: MAX_SHARD_BYTES, threads }
    }

    /// Writes `source` anew to the folder `destination`, which appears only when it is complete.
    pub fn run(&self, source: &Path, destination: &Path, progress: Progress) -> Result<Report, ConvertError> {
        let Source { survey, config, layout: from, realign } = Source::open(source)?;
        if self.to == Layout::Bf16 {
            return Err(ConvertError::Target { layout: self.to });
        }
        if from == self.to && !realign {
            return Err(ConvertError::SameLayout { path: source.to_owned(), layout: from });
        }
        let staged = StagedFolder::create(destination)?;
        let (folder, max_shard_bytes) = match self.to {
            Layout::Original => (staged.path().join("original"), u64::MAX),
            _ => (staged.path().to_owned(), self.max_shard_bytes),
        };
        self.write_small_files(&staged, source, &survey, &config, from)?;
        let specs = self.to.tensors(&config);
        let shards = ShardSet::create(&folder, destination, &specs, max_shard_bytes)?;
        let jobs = jobs(&config, from, &specs);
        let sums = Sums::new(&config);
        run_jobs(&jobs, self.threads, staged.destination(), shards.bytes(), progress, |job, scratch| match job {
            Job::Copy(copy) => copy.run(&survey, &shards, scratch),
            Job::Quantise(expert) => expert.run(&survey, &shards, scratch, &sums),
        })?;
        survey.still_unchanged()?;
        staged.commit()?;
        let errors = if from == Layout::Bf16 { sums.report(&config) } else { Vec::new() };
        let (tensors, bytes) = (specs.len(), shards.bytes());
        Ok(Report { from, to: self.to, tensors, bytes, errors, notes: survey.notes.clone() })
    }

    fn write_small_files(
        &self,
        staged: &StagedFolder,
        source: &Path,
        survey: &Survey,
        config: &Config,
        from: Layout,
    ) -> Result<(), ConvertError> {
        match self.to {
            Layout::Original => {
                staged.write("original/config.json", config.to_original_json()?.as_bytes())?;
                staged.write("original/dtypes.json", original_dtypes(config).as_bytes())?;
            }
            _ => staged.write("config.json", hf_config(survey, config, from).as_bytes())?,
        }
        // A generation_config.json of the source replaces this one.
        staged.write("generation_config.json", config.to_generation_json().as_bytes())?;
        for path in companions(source, survey) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let contents = fs::read(&path).map_err(|reason| ConvertError::Companion { path, reason })?;
            staged.write(&name, &contents)?;
        }
        Ok(())
    }
}

/// A survey without a reason to refuse but those that a conversion mends.
struct Source {
    survey: Survey,
    config: Config,
    layout: Layout,
    /// Whether BF16 tensors start at odd bytes.
    realign: bool,
}

impl Source {
    fn open(path: &Path) -> Result<Self, ConvertError> {
        let mut survey = Survey::take(path, Depth::Values);
        let realign = survey.refusals.iter().any(|r| matches!(r, CheckpointError::Misaligned { .. }));
        let is_mended =
            |r: &CheckpointError| matches!(r, CheckpointError::Bf16Only { .. } | CheckpointError::Misaligned { .. });
        survey.refusals.retain(|r| !is_mended(r));
        if !survey.refusals.is_empty() {
            return Err(survey.refusals.swap_remove(0).into());
        }
        match (survey.config.clone(), survey.layout) {
            (Some(config), Some(layout)) => Ok(Self { survey, config, layout, realign }),
            _ => Err(CheckpointError::NoWeights { folder: path.to_owned() }.into()),
        }
    }
}

/// The `config.json` of the Hugging Face layout: the source's own where it has one, told that experts are MXFP4 now.
fn hf_config(survey: &Survey, config: &Config, from: Layout) -> String {
    match serde_json::from_str::<Value>(survey.config_text()) {
        Ok(Value::Object(mut object)) if from == Layout::Bf16 => {
            object.insert("quantization_config".into(), crate::config::quantization_config());
            crate::config::pretty(&object.into())
        }
        _ => config.to_hf_json(),
    }
}

/// The companion files of the source's folder or, where the weights lie in `original`, of the folder around it.
fn companions(source: &Path, survey: &Survey) -> Vec<PathBuf> {
    let folder = survey.folder();
    let folders = [source, folder, folder.parent().filter(|_| folder.ends_with("original")).unwrap_or(folder)];
    let find = |name: &&str| folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
    COMPANIONS.iter().filter_map(find).collect()
}

enum Job {
    Copy(Copy),
    Quantise(Expert),
}

/// Bytes of a part, copied to their place in a tensor.
struct Copy {
    layer: Option<usize>,
    part: Part,
    start: usize, // in the part
    bytes: usize,
    tensor: usize, // position in the target's list
    offset: u64,   // in the tensor
}

impl Copy {
    fn run(&self, survey: &Survey, shards: &ShardSet, scratch: &mut Vec<u8>) -> Result<u64, ConvertError> {
        scratch.resize(self.bytes, 0);
        survey.read_part(self.layer, self.part, self.start, scratch)?;
        shards.write_at(self.tensor, self.offset, scratch)?;
        Ok(self.bytes as u64)
    }
}

fn jobs(config: &Config, from: Layout, specs: &[TensorSpec]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (tensor, spec) in specs.iter().enumerate() {
        match spec.part {
            // Blocks and scales of one projection are made together; the scales follow the blocks in every layout.
            Part::GateUpBlocks | Part::DownBlocks if from == Layout::Bf16 => {
                jobs.extend(Expert::all(config, spec, tensor, tensor + 1).map(Job::Quantise));
            }
            Part::GateUpScales | Part::DownScales if from == Layout::Bf16 => {}
            _ => {
                let mut offset = 0;
                for part in spec.part.split() {
                    let all = part.shape(config).iter().product::<usize>() * part.element_bytes();
                    for start in (0..all).step_by(COPY_BYTES) {
                        let bytes = COPY_BYTES.min(all - start);
                        jobs.push(Job::Copy(Copy { layer: spec.layer, part, start, bytes, tensor, offset }));
                        offset += bytes as u64;
                    }
                }
            }
        }
    }
    jobs
}
