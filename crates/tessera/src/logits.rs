//! `tessera logits`: token ids in, logits out, for people who compare engines.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tessera_cuda::MAX_STEP_LOGITS;
use tessera_model::synth::Like;
use tessera_model::{Limits, Token};

use crate::args::{at_least_one, published_model};
use crate::executor::{DeviceArgs, Notes, Precision, StepTokens, Wish};
use crate::interrupt::{self, Second};
use crate::npy;
use crate::opened::{self, Model};
use crate::output;
use crate::session::Session;

/// Positions of one step: their logits, 0.8 MB each for gpt-oss, are held in memory.
const CHUNK: StepTokens = StepTokens { cpu: 128, gpu: MAX_STEP_LOGITS };

/// Write the logits of a list of tokens
///
/// The output is a NumPy file of float32 [N, vocabulary]: row i holds the logits for the token after position i of the
/// last N.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  echo '[200006, 1428, 200008]' > ids.json
  tessera logits openai/gpt-oss-20b --tokens ids.json --out logits.npy
  tessera logits ./gpt-oss-20b --tokens ids.json --last 1 --precision f32 --out last.npy
  python -c \"import numpy; print(numpy.load('logits.npy').argmax(-1))\"")]
pub struct Args {
    /// Checkpoint folder, .safetensors file, index, hub id or demo
    #[arg(required_unless_present = "load_dummy")]
    model: Option<String>,
    /// Instead of a model: its shapes with random weights, made on the GPU
    #[arg(long, value_name = "SHAPES", value_parser = published_model(), conflicts_with = "model")]
    load_dummy: Option<Like>,
    /// JSON array of token ids
    #[arg(long, value_name = "FILE.json")]
    tokens: PathBuf,
    /// How many positions, counted from the end [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    last: Option<usize>,
    /// How exactly to compute; f32 is the CPU's alone [default: f32; with --device cuda, bf16]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// File to write; it appears when it is complete
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    if args.load_dummy.is_some() {
        args.device.for_dummy("logits");
    }
    let default = if args.device.device == Wish::Cuda { Precision::Bf16 } else { Precision::F32 };
    let backend = args.device.backend("logits", args.precision.unwrap_or(default), args.threads, Notes::Shown)?;
    let model = Model::open(args.model.as_deref(), args.load_dummy)?;
    let config = model.config();
    let tokens = opened::read_token_ids(&args.tokens, config.vocab_size)?;
    let (n_tokens, max) = (tokens.len(), config.max_position_embeddings);
    if n_tokens > max {
        bail!("{}: {n_tokens} tokens, more than the model's context of {max}", args.tokens.display());
    }
    let rows = args.last.unwrap_or(n_tokens);
    if rows > n_tokens {
        bail!("--last {rows} is more than the {n_tokens} tokens of {}", args.tokens.display());
    }
    // Before the minutes that a large model may take.
    output::check_writable(&args.out).with_context(|| cannot_write(&args.out))?;
    let limits = |chunk: usize| Limits::for_sequences(config, 1, n_tokens, chunk.min(n_tokens));
    let place = backend.place(config, CHUNK, limits)?;
    let session = Session::new(place.open(model.weights())?, config, place.limits, n_tokens);
    let partial = partial_path(&args.out);
    let written = write(session, &tokens, rows, config.vocab_size, &partial);
    if let Err(error) = written.and_then(|()| Ok(std::fs::rename(&partial, &args.out)?)) {
        let _ = std::fs::remove_file(&partial);
        return Err(error).with_context(|| cannot_write(&args.out));
    }
    eprintln!("wrote {}: float32 [{rows}, {}]", args.out.display(), config.vocab_size);
    Ok(())
}

fn cannot_write(file: &Path) -> String {
    format!("cannot write {}", file.display())
}

fn write(mut session: Session, tokens: &[Token], rows: usize, vocab_size: usize, path: &Path) -> anyhow::Result<()> {
    let _listening = interrupt::listen(Second::Ends);
    let mut out = BufWriter::new(File::create(path)?);
    npy::write_header(&mut out, rows, vocab_size)?;
    session.logits(tokens, rows, |logits| Ok(npy::write_values(&mut out, logits)?))?;
    Ok(out.flush()?)
}

/// Beside the file, so that a rename can put it in place.
fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    out.with_file_name(name)
}
