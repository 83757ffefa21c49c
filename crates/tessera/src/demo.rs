//! The demo model: a small trained checkpoint that is part of the program.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What `--model` calls it.
pub const NAME: &str = "demo";

/// The files of `assets/demo` that a checkpoint consists of.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../../../assets/demo/config.json")),
    ("generation_config.json", include_bytes!("../../../assets/demo/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../assets/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../assets/demo/tokenizer_config.json")),
    ("chat_template.jinja", include_bytes!("../../../assets/demo/chat_template.jinja")),
    ("model.safetensors", include_bytes!("../../../assets/demo/model.safetensors")),
];

/// The demo for somebody who named no model: says on stderr what it is.
///
/// # Errors
/// See [`folder`].
pub fn as_default() -> anyhow::Result<PathBuf> {
    eprintln!(
        "no model given: using the built-in demo model, which does little sums and a few word games; name a real one with \
         --model openai/gpt-oss-20b, --model FOLDER or TESSERA_MODEL"
    );
    folder()
}

/// The folder of the demo checkpoint: checkpoints are mapped from files, so it is unpacked to the cache once, and again
/// where it is not what it should be.
///
/// # Errors
/// When it cannot be written.
pub fn folder() -> anyhow::Result<PathBuf> {
    let folder = cache_folder().join(NAME);
    unpack(&folder).with_context(|| {
        format!(
            "cannot unpack the demo model to {}; set XDG_CACHE_HOME to a folder that can be written",
            folder.display()
        )
    })?;
    Ok(folder)
}

/// Several processes may start at once, and other versions of the program may have another demo: whoever holds the lock
/// compares and writes, file by file, and a file that is right is left alone, because others may have it open.
fn unpack(folder: &Path) -> io::Result<()> {
    if is_unpacked(folder) {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let lock = std::fs::File::create(folder.with_extension("lock"))?;
    lock.lock()?;
    FILES.iter().try_for_each(|(name, content)| put(folder, name, content))
}

fn is_unpacked(folder: &Path) -> bool {
    FILES.iter().all(|(name, content)| holds(&folder.join(name), content))
}

fn holds(file: &Path, content: &[u8]) -> bool {
    std::fs::read(file).is_ok_and(|found| found == content)
}

/// Other processes may have the file mapped: it is replaced as a whole, never changed.
fn put(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let file = folder.join(name);
    if holds(&file, content) {
        return Ok(());
    }
    let part = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    std::fs::write(&part, content).and_then(|()| std::fs::rename(&part, &file)).inspect_err(|_| {
        let _ = std::fs::remove_file(&part); // the first error is the one to report
    })
}

/// Where this program keeps what it can make again.
pub fn cache_folder() -> PathBuf {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("tessera")
}
