//! The model of a first run: tiny, random, made on the spot.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tessera_model::checkpoint::Layout;
use tessera_model::synth::Like;

use crate::synth;

const SEED: u64 = 1;

/// The folder of the demo checkpoint, made when it is not there yet. Says on stderr what it is.
///
/// # Errors
/// When it cannot be written.
pub fn folder() -> anyhow::Result<PathBuf> {
    let folder = cache_folder().join(concat!("demo-", env!("CARGO_PKG_VERSION")));
    eprintln!(
        "no model given: using a tiny one of random weights, which writes nonsense; name a real one with \
         --model openai/gpt-oss-20b, --model FOLDER or TESSERA_MODEL"
    );
    if !folder.join("config.json").exists() {
        make(&folder).with_context(|| format!("cannot make the demo model {}", folder.display()))?;
    }
    Ok(folder)
}

fn make(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder.parent().unwrap_or(folder))?;
    let written = synth::spec(Like::Tiny, SEED, Layout::Hf).write(folder, &|_, _| ControlFlow::Continue(()));
    match written {
        // Another process was faster.
        Err(_) if folder.join("config.json").exists() => Ok(()),
        result => Ok(result?),
    }
}

/// Where this program keeps what it can make again.
pub fn cache_folder() -> PathBuf {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("tessera")
}
