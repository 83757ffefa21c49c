//! A checkpoint with its tokenizer, opened together: parsing the vocabulary takes as long as checking the weights.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::checkpoint::Checkpoint;
use tessera_model::synth::Like;
use tessera_model::{Config, Token};

use crate::executor::Weights;
use crate::{demo, source};

/// What stands for a model that no argument names.
const VARIABLE: &str = "TESSERA_MODEL";
/// Of a JSON list of token ids: far beyond the longest context's.
const MAX_TOKENS_BYTES: u64 = 64 << 20;

/// A checkpoint, and where it is.
pub struct Opened {
    /// As the user calls it.
    pub name: String,
    pub path: PathBuf,
    pub checkpoint: Checkpoint,
}

/// The shapes of a published model with random weights, which the GPU makes: those that `tessera synth` would write.
pub struct Dummy {
    pub name: String,
    pub config: Config,
    pub seed: u64,
}

/// A model for token ids in and out.
#[allow(clippy::large_enum_variant, reason = "a command has one")]
pub enum Model {
    Opened(Opened),
    Dummy(Dummy),
}

/// Of `tessera synth` without `--seed`.
const DUMMY_SEED: u64 = 1;

impl Dummy {
    pub fn like(like: Like) -> Self {
        Self { name: format!("random {}", like.name()), config: like.config(), seed: DUMMY_SEED }
    }
}

impl Model {
    /// Opens the model that `spec` names as [`without_tokenizer`] does, unless random weights stand in its place.
    pub fn open(spec: Option<&str>, dummy: Option<Like>) -> anyhow::Result<Self> {
        match dummy {
            None => without_tokenizer(spec).map(Self::Opened),
            Some(like) => Ok(Self::Dummy(Dummy::like(like))),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Opened(opened) => &opened.name,
            Self::Dummy(dummy) => &dummy.name,
        }
    }

    pub fn config(&self) -> &Config {
        self.weights().config()
    }

    pub fn weights(&self) -> Weights<'_> {
        match self {
            Self::Opened(opened) => Weights::Checkpoint(&opened.checkpoint),
            Self::Dummy(dummy) => Weights::Dummy(dummy),
        }
    }

    /// Where files beside the weights would be.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Opened(opened) => Some(&opened.path),
            Self::Dummy(_) => None,
        }
    }
}

/// Finds the model that `spec` names, else that of the environment, else the demo, and opens it together with its
/// tokenizer.
///
/// # Errors
/// When either cannot be opened, or the tokenizer is not this model's.
pub fn with_tokenizer(spec: Option<&str>) -> anyhow::Result<(Opened, Tokenizer)> {
    let (name, path) = locate(spec)?;
    let (opened, tokenizer) = std::thread::scope(|scope| {
        let tokenizer = scope.spawn(|| source::tokenizer(&path));
        let opened = open(name, &path);
        (opened, tokenizer.join().expect("reading a tokenizer does not panic"))
    });
    let (opened, tokenizer) = (opened?, tokenizer?);
    check_match(&tokenizer, &opened.checkpoint).with_context(|| path.display().to_string())?;
    Ok((opened, tokenizer))
}

/// As [`with_tokenizer`], for token ids in and out.
pub fn without_tokenizer(spec: Option<&str>) -> anyhow::Result<Opened> {
    let (name, path) = locate(spec)?;
    open(name, &path)
}

/// Name and path of the model that `spec` names, else that of the environment, else the demo.
fn locate(spec: Option<&str>) -> anyhow::Result<(String, PathBuf)> {
    let in_environment = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let named = spec.map(str::to_owned).or_else(|| in_environment().map(|name| name.to_string_lossy().into_owned()));
    match named {
        Some(name) => source::resolve(&name).map(|path| (name, path)),
        None => demo::as_default().map(|path| (demo::NAME.to_owned(), path)),
    }
}

fn open(name: String, path: &Path) -> anyhow::Result<Opened> {
    let checkpoint = Checkpoint::open(path)?;
    tracing::info!("opened {} ({} layout)", path.display(), checkpoint.layout());
    for note in checkpoint.notes() {
        eprintln!("note: {note}");
    }
    Ok(Opened { name, path: path.to_owned(), checkpoint })
}

/// Tokenizers of other models are told by ids that the model does not have, or by the lack of its stop tokens.
fn check_match(tokenizer: &Tokenizer, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let config = checkpoint.config();
    let max_id = tokenizer.max_id();
    if max_id as usize >= config.vocab_size {
        bail!(
            "tokenizer.json has ids up to {max_id}, but the model's vocabulary ends at {}: it is another model's \
             tokenizer; fetch the one published with this checkpoint",
            config.vocab_size - 1
        );
    }
    let stops = &config.eos_token_ids;
    if !stops.is_empty() && !stops.iter().any(|&id| tokenizer.is_control(id)) {
        bail!(
            "tokenizer.json has none of the model's stop tokens {stops:?} as control tokens: it is another model's \
             tokenizer; fetch the one published with this checkpoint"
        );
    }
    Ok(())
}

/// Reads a JSON array of token ids, each in the model's vocabulary.
pub fn read_token_ids(file: &Path, vocab_size: usize) -> anyhow::Result<Vec<Token>> {
    let name = || file.display().to_string();
    let mut json = Vec::new();
    File::open(file).and_then(|file| file.take(MAX_TOKENS_BYTES + 1).read_to_end(&mut json)).with_context(name)?;
    if json.len() as u64 > MAX_TOKENS_BYTES {
        bail!("{}: more than {MAX_TOKENS_BYTES} bytes, which no prompt's tokens take", name());
    }
    let ids: Vec<Token> =
        serde_json::from_slice(&json).with_context(|| format!("{}: expected a JSON array of token ids", name()))?;
    if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
        bail!("{}: token {at} has id {}, but the model's vocabulary ends at {}", name(), ids[at], vocab_size - 1);
    }
    if ids.is_empty() {
        bail!("{}: the list of tokens is empty: nothing to continue", name());
    }
    Ok(ids)
}

/// Tokens that end an answer: the configuration's, and harmony's where the tokenizer has them.
pub fn stop_ids(config: &Config, tokenizer: Option<&Tokenizer>) -> Vec<Token> {
    let mut ids = config.eos_token_ids.clone();
    if let Some(Ok(specials)) = tokenizer.map(Tokenizer::specials) {
        ids.extend(specials.stop_ids());
    }
    ids
}
