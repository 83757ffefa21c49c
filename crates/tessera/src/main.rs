//! The binary: the only place that knows flags, HTTP, JSON and environment variables.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chat;
mod convert;
mod generate;
mod hub;
mod inspect;
mod logits;
mod progress;
mod source;
mod synth;
mod verify;

#[derive(Parser)]
#[command(name = "tessera", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Convert(convert::Args),
    Synth(synth::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Logits(logits::Args),
    Verify(verify::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Bench(args) => bench::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
