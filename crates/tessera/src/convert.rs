//! `tessera convert`: a checkpoint in another layout.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::json;
use tessera_model::checkpoint::Layout;
use tessera_model::convert::{Conversion, Report};

use crate::progress::BytesDone;

/// Write a checkpoint in another layout, or quantise its experts
///
/// Original to Hugging Face and back copy every byte. Experts that are dequantised (BF16) become MXFP4 by the OCP
/// Microscaling rule, and the relative error of every tensor is reported; those that came from MXFP4 come back exactly.
/// The destination appears only when it is complete.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera convert gpt-oss-20b-bf16 gpt-oss-20b-mxfp4          quantise the experts
  tessera convert gpt-oss-20b/original gpt-oss-20b-hf         OpenAI's layout to Hugging Face's
  tessera convert --to original gpt-oss-20b gpt-oss-20b-oai   and back")]
pub struct Args {
    /// Checkpoint to read: a folder, a .safetensors file, an index, or a hub id
    source: String,
    /// Folder to create
    destination: PathBuf,
    /// Layout to write
    #[arg(long, value_enum, default_value_t = Target::Hf)]
    to: Target,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// Hugging Face: split q, k and v, files of at most 5 GB with an index
    Hf,
    /// OpenAI's own, in the folder `original` of the destination
    Original,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let source = crate::source::resolve(&args.source)?;
    let conversion = Conversion::to(match args.to {
        Target::Hf => Layout::Hf,
        Target::Original => Layout::Original,
    });
    let bar = BytesDone::start("converting");
    let report = conversion
        .run(&source, &args.destination, &|done, total| bar.at(done, total))
        .with_context(|| format!("cannot convert {}", source.display()))?;
    bar.finish();
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    if args.json {
        writeln!(io::stdout(), "{}", as_json(&report))?;
    } else {
        print(&report, &args.destination.display().to_string())?;
    }
    Ok(())
}

fn print(report: &Report, destination: &str) -> io::Result<()> {
    let mut out = io::stdout();
    if !report.errors.is_empty() {
        writeln!(out, "{:<52} {:>14} {:>14}", "quantised tensor", "relative error", "max abs error")?;
    }
    for e in &report.errors {
        writeln!(out, "{:<52} {:>14.3e} {:>14.3e}", e.tensor, e.relative_error, e.max_abs_error)?;
    }
    let (tensors, bytes) = (report.tensors, report.bytes);
    writeln!(out, "{} -> {}: {tensors} tensors, {bytes} bytes in {destination}", report.from, report.to)
}

fn as_json(report: &Report) -> serde_json::Value {
    let quantised: Vec<_> = report
        .errors
        .iter()
        .map(|e| json!({"tensor": e.tensor, "relative_error": e.relative_error, "max_abs_error": e.max_abs_error}))
        .collect();
    json!({
        "from": report.from.name(),
        "to": report.to.name(),
        "tensors": report.tensors,
        "bytes": report.bytes,
        "quantised": quantised,
        "notes": report.notes,
    })
}
