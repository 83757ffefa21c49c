//! `--answers`: every answer as a line of JSON, in a file that has its name when all are there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use tessera_harmony::message::{Channel, Message};
use tessera_model::Token;

use super::check::Ending;
use super::item::Item;

/// An answer to an item, and what became of it.
pub struct Answer<'a> {
    /// The item's place among all, whether asked or not.
    pub index: usize,
    pub item: &'a Item,
    pub prompt: &'a [Token],
    pub tokens: &'a [Token],
    pub messages: Vec<Message>,
    pub ending: Ending,
    pub right: bool,
}

/// The file, under the name of `partial` until [`Answers::finish`].
pub struct Answers {
    file: BufWriter<File>,
    partial: PathBuf,
    path: PathBuf,
}

impl Answers {
    /// What is there under the name `path` is left alone until [`Answers::finish`]; `items` is not to be overwritten.
    pub fn create(path: &Path, items: Option<&Path>) -> anyhow::Result<Self> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        // A pipe or a device cannot be replaced by a file.
        let is_replaced = std::fs::metadata(&path).map_or(true, |found| found.is_file());
        let partial = if is_replaced { with_ending(&path, ".partial") } else { path.clone() };
        if [&path, &partial].into_iter().any(|file| is_same(file, items)) {
            bail!("--answers {} would overwrite --items; name another file", path.display());
        }
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(Self { file: BufWriter::new(file), partial, path })
    }

    pub fn write(&mut self, answer: &Answer) -> anyhow::Result<()> {
        let said = |wanted: fn(&Message) -> bool| -> String {
            answer.messages.iter().filter(|m| wanted(m)).map(Message::text).collect()
        };
        let line = json!({
            "index": answer.index,
            "family": answer.item.family,
            "right": answer.right,
            "finish_reason": answer.ending.name(),
            "recipient": answer.messages.last().and_then(|last| last.recipient.as_deref()),
            "text": said(|m| m.channel != Some(Channel::Analysis)),
            "reasoning": said(|m| m.channel == Some(Channel::Analysis)),
            "prompt_tokens": answer.prompt,
            "tokens": answer.tokens,
        });
        writeln!(self.file, "{line}").with_context(|| self.cannot_write())
    }

    /// All answers are there: gives the file its name.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().with_context(|| self.cannot_write())?;
        if self.partial != self.path {
            std::fs::rename(&self.partial, &self.path)
                .with_context(|| format!("cannot write {}", self.path.display()))?;
        }
        Ok(())
    }

    /// Some are missing: where those are kept that are there.
    pub fn keep_partial(mut self) -> anyhow::Result<PathBuf> {
        self.file.flush().with_context(|| self.cannot_write())?;
        Ok(self.partial)
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.partial.display())
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

fn is_same(file: &Path, items: Option<&Path>) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(file).is_some_and(|file| Some(file) == items.and_then(real))
}
