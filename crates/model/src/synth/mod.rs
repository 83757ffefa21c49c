//! Checkpoints of seeded random weights: what tests and benches run on.
//!
//! Every value is a function of seed, part, layer and index alone, so all layouts of one seed hold the same numbers,
//! and any piece of any tensor can be made by itself.

mod like;
mod random;
mod values;

use std::path::Path;

pub use like::Like;
pub use values::Source;

use crate::checkpoint::shards::{Progress, ShardSet, run_jobs};
use crate::checkpoint::staging::StagedFolder;
use crate::checkpoint::{Layout, Part, TensorSpec, WriteError};
use crate::config::{Config, ConfigError};
use crate::mxfp4::BLOCK;

/// No file of a Hugging Face checkpoint is larger.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;
/// Elements (of one or two bytes) that a thread makes at a time.
const CHUNK_ELEMENTS: usize = 4 << 20;

/// A checkpoint to write.
#[derive(Clone, Debug)]
pub struct Spec {
    pub config: Config,
    pub seed: u64,
    pub layout: Layout,
    /// Files of the Hugging Face layouts hold at most this many bytes of tensors; the original layout is one file.
    pub max_shard_bytes: u64,
    /// The text of `tokenizer.json`, if the checkpoint is to have one.
    pub tokenizer: Option<String>,
    pub threads: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Spec {
    /// The Hugging Face layout in files as large as the published ones, without a tokenizer, on two threads.
    pub fn new(config: Config, seed: u64) -> Self {
        Self { config, seed, layout: Layout::Hf, max_shard_bytes: MAX_SHARD_BYTES, tokenizer: None, threads: 2 }
    }

    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Writes the checkpoint to the new folder `destination`, which appears only when it is complete.
    ///
    /// Memory is a few MiB per thread whatever the model's size. The original layout gets the published repository's
    /// shape: weights, `config.json` and `dtypes.json` in the folder `original`.
    pub fn write(&self, destination: &Path, progress: Progress) -> Result<(), SynthError> {
        self.config.validate()?;
        let staged = StagedFolder::create(destination)?;
        let (folder, max_shard_bytes) = match self.layout {
            Layout::Original => (staged.path().join("original"), u64::MAX),
            Layout::Hf | Layout::Bf16 => (staged.path().to_owned(), self.max_shard_bytes),
        };
        self.write_small_files(&staged)?;
        let specs = self.layout.tensors(&self.config);
        let shards = ShardSet::create(&folder, destination, &specs, max_shard_bytes)?;
        let (jobs, source) = (self.jobs(&specs), Source::new(&self.config, self.seed));
        run_jobs(&jobs, self.threads, staged.destination(), shards.bytes(), progress, |job, scratch| {
            job.fill(&source, scratch);
            shards.write_at(job.tensor, job.offset, scratch).map(|()| scratch.len() as u64)
        })?;
        Ok(staged.commit()?)
    }

    fn write_small_files(&self, staged: &StagedFolder) -> Result<(), SynthError> {
        match self.layout {
            Layout::Hf => staged.write("config.json", self.config.to_hf_json().as_bytes())?,
            Layout::Bf16 => staged.write("config.json", self.config.to_bf16_json().as_bytes())?,
            Layout::Original => {
                staged.write("original/config.json", self.config.to_original_json()?.as_bytes())?;
                staged.write("original/dtypes.json", original_dtypes(&self.config).as_bytes())?;
            }
        }
        staged.write("generation_config.json", self.config.to_generation_json().as_bytes())?;
        if let Some(tokenizer) = &self.tokenizer {
            staged.write("tokenizer.json", tokenizer.as_bytes())?;
        }
        Ok(())
    }

    fn jobs(&self, specs: &[TensorSpec]) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (tensor, spec) in specs.iter().enumerate() {
            match spec.part {
                Part::GateUp | Part::Down => jobs.extend(dequantised_jobs(tensor, spec)),
                _ => {
                    let mut offset = 0;
                    for part in spec.part.split() {
                        let elements = part.shape(&self.config).iter().product();
                        for start in (0..elements).step_by(CHUNK_ELEMENTS) {
                            let count = CHUNK_ELEMENTS.min(elements - start);
                            let piece = Piece::Elements { part, start, count };
                            jobs.push(Job { tensor, layer: spec.layer, offset, piece });
                            offset += (count * part.element_bytes()) as u64;
                        }
                    }
                }
            }
        }
        jobs
    }
}

/// Bytes of one tensor that one thread makes and writes at once.
struct Job {
    tensor: usize, // position in the layout's list
    layer: Option<usize>,
    offset: u64, // in the tensor
    piece: Piece,
}

enum Piece {
    /// Consecutive elements of a part as it is stored.
    Elements { part: Part, start: usize, count: usize },
    /// The rows (of `rows` columns) that one MXFP4 block per output covers: `[32, rows]` of a dequantised `[in, out]`.
    Dequantised { blocks: Part, scales: Part, expert: usize, rows: usize, row_blocks: usize, block: usize },
}

impl Job {
    fn fill(&self, source: &Source, out: &mut Vec<u8>) {
        match self.piece {
            Piece::Elements { part, start, count } => {
                out.resize(count * part.element_bytes(), 0);
                source.fill(part, self.layer, start, out);
            }
            Piece::Dequantised { blocks, scales, expert, rows, row_blocks, block } => {
                out.resize(BLOCK * rows * 2, 0);
                for row in 0..rows {
                    let index = (expert * rows + row) * row_blocks + block;
                    for (i, value) in source.block(blocks, scales, self.layer, index).into_iter().enumerate() {
                        out[(i * rows + row) * 2..][..2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
                    }
                }
            }
        }
    }
}

fn dequantised_jobs(tensor: usize, spec: &TensorSpec) -> impl Iterator<Item = Job> + use<> {
    let (layer, is_gate_up) = (spec.layer, spec.part == Part::GateUp);
    let [experts, inputs, rows] = spec.shape[..] else { unreachable!("expert matrices have three dimensions") };
    let row_blocks = inputs / BLOCK;
    let (blocks, scales) =
        if is_gate_up { (Part::GateUpBlocks, Part::GateUpScales) } else { (Part::DownBlocks, Part::DownScales) };
    (0..experts * row_blocks).map(move |i| Job {
        tensor,
        layer,
        offset: (i * BLOCK * rows * 2) as u64,
        piece: Piece::Dequantised { blocks, scales, expert: i / row_blocks, rows, row_blocks, block: i % row_blocks },
    })
}

/// `original/dtypes.json`: the kind of every tensor by name.
pub(crate) fn original_dtypes(config: &Config) -> String {
    let kind = |spec: &TensorSpec| match spec.part {
        Part::GateUpBlocks | Part::DownBlocks => "FP4",
        Part::GateUpScales | Part::DownScales => "UE8",
        _ => "BF16",
    };
    let specs = Layout::Original.tensors(config);
    let map: serde_json::Map<_, _> = specs.iter().map(|s| (s.name.clone(), kind(s).into())).collect();
    crate::config::pretty(&map.into())
}
