//! Models to load: committed ones, synthetic ones, and random bytes.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use half::bf16;
use tempfile::TempDir;
use tessera_model::checkpoint::{Checkpoint, Layout, Part};
use tessera_model::synth::Spec;
use tessera_model::{Config, Experts, LayerWeights, Linear, Matrix, Weights};

use crate::random::Random;

/// The demo model, which is part of the test as it is part of the program.
pub fn demo() -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("model.safetensors", include_bytes!("../../../../../assets/demo/model.safetensors").as_slice()),
        ("config.json", include_bytes!("../../../../../assets/demo/config.json").as_slice()),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

/// `fixtures`, which is elsewhere when the tests have left the repository.
pub fn fixtures() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::env::var_os("TESSERA_FIXTURES").map_or_else(here, PathBuf::from)
}

/// Those of `fixtures/parity`.
pub fn parity() -> Vec<Checkpoint> {
    let folder = fixtures().join("parity");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let folders = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.map(|path| Checkpoint::open(&path).unwrap()).collect()
}

pub fn synth(config: Config, seed: u64) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let spec = Spec { threads, ..Spec::new(config, seed) };
    spec.write(&path, &|_, _| ControlFlow::Continue(())).unwrap();
    (folder, Checkpoint::open(&path).unwrap())
}

/// Random bits everywhere, NaN included; scales in a range.
pub struct Owned {
    pub config: Config,
    values: HashMap<(Option<usize>, Part), Vec<bf16>>,
    bytes: HashMap<(Option<usize>, Part), Vec<u8>>,
}

impl Owned {
    /// `scales` of gate_up and down; both ends occur.
    pub fn random(config: Config, scales: [(u8, u8); 2]) -> Self {
        let (mut values, mut bytes) = (HashMap::new(), HashMap::new());
        let mut random = Random(17);
        for spec in Layout::Hf.tensors(&config) {
            let (key, n) = ((spec.layer, spec.part), spec.elements());
            match spec.part {
                Part::GateUpBlocks | Part::DownBlocks => drop(bytes.insert(key, random.bytes(n))),
                Part::GateUpScales | Part::DownScales => {
                    let (low, high) = scales[usize::from(spec.part == Part::DownScales)];
                    let mut scales = random.bytes_between(low, high, n);
                    (scales[n / 2], scales[n / 3]) = (low, high);
                    bytes.insert(key, scales);
                }
                _ => {
                    let bits = random.bytes(2 * n);
                    let value = |pair: &[u8]| bf16::from_le_bytes([pair[0], pair[1]]);
                    values.insert(key, bits.chunks_exact(2).map(value).collect());
                }
            }
        }
        Self { config, values, bytes }
    }

    pub fn bytes_mut(&mut self, layer: usize, part: Part) -> &mut [u8] {
        self.bytes.get_mut(&(Some(layer), part)).unwrap()
    }

    pub fn view(&self) -> Weights<'_> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let outside = |part| self.values[&(None, part)].as_slice();
        Weights {
            embed: Matrix::new(outside(Part::Embed), vocab, hidden),
            layers: (0..self.config.num_hidden_layers).map(|layer| self.layer(layer)).collect(),
            final_norm: outside(Part::FinalNorm),
            lm_head: Matrix::new(outside(Part::LmHead), vocab, hidden),
        }
    }

    fn layer(&self, layer: usize) -> LayerWeights<'_> {
        let c = &self.config;
        let (hidden, inter, experts) = (c.hidden_size, c.intermediate_size, c.num_local_experts);
        let values = |part| self.values[&(Some(layer), part)].as_slice();
        let bytes = |part| self.bytes[&(Some(layer), part)].as_slice();
        let linear =
            |weight, bias, rows, cols| Linear { weight: Matrix::new(values(weight), rows, cols), bias: values(bias) };
        let matrices = |blocks, scales, bias, rows, cols| Experts {
            blocks: bytes(blocks),
            scales: bytes(scales),
            bias: values(bias),
            experts,
            rows,
            cols,
        };
        LayerWeights {
            attn_norm: values(Part::AttnNorm),
            q: linear(Part::Q, Part::QBias, c.q_dim(), hidden),
            k: linear(Part::K, Part::KBias, c.kv_dim(), hidden),
            v: linear(Part::V, Part::VBias, c.kv_dim(), hidden),
            o: linear(Part::O, Part::OBias, hidden, c.q_dim()),
            sinks: values(Part::Sinks),
            mlp_norm: values(Part::MlpNorm),
            router: linear(Part::Router, Part::RouterBias, experts, hidden),
            gate_up: matrices(Part::GateUpBlocks, Part::GateUpScales, Part::GateUpBias, 2 * inter, hidden),
            down: matrices(Part::DownBlocks, Part::DownScales, Part::DownBias, hidden, inter),
        }
    }
}
