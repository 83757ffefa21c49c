//! `tessera chat`: a conversation, line by line.

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustyline::error::ReadlineError;
use tessera_harmony::message::{Conversation, DeveloperConfig, Message, SystemConfig};
use tessera_harmony::render::{History, Renderer};
use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::{Sampling, Token};

use crate::answer::Answer;
use crate::args::{Effort, ModelArgs, SamplingArgs, at_least_one};
use crate::executor::{DeviceArgs, Notes, Weights};
use crate::interrupt::{self, Second};
use crate::opened;
use crate::screen::{Reasoning, Screen};
use crate::session::{self, Finish, PROMPT_CHUNK, Rollback, Session};
use crate::{date, demo};

mod command;

use command::Command;

/// Context without --context: its cache is 0.4 GB for gpt-oss-20b, and takes memory only as it fills.
const DEFAULT_CONTEXT: usize = 16_384;
/// Tokens of an answer that may be dropped from the cache again (its reasoning is, before the next turn) without
/// computing the conversation from its beginning.
const ROLLBACK: Rollback = Rollback(4096);
const PROMPT: &str = "> ";
const MAX_HISTORY_LINES: usize = 1000;

/// Talk with a model
///
/// Its reasoning is shown dimmed. Ctrl-C stops an answer, Ctrl-D or /bye leaves. Lines that begin with / are commands;
/// /help lists them. Without a terminal, each line of stdin is a prompt.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera chat -m openai/gpt-oss-20b
  tessera chat -m ./gpt-oss-20b --system 'Answer in French.' --reasoning low
  printf 'Hi\\nAnd now in Latin\\n' | tessera chat -m ./gpt-oss-20b --hide-reasoning")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens of one answer [default: what the context leaves]
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = at_least_one)]
    max_tokens: Option<usize>,
    /// How much to think before answering
    #[arg(long, value_enum, default_value_t = Effort::Medium)]
    reasoning: Effort,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Do not show the reasoning
    #[arg(long)]
    hide_reasoning: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let backend = args.device.backend("chat", args.model.precision, args.model.threads, Notes::Shown)?;
    let (opened, tokenizer) = opened::with_tokenizer(args.model.model.as_deref())?;
    let config = opened.checkpoint.config();
    let model_max = config.max_position_embeddings;
    let context = args.model.context.unwrap_or(DEFAULT_CONTEXT.min(model_max));
    if context > model_max {
        bail!("--context {context} is more than the model's own limit of {model_max} tokens");
    }
    let limits = |chunk| session::limits(config, context, chunk, ROLLBACK);
    let place = backend.place(config, PROMPT_CHUNK, limits)?;
    let executor = place.open(Weights::Checkpoint(&opened.checkpoint))?;
    let mut chat = Chat {
        session: Session::new(executor, config, place.limits, context),
        renderer: Renderer::new(&tokenizer)?,
        stop_ids: opened::stop_ids(config, Some(&tokenizer)),
        tokenizer,
        sampling: args.sampling.sampling(Some(&opened.path))?,
        max_tokens: args.max_tokens.unwrap_or(context),
        screen: Screen::new(if args.hide_reasoning { Reasoning::Hidden } else { Reasoning::Shown }),
        system: args.system,
        effort: args.reasoning,
        date: date::today(),
        messages: Vec::new(),
    };
    let mut lines = Lines::open()?;
    if lines.are_typed() {
        eprintln!("{}: type a message, /help for commands, Ctrl-D to leave", opened.name);
    }
    while let Some(line) = lines.next()? {
        match chat.take_line(&line) {
            Ok(Next::Line) => {}
            Ok(Next::Leave) => break,
            // Somebody who types can mend it; a script cannot.
            Err(error) if lines.are_typed() && !is_closed_pipe(&error) => eprintln!("error: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A conversation with its model.
struct Chat<'a> {
    session: Session<'a>,
    renderer: Renderer,
    tokenizer: Tokenizer,
    stop_ids: Vec<Token>,
    sampling: Sampling,
    max_tokens: usize,
    screen: Screen,
    system: Option<String>,
    effort: Effort,
    /// Of the conversation's beginning: a new one at midnight would make all that is cached worthless.
    date: String,
    /// Without the system and developer messages, which [`Chat::conversation`] puts in front.
    messages: Vec<Message>,
}

enum Next {
    Line,
    Leave,
}

impl Chat<'_> {
    fn take_line(&mut self, line: &str) -> anyhow::Result<Next> {
        if line.trim().is_empty() {
            return Ok(Next::Line);
        }
        match Command::parse(line)? {
            None => self.answer(command::message_text(line))?,
            Some(Command::Bye) => return Ok(Next::Leave),
            Some(Command::Help) => eprint!("{}", command::HELP),
            Some(Command::Reset) => {
                self.messages.clear();
                eprintln!("the conversation is empty");
            }
            Some(Command::System(text)) => {
                eprintln!("{}", if text.is_some() { "instructions set" } else { "instructions removed" });
                self.system = text;
            }
            Some(Command::Reasoning(effort)) => {
                self.effort = effort;
                eprintln!("reasoning set");
            }
            Some(Command::Save(file)) => self.save(&file)?,
            Some(Command::Load(file)) => self.load(&file)?,
        }
        Ok(Next::Line)
    }

    /// One turn. What was said before Ctrl-C stays in the conversation; a turn that fails leaves it as it was.
    fn answer(&mut self, line: &str) -> anyhow::Result<()> {
        let before = self.messages.len();
        self.messages.push(Message::user(line));
        let answered = self.run_turn();
        if answered.is_err() {
            self.messages.truncate(before);
        }
        answered
    }

    fn run_turn(&mut self) -> anyhow::Result<()> {
        let prompt = self.renderer.render_for_completion(&self.conversation(), History::default());
        if self.messages.len() > 1 {
            self.session.check(&prompt).context("this message comes on top of the conversation, which /reset ends")?;
        }
        let mut answer = Answer::harmony(&self.tokenizer, self.stop_ids.clone(), Vec::new())?;
        // Each turn draws anew; the first draws as `generate` with the same seed does.
        let turn = self.messages.iter().filter(|m| m.role == tessera_harmony::message::Role::User).count() as u64 - 1;
        let sampling = Sampling { seed: self.sampling.seed.wrapping_add(turn), ..self.sampling };
        let listening = interrupt::listen(Second::Waits);
        let screen = &mut self.screen;
        let (finish, timings) = self.session.generate(&prompt, self.max_tokens, sampling, |token, _| {
            answer.push(token, &mut |piece| Ok(screen.show(&piece)?))
        })?;
        drop(listening);
        answer.finish(&mut |piece| Ok(screen.show(&piece)?))?;
        screen.end()?;
        tracing::info!("{} prompt tokens, {} computed, {timings:?}", prompt.len(), timings.prompt_tokens);
        match finish {
            Finish::Stop => {}
            Finish::Interrupted => eprintln!("[stopped]"),
            Finish::Length => {
                eprintln!("[cut off: --max-tokens or the context is used up; raise it, or /reset begins anew]")
            }
        }
        self.messages.extend(answer.into_messages());
        Ok(())
    }

    fn conversation(&self) -> Conversation {
        let mut conversation = Conversation::new([Message::system(SystemConfig {
            current_date: Some(self.date.clone()),
            reasoning_effort: Some(self.effort.into()),
            ..SystemConfig::default()
        })]);
        if let Some(system) = &self.system {
            let developer = DeveloperConfig { instructions: Some(system.clone()), ..DeveloperConfig::default() };
            conversation.messages.push(Message::developer(developer));
        }
        conversation.messages.extend(self.messages.iter().cloned());
        conversation
    }

    fn save(&self, file: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_string_pretty(&self.conversation())?;
        json.push('\n');
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("saved {}", file.display());
        Ok(())
    }

    /// Goes on with a saved conversation, its instructions included.
    fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        use tessera_harmony::message::{Content, Role};
        let json = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let conversation: Conversation =
            serde_json::from_slice(&json).with_context(|| format!("{} is no saved conversation", file.display()))?;
        let (front, messages): (Vec<_>, Vec<_>) =
            conversation.messages.into_iter().partition(|m| matches!(m.role, Role::System | Role::Developer));
        self.messages = messages;
        self.system = front.into_iter().flat_map(|m| m.content).find_map(|content| match content {
            Content::Developer(config) => config.instructions,
            Content::Text { .. } | Content::System(_) => None,
        });
        eprintln!("loaded {} ({} messages)", file.display(), self.messages.len());
        Ok(())
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Where the user's lines come from.
enum Lines {
    Typed { editor: Box<rustyline::DefaultEditor>, history: PathBuf },
    Piped(io::StdinLock<'static>),
}

impl Lines {
    fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Piped(io::stdin().lock()));
        }
        let config = rustyline::Config::builder().max_history_size(MAX_HISTORY_LINES)?.auto_add_history(true).build();
        let mut editor = Box::new(rustyline::DefaultEditor::with_config(config)?);
        let history = demo::cache_folder().join("chat-history");
        let _ = editor.load_history(&history); // there is none the first time
        Ok(Self::Typed { editor, history })
    }

    fn are_typed(&self) -> bool {
        matches!(self, Self::Typed { .. })
    }

    /// The next line without its end; `None` at the end of input.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Piped(stdin) => {
                let mut line = String::new();
                let n = stdin.read_line(&mut line).context("cannot read stdin")?;
                Ok((n > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
            }
            Self::Typed { editor, .. } => loop {
                match editor.readline(PROMPT) {
                    Ok(line) => return Ok(Some(line)),
                    Err(ReadlineError::Interrupted) => eprintln!("Ctrl-D or /bye leaves"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }
}

impl Drop for Lines {
    /// History is a convenience: that it cannot be written is worth a line in the log.
    fn drop(&mut self) {
        let Self::Typed { editor, history } = self else { return };
        let saved = history.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = saved.map_err(ReadlineError::Io).and_then(|()| editor.save_history(history)) {
            tracing::warn!("{}: history not saved: {error}", history.display());
        }
    }
}
