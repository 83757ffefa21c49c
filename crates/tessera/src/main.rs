//! The binary: the only place that knows flags, HTTP, JSON and environment variables.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod answer;
mod args;
mod bench;
mod chat;
mod convert;
mod date;
mod demo;
mod eval;
mod executor;
mod generate;
mod hub;
mod inspect;
mod interrupt;
mod layout;
mod logits;
mod logprobs;
mod memory;
mod npy;
mod opened;
mod output;
mod probe;
mod progress;
mod random;
mod routes;
mod screen;
mod session;
mod source;
mod synth;
mod term;
mod verify;

/// Run OpenAI gpt-oss checkpoints: any published one in, text out
#[derive(Parser)]
#[command(name = "tessera", version = env!("TESSERA_VERSION"))]
#[command(after_help = "Examples:
  tessera generate 'What is 27 + 45?'                             a first look, without a model
  tessera generate -m openai/gpt-oss-20b 'Why is the sky blue?'   one answer
  tessera chat -m openai/gpt-oss-20b                              a conversation
  tessera inspect openai/gpt-oss-20b                              what a checkpoint holds
  tessera verify openai/gpt-oss-20b                               whether it computes what it should

Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.
Environment: TESSERA_MODEL, TESSERA_THREADS, HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, NO_COLOR, RUST_LOG.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Chat(chat::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Convert(convert::Args),
    Synth(synth::Args),
    Logits(logits::Args),
    Routes(routes::Args),
    Bench(bench::Args),
    Eval(eval::Args),
    Layout(layout::Args),
    Probe(probe::Args),
    Completions(CompletionsArgs),
}

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera completions bash > ~/.local/share/bash-completion/completions/tessera
  tessera completions zsh > ~/.zfunc/_tessera
  tessera completions fish > ~/.config/fish/completions/tessera.fish")]
struct CompletionsArgs {
    shell: clap_complete::Shell,
}

fn main() -> ExitCode {
    let matches = with_negative_numbers(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    start_logging();
    interrupt::install();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_code(&error),
    }
}

/// A value such as -1 is one that is out of range, not a flag that nobody knows.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    command.allow_negative_numbers(true).mut_subcommands(with_negative_numbers)
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Routes(args) => routes::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Layout(args) => layout::run(args),
        Command::Probe(args) => probe::run(args),
        Command::Completions(args) => completions(args.shell),
    }
}

/// Says what went wrong, if that is not known already: a reader that closed the pipe has all it wants.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_closed_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    if error.downcast_ref::<interrupt::Interrupted>().is_none() {
        // Names from files and headers of servers are in it.
        eprintln!("error: {}", term::safe(&io::stderr(), &format!("{error:#}")));
    }
    if interrupt::stopped() { ExitCode::from(interrupt::EXIT_STATUS) } else { ExitCode::FAILURE }
}

/// Ends the program as clap does for flags it cannot read: message, usage, exit status 2.
fn usage_error(subcommand: &str, message: &str) -> ! {
    let mut command = Cli::command();
    command.build();
    let command = command.find_subcommand_mut(subcommand).expect("the caller names a subcommand");
    command.error(clap::error::ErrorKind::MissingRequiredArgument, message).exit()
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tessera", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Diagnostics on stderr, as much as `RUST_LOG` asks for; warnings without it.
fn start_logging() {
    use tracing_subscriber::filter::{EnvFilter, LevelFilter};
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    let colour = term::Style::of(&io::stderr()) == term::Style::Ansi;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).without_time().init();
}
