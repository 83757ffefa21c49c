//! Everything that can be said of a checkpoint, broken ones included. [`Checkpoint`](super::Checkpoint) is a survey
//! that found no reason to refuse.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::layout::{HF_LAYER_PREFIX, Layout, ORIGINAL_LAYER_PREFIX, Part, TensorSpec};
use super::scan::{self, Scanned};
use super::shard::{Shard, TensorEntry, parse_header};
use super::source::Source;
use super::{CheckpointError, Dtype};
use crate::config::Config;

/// Unknown tensors that a note names; the rest are counted.
const MAX_NAMED_EXTRAS: usize = 8;

/// How much of a checkpoint is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Names, dtypes, shapes, byte ranges, configuration.
    Structure,
    /// And the values of scales and of all small tensors.
    Values,
}

/// What a checkpoint's files hold and why they would not open.
#[derive(Debug)]
pub struct Survey {
    pub config: Option<Config>,
    pub layout: Option<Layout>,
    /// By file, then by offset.
    pub tensors: Vec<TensorEntry>,
    /// Remarks that refuse nothing: dropped original keys, unknown tensors.
    pub notes: Vec<String>,
    /// Every reason not to open the checkpoint; the first is the one that `open` gives.
    pub refusals: Vec<CheckpointError>,
    pub(super) path: PathBuf,
    pub(super) shards: Vec<Shard>,
    /// Where each part lies, fused parts split.
    pub(super) parts: HashMap<(Option<usize>, Part), Span>,
    by_name: HashMap<String, usize>,
    folder: PathBuf,
    config_text: String,
}

/// A byte range of a file that holds one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub file: usize,
    pub offset: usize,
    pub bytes: usize,
}

/// How many there are of a file that is named as the published shards are, `..-00001-of-00003.safetensors`.
fn files_of(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    name.rsplit_once("-of-")?.1.parse().ok()
}

impl Survey {
    pub fn take(path: &Path, depth: Depth) -> Self {
        let mut survey = Self {
            config: None,
            layout: None,
            tensors: Vec::new(),
            notes: Vec::new(),
            refusals: Vec::new(),
            path: path.to_owned(),
            shards: Vec::new(),
            parts: HashMap::new(),
            by_name: HashMap::new(),
            folder: PathBuf::new(),
            config_text: String::new(),
        };
        match Source::resolve(path) {
            Ok(source) => survey.read(source, depth),
            Err(error) => survey.refusals.push(error),
        }
        survey
    }

