//! `tessera synth`: a checkpoint of seeded random weights.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use tessera_harmony::tokenizer::{CONTROL_TOKENS, tiny};
use tessera_model::checkpoint::Layout;
use tessera_model::synth::{Like, Spec};

use crate::progress::BytesDone;

/// Write a checkpoint of random weights, for tests and benchmarks
///
/// The weights are a function of the seed alone: the layouts of one seed hold the same numbers. Activations keep their
/// size through all layers and routing is spread over the experts, but the text it writes means nothing.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera synth --like tiny /tmp/tiny                    a model of 1 MB with its own tokenizer
  tessera synth --like 20b --seed 7 /data/random-20b     13.8 GB, the shapes of gpt-oss-20b
  tessera synth --like tiny --layout original /tmp/tiny  OpenAI's own layout")]
pub struct Args {
    /// Whose shapes to use
    #[arg(long, value_parser = like_parser())]
    like: Like,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Names and storage of the tensors
    #[arg(long, value_enum, default_value_t = LayoutArg::Hf)]
    layout: LayoutArg,
    /// Folder to create; it appears when it is complete
    destination: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutArg {
    /// Hugging Face: what `tessera` runs and what is published
    Hf,
    /// OpenAI's own, in the folder `original`; runs, too
    Original,
    /// Hugging Face names with dequantised experts; refused until converted
    Bf16,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let layout = match args.layout {
        LayoutArg::Hf => Layout::Hf,
        LayoutArg::Original => Layout::Original,
        LayoutArg::Bf16 => Layout::Bf16,
    };
    let spec = spec(args.like, args.seed, layout);
    let bar = BytesDone::start("writing");
    spec.write(&args.destination, &|done, total| bar.at(done, total))
        .with_context(|| format!("cannot make {}", args.destination.display()))?;
    bar.finish();
    eprintln!("wrote {} ({} layout, seed {})", args.destination.display(), layout, args.seed);
    Ok(())
}

/// A checkpoint with shapes like `like`'s; the small ones bring their own tokenizer of bytes.
pub fn spec(like: Like, seed: u64, layout: Layout) -> Spec {
    let mut spec = Spec::new(like.config(), seed).layout(layout);
    if !like.speaks_harmony() {
        spec.tokenizer = Some(tiny::byte_level_tokenizer_json(&[]));
        spec.config.eos_token_ids = tiny_stop_ids();
    }
    spec
}

/// Ids that end an answer in the tokenizer of bytes: those of `<|return|>`, `<|call|>` and `<|endoftext|>`.
fn tiny_stop_ids() -> Vec<u32> {
    let id_of =
        |name: &str| CONTROL_TOKENS.iter().position(|t| *t == name).map(|i| (tiny::FIRST_CONTROL_ID + i) as u32);
    ["<|return|>", "<|call|>", "<|endoftext|>"].into_iter().filter_map(id_of).collect()
}

fn like_parser() -> impl TypedValueParser<Value = Like> {
    PossibleValuesParser::new(Like::ALL.map(Like::name)).try_map(|name| Like::from_name(&name).ok_or("unknown model"))
}
