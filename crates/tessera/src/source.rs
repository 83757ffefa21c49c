//! What a user names as a model, resolved to a path that a checkpoint can be opened from.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tessera_harmony::tokenizer::Tokenizer;

use crate::demo;
use crate::hub::{self, RepoId, Settings};

/// `demo`, a folder, a `.safetensors` file, an index, or a hub id (from the Hugging Face cache, else downloaded).
///
/// # Errors
/// When there is no such path and `spec` is no hub id, or the hub cannot deliver.
pub fn resolve(spec: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(spec);
    if spec == demo::NAME {
        if path.exists() {
            eprintln!("note: {spec} is the built-in demo model; the {spec} that is here is ./{spec}");
        }
        return demo::folder();
    }
    if path.exists() {
        return Ok(path.to_owned());
    }
    match RepoId::parse(spec) {
        Some(repo) => hub::locate(&repo, &Settings::from_env())
            .with_context(|| format!("{spec}: there is no such file or folder here, so it was looked for on the hub")),
        None if spec.is_empty() => bail!(
            "the model's name is empty; name a checkpoint folder, a .safetensors file or its index, a hub id such as \
             openai/gpt-oss-20b, or demo for the built-in model"
        ),
        None => bail!(
            "{spec}: no such file or folder, and no hub id either (those look like openai/gpt-oss-20b); name a checkpoint \
             folder, a .safetensors file or its index, or demo for the built-in model"
        ),
    }
}

/// Whether `text`, given as something else, may be meant for a model.
pub fn may_be_model(text: &str) -> bool {
    text == demo::NAME || Path::new(text).is_dir() || RepoId::parse(text).is_some()
}

/// The tokenizer of the checkpoint at `path`: beside the weights, or a folder above where the weights are in `original`.
///
/// # Errors
/// When there is none, or it cannot be read; the message says where it was looked for.
pub fn tokenizer(path: &Path) -> anyhow::Result<Tokenizer> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let places = [folder.join("tokenizer.json"), folder.join("..").join("tokenizer.json")];
    let above_counts = folder.file_name().is_some_and(|name| name == "original");
    let found = places.iter().take(if above_counts { 2 } else { 1 }).find(|place| place.exists());
    match found {
        Some(file) => Ok(Tokenizer::from_file(file)?),
        None => bail!(
            "{}: the checkpoint has no tokenizer.json; copy it from where the checkpoint was published, or give token ids \
             with --tokens FILE.json",
            places[0].display()
        ),
    }
}