    /// The files whose tensors are listed, in the order that entries count them.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.shards.iter().map(|s| (s.path.as_path(), s.len))
    }

    /// The tensors that the layout and the configuration ask for, by name.
    pub fn specs_by_name(&self) -> HashMap<String, TensorSpec> {
        let (Some(layout), Some(config)) = (self.layout, &self.config) else { return HashMap::new() };
        layout.tensors(config).into_iter().map(|spec| (spec.name.clone(), spec)).collect()
    }

    /// How often each scale byte occurs in a projection's experts, all layers together: `Part::GateUpScales` or
    /// `Part::DownScales`. Reads all of them.
    pub fn scale_histogram(&self, part: Part) -> [u64; 256] {
        let spans = self.parts.iter().filter(|((_, p), _)| *p == part);
        let scanned: Vec<_> =
            spans.map(|(_, s)| Scanned { name: "", part, shape: &[], bytes: self.bytes(*s) }).collect();
        scan::histogram(&scanned)
    }

    /// The folder that holds the weights.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The text of `config.json`.
    pub(crate) fn config_text(&self) -> &str {
        &self.config_text
    }

    /// The bytes of a part that the survey found to be in order.
    pub(crate) fn part(&self, layer: Option<usize>, part: Part) -> &[u8] {
        self.bytes(self.parts[&(layer, part)])
    }

    /// Reads bytes of a part, from `start` in it, without the mapping.
    pub(crate) fn read_part(
        &self,
        layer: Option<usize>,
        part: Part,
        start: usize,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let span = self.parts[&(layer, part)];
        self.shards[span.file].read_at(span.offset + start, out)
    }

    /// Whether no file's length or time of change is another than when it was opened.
    pub(crate) fn still_unchanged(&self) -> Result<(), CheckpointError> {
        self.shards.iter().try_for_each(Shard::still_unchanged)
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        &self.shards[span.file].map[span.offset..][..span.bytes]
    }

    fn read(&mut self, source: Source, depth: Depth) {
        self.notes.extend(source.notes.iter().cloned());
        self.folder.clone_from(&source.folder);
        for path in &source.shards {
            if let Err(error) = self.read_shard(path) {
                self.refusals.push(error);
            }
        }
        let all_read = self.refusals.is_empty();
        if all_read {
            self.check_index(&source);
        }
        let mut tied = false;
        match source.configs() {
            Err(error) => self.refusals.push(error),
            Ok((config, generation)) => {
                tied = is_tied(&config);
                self.config_text.clone_from(&config);
                match Config::from_json(&config, generation.as_deref()) {
                    Ok(config) => self.config = Some(config),
                    Err(reason) => {
                        let folder = self.path.clone();
                        self.refusals.push(CheckpointError::Config { folder, reason });
                    }
                }
            }
        }
        self.detect_layout(all_read);
        if let (Some(layout), Some(config)) = (self.layout, self.config.clone()) {
            let missing = if all_read { Missing::Refused } else { Missing::Unknown };
            self.check_tensors(layout, &config, missing, tied);
            if depth == Depth::Values {
                self.scan(layout, &config);
            }
        }
        let changed = self.shards.iter().filter_map(|s| s.still_unchanged().err());
        self.refusals.extend(changed.collect::<Vec<_>>());
    }

    fn read_shard(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let shard = Shard::open(path)?;
        let file = self.shards.len();
        let entries = parse_header(path, file, &shard.map)?;
        self.shards.push(shard);
        for entry in entries {
            if let Some(&first) = self.by_name.get(&entry.name) {
                let first = self.shards[self.tensors[first].file].path.clone();
                return Err(CheckpointError::DuplicateTensor { tensor: entry.name, first, second: path.to_owned() });
            }
            self.by_name.insert(entry.name.clone(), self.tensors.len());
            self.tensors.push(entry);
        }
        Ok(())
    }

    /// Every tensor of the index is in the file that it names.
    fn check_index(&mut self, source: &Source) {
        let Some(index) = &source.index else { return };
        for (tensor, shard) in &index.weight_map {
            let file = self.by_name.get(tensor).map(|&i| &self.shards[self.tensors[i].file].path);
            if file.is_none_or(|f| !f.ends_with(shard)) {
                let (index, tensor, shard) = (index.path.clone(), tensor.clone(), shard.clone());
                self.refusals.push(CheckpointError::IndexMismatch { index, tensor, shard });
            }
        }
    }

    fn detect_layout(&mut self, all_read: bool) {
        let is_there = |f: &dyn Fn(&str) -> bool| self.tensors.iter().any(|t| f(&t.name));
        let hf = is_there(&|name| name.starts_with(HF_LAYER_PREFIX));
        let original = is_there(&|name| name.starts_with(ORIGINAL_LAYER_PREFIX));
        let blocks = is_there(&|name| name.ends_with("_blocks"));
        let dequantised = is_there(&|name| name.ends_with(".experts.gate_up_proj"));
        self.layout = match (hf, original) {
            (true, _) if dequantised && !blocks => Some(Layout::Bf16),
            (true, _) => Some(Layout::Hf),
            (false, true) => Some(Layout::Original),
            (false, false) => None,
        };
        if self.layout.is_none() && all_read {
            let names: Vec<&str> = self.tensors.iter().take(3).map(|t| t.name.as_str()).collect();
            let found = if names.is_empty() { "no tensors".into() } else { names.join(", ") };
            self.refusals.push(CheckpointError::UnknownLayout { path: self.path.clone(), found });
        }
    }

    fn check_tensors(&mut self, layout: Layout, config: &Config, missing: Missing, tied: bool) {
        let specs = layout.tensors(config);
        if layout == Layout::Bf16 {
            let blocks = Layout::Hf.tensors(config).into_iter().find(|s| s.part == Part::GateUpBlocks);
            let missing = blocks.map_or(String::new(), |s| s.name);
            self.refusals.push(CheckpointError::Bf16Only { path: self.path.clone(), missing });
        }
        let (mut used, mut bytes) = (0, 0);
        for spec in &specs {
            let misaligned = self.misaligned(spec);
            self.refusals.extend(misaligned);
            match self.by_name.get(&spec.name).map(|&i| &self.tensors[i]) {
                None if missing == Missing::Unknown => {}
                None => self.refusals.push(self.missing(spec, tied)),
                Some(entry) => match self.check_tensor(entry, spec) {
                    Err(error) => self.refusals.push(error),
                    Ok(()) => {
                        used += 1;
                        bytes += entry.bytes;
                        let (file, offset) = (entry.file, entry.offset as usize);
                        self.add_parts(spec, config, file, offset);
                    }
                },
            }
        }
        self.note_extras(layout, config, &specs);
        if used == specs.len() && layout != Layout::Bf16 {
            self.refusals.extend(check_published_total(config, layout, used, bytes).err());
        }
    }

    fn missing(&self, spec: &TensorSpec, tied: bool) -> CheckpointError {
        if tied && spec.part == Part::LmHead {
            return CheckpointError::TiedHead { tensor: spec.name.clone() };
        }
        let (path, tensor) = (self.path.clone(), spec.name.clone());
        if let Some(files) = files_of(&path).filter(|&files| files > self.shards.len()) {
            return CheckpointError::OneOfSeveral { file: path, files, tensor };
        }
        CheckpointError::MissingTensor { path, tensor, dtype: spec.dtype.clone(), shape: spec.shape.clone() }
    }

    fn check_tensor(&self, entry: &TensorEntry, spec: &TensorSpec) -> Result<(), CheckpointError> {
        let (file, tensor) = (self.shards[entry.file].path.clone(), entry.name.clone());
        if entry.dtype != spec.dtype {
            let (expected, found) = (spec.dtype.clone(), entry.dtype.clone());
            return Err(CheckpointError::Dtype { file, tensor, expected, found });
        }
        if entry.shape != spec.shape {
            let (expected, found) = (spec.shape.clone(), entry.shape.clone());
            return Err(CheckpointError::Shape { file, tensor, expected, found });
        }
        Ok(())
    }

    /// Refused by backends, who take BF16 values in place, but still copied by a conversion.
    fn misaligned(&self, spec: &TensorSpec) -> Option<CheckpointError> {
        let entry = &self.tensors[*self.by_name.get(&spec.name)?];
        let (file, tensor) = (self.shards[entry.file].path.clone(), entry.name.clone());
        let is_odd = entry.dtype == Dtype::Bf16 && !entry.offset.is_multiple_of(2);
        is_odd.then_some(CheckpointError::Misaligned { file, tensor, offset: entry.offset })
    }

    fn add_parts(&mut self, spec: &TensorSpec, config: &Config, file: usize, mut offset: usize) {
        for part in spec.part.split() {
            let bytes = part.shape(config).iter().product::<usize>() * part.element_bytes();
            self.parts.insert((spec.layer, part), Span { file, offset, bytes });
            offset += bytes;
        }
    }

    /// Notes on tensors that the layout does not ask for.
    fn note_extras(&mut self, layout: Layout, config: &Config, specs: &[TensorSpec]) {
        let wanted: HashMap<&str, ()> = specs.iter().map(|s| (s.name.as_str(), ())).collect();
        let originals: HashMap<String, ()> = match layout {
            Layout::Original => HashMap::new(),
            _ => Layout::Original.tensors(config).into_iter().map(|s| (s.name, ())).collect(),
        };
        let extras = self.tensors.iter().filter(|t| !wanted.contains_key(t.name.as_str()));
        let (dropped, unknown): (Vec<_>, Vec<_>) = extras.partition(|t| {
            layout != Layout::Original && (t.name.starts_with(ORIGINAL_LAYER_PREFIX) || originals.contains_key(&t.name))
        });
        let mut notes = Vec::new();
        if !dropped.is_empty() {
            let n = dropped.len();
            notes.push(format!(
                "both layouts are there: {n} tensors of the original one are dropped, the converted ones are used"
            ));
        }
        for extra in unknown.iter().take(MAX_NAMED_EXTRAS) {
            notes.push(format!("unknown tensor {} ({} {:?}) is ignored", extra.name, extra.dtype, extra.shape));
        }
        if unknown.len() > MAX_NAMED_EXTRAS {
            notes.push(format!("{} more unknown tensors are ignored", unknown.len() - MAX_NAMED_EXTRAS));
        }
        self.notes.extend(notes);
    }

    fn scan(&mut self, layout: Layout, config: &Config) {
        let specs = layout.tensors(config);
        let good = |spec: &&TensorSpec| {
            scan::is_scanned(spec.part)
                && spec.part.split().iter().all(|part| self.parts.contains_key(&(spec.layer, *part)))
        };
        let scanned: Vec<Scanned> = specs
            .iter()
            .filter(good)
            .map(|spec| {
                let first = self.parts[&(spec.layer, spec.part.split()[0])];
                let whole = Span { bytes: spec.bytes() as usize, ..first };
                Scanned { name: &spec.name, part: spec.part, shape: &spec.shape, bytes: self.bytes(whole) }
            })
            .collect();
        let refusals = scan::scan(&scanned);
        self.refusals.extend(refusals);
    }
}

/// What an absent tensor means: where a file could not be read, nothing.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Refused,
    Unknown,
}

/// Whether config.json says that the head is the embedding.
fn is_tied(config_json: &str) -> bool {
    let value: Option<serde_json::Value> = serde_json::from_str(config_json).ok();
    value.is_some_and(|v| v.get("tie_word_embeddings") == Some(&serde_json::Value::Bool(true)))
}

/// Tensors and bytes of the published checkpoints, told by their layers, experts and width: the sum over the shapes
/// that were checked one by one must come out there, too.
pub(super) fn check_published_total(
    config: &Config,
    layout: Layout,
    tensors: usize,
    bytes: u64,
) -> Result<(), CheckpointError> {
    if (config.hidden_size, config.intermediate_size, config.vocab_size) != (2880, 2880, 201_088) {
        return Ok(());
    }
    let (model, hf_tensors, original_tensors, expected_bytes) =
        match (config.num_hidden_layers, config.num_local_experts) {
            (24, 32) => ("20b", 459, 363, 13_761_264_768),
            (36, 128) => ("120b", 687, 543, 65_248_815_744),
            _ => return Ok(()),
        };
    let expected_tensors = if layout == Layout::Original { original_tensors } else { hf_tensors };
    if (tensors, bytes) == (expected_tensors, expected_bytes) {
        return Ok(());
    }
    Err(CheckpointError::PublishedTotal { model, tensors, bytes, expected_tensors, expected_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Like;

    #[test]
    fn a_total_that_is_not_the_published_one_is_refused() {
        let check = |like: Like, tensors, bytes| check_published_total(&like.config(), Layout::Hf, tensors, bytes);
        check(Like::Gpt20b, 459, 13_761_264_768).unwrap();
        check(Like::Gpt120b, 687, 65_248_815_744).unwrap();
        check(Like::Tiny, 1, 1).unwrap();
        let text = check(Like::Gpt20b, 459, 13_761_264_770).unwrap_err().to_string();
        assert!(text.contains("13761264770") && text.contains("gpt-oss-20b has 459 of 13761264768"), "{text}");
        assert!(check(Like::Gpt120b, 686, 65_248_815_744).is_err());
    }
}
