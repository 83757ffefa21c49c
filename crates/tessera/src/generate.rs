//! `tessera generate`: one prompt in, one answer out.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use tessera_harmony::message::{Conversation, DeveloperConfig, Message, SystemConfig};
use tessera_harmony::render::{History, Renderer};
use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::synth::Like;
use tessera_model::{Sampling, Token};

use crate::answer::{Answer, Piece};
use crate::args::{Effort, ModelArgs, SamplingArgs, at_least_one, published_model, top_logprobs};
use crate::date;
use crate::executor::{Backend, DeviceArgs, Notes};
use crate::interrupt::{self, Interrupted, Second};
use crate::logprobs::Logprobs;
use crate::opened::{self, Model};
use crate::screen::{Reasoning, Screen};
use crate::session::{self, Finish, PROMPT_CHUNK, Rollback, Session, Timings};

/// New tokens where neither --max-tokens nor --context says otherwise.
const DEFAULT_MAX_TOKENS: usize = 4096;

/// Answer one prompt
///
/// Only the answer goes to stdout, as it is generated; everything else goes to stderr. Ctrl-C stops it and keeps what is
/// there (exit status 130).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera generate 'What is 27 + 45?'                             a first look, without a model
  tessera generate -m openai/gpt-oss-20b 'Why is the sky blue?'   from the hub, or its cache
  tessera generate -m ./gpt-oss-20b --reasoning high --show-reasoning 'Is 2027 prime?'
  git diff | tessera generate -m ./gpt-oss-20b --system 'Write a commit message.' -
  tessera generate -m ./gpt-oss-20b --raw --temperature 0 -n 20 'The capital of France is'
  tessera generate -m ./gpt-oss-20b --json 'Hi' | jq .text
  tessera generate -m ./gpt-oss-20b --json --logprobs 5 'Hi' | jq .logprobs
  tessera generate -m ./gpt-oss-20b --tokens ids.json -n 8        token ids in, token ids out
  tessera generate --load-dummy 120b --tokens ids.json -n 8       random weights, on the GPU")]
pub struct Args {
    /// What to answer; - reads it from stdin
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Instead of a model: its shapes with random weights, made on the GPU; needs --tokens
    #[arg(long, value_name = "SHAPES", value_parser = published_model(), conflicts_with = "model", help_heading = "Model")]
    load_dummy: Option<Like>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Most tokens to generate [default: 4096, or what --context leaves]
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = at_least_one)]
    max_tokens: Option<usize>,
    /// End the answer where it contains this; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    format: PromptArgs,
    /// Show the reasoning on stderr
    #[arg(long, conflicts_with = "raw")]
    show_reasoning: bool,
    /// Prompt as a JSON array of token ids; the answer is one, too, and no tokenizer is needed
    #[arg(
        long,
        value_name = "FILE.json",
        conflicts_with_all = ["prompt", "raw", "system", "reasoning", "date", "show_reasoning", "stop"]
    )]
    tokens: Option<PathBuf>,
    /// Print one JSON object when done: text, reasoning, tokens, finish_reason, seed, timings
    #[arg(long)]
    json: bool,
    /// In the JSON, each token's log-probability, and those of the N likeliest tokens in its place, N up to 20: natural
    /// logarithms, the model's own, before temperature, top-k and top-p
    #[arg(long, value_name = "N", requires = "json", value_parser = top_logprobs)]
    logprobs: Option<usize>,
    /// No timings on stderr, no word of the GPU's memory, of too many threads, nor of an answer that was cut off
    #[arg(short, long)]
    quiet: bool,
}

/// How a prompt's text becomes tokens.
#[derive(clap::Args)]
pub struct PromptArgs {
    /// How much to think before answering
    #[arg(long, value_enum, default_value_t = Effort::Medium)]
    reasoning: Effort,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Date the model is told [default: today, UTC]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date::parse)]
    date: Option<String>,
    /// Continue the prompt as it stands: no chat format, control tokens such as <|start|> mean themselves
    #[arg(long, conflicts_with_all = ["system", "reasoning", "date"])]
    raw: bool,
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    if args.load_dummy.is_some() {
        if args.tokens.is_none() {
            crate::usage_error("generate", "--load-dummy has no tokenizer: give the prompt with --tokens FILE.json");
        }
        args.device.for_dummy("generate");
    }
    let notes = if args.quiet { Notes::Hidden } else { Notes::Shown };
    let backend = args.device.backend("generate", args.model.precision, args.model.threads, notes)?;
    let job = match &args.tokens {
        Some(file) => Job::from_ids(&args, file)?,
        None => Job::from_text(&args)?,
    };
    let run = job.run(&args, &backend, started)?;
    if args.json {
        writeln!(std::io::stdout(), "{}", run.to_json())?;
    }
    if !args.quiet {
        eprintln!("{}", run.summary());
        if run.finish == Finish::Length {
            let why = match run.answer.tokens.len() == run.max_tokens {
                true => format!("--max-tokens {} is used up; raise it", run.max_tokens),
                false => "the context is used up; raise --context, up to the model's own limit".to_owned(),
            };
            eprintln!("the answer was cut off: {why}");
        }
    }
    if run.finish == Finish::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

/// A prompt, its model, and a reader for the answer.
struct Job {
    model: Model,
    prompt: Vec<Token>,
    answer: Answer,
    form: Form,
}

enum Form {
    Text(Tokenizer),
    Ids,
}

/// What came out.
struct Run {
    answer: Answer,
    form: Form,
    prompt_tokens: usize,
    max_tokens: usize,
    sampling: Sampling,
    /// Of each token, if they were asked for.
    logprobs: Option<Vec<Logprobs>>,
    /// Until the model was ready for its first step.
    loaded: Duration,
    finish: Finish,
    timings: Timings,
    first_token: Option<Duration>,
}

impl Job {
    fn from_text(args: &Args) -> anyhow::Result<Self> {
        let text = args.format.read("generate", args.prompt.as_deref())?;
        let (opened, tokenizer) = opened::with_tokenizer(args.model.model.as_deref())?;
        let stop_ids = opened::stop_ids(opened.checkpoint.config(), Some(&tokenizer));
        let stops = args.stop.clone();
        let prompt = args.format.encode(&tokenizer, &text)?;
        let answer = match args.format.raw {
            true => Answer::raw(&tokenizer, stop_ids, stops),
            false => Answer::harmony(&tokenizer, stop_ids, stops)?,
        };
        Ok(Self { model: Model::Opened(opened), prompt, answer, form: Form::Text(tokenizer) })
    }

    fn from_ids(args: &Args, file: &std::path::Path) -> anyhow::Result<Self> {
        let model = Model::open(args.model.model.as_deref(), args.load_dummy)?;
        let prompt = opened::read_token_ids(file, model.config().vocab_size)?;
        let answer = Answer::ids(opened::stop_ids(model.config(), None));
        Ok(Self { model, prompt, answer, form: Form::Ids })
    }

    fn run(self, args: &Args, backend: &Backend, started: Instant) -> anyhow::Result<Run> {
        let Self { model, prompt, mut answer, form } = self;
        let config = model.config();
        let (context, max_tokens) = room(args, prompt.len(), config.max_position_embeddings)?;
        session::check_prompt(&prompt, context, config.max_position_embeddings)?;
        let sampling = args.sampling.sampling(model.path())?;
        let limits = |chunk| session::limits(config, context, chunk, Rollback(0));
        let place = backend.place(config, PROMPT_CHUNK, limits)?;
        let mut session = Session::new(place.open(model.weights())?, config, place.limits, context);
        let loaded = started.elapsed();
        let mut screen = Screen::new(if args.show_reasoning { Reasoning::Shown } else { Reasoning::Hidden });
        let mut first_token = None;
        let _listening = interrupt::listen(Second::Ends);
        let mut logprobs = Vec::new();
        let (finish, timings) = session.generate(&prompt, max_tokens, sampling, |token, logits| {
            first_token.get_or_insert_with(|| started.elapsed());
            if let Some(n_top) = args.logprobs {
                logprobs.push(Logprobs::of(&logits.read()?, token, n_top));
            }
            match form {
                Form::Ids if !args.json => screen.id(token)?,
                _ => {}
            }
            answer.push(token, &mut |piece| show(&mut screen, args, piece))
        })?;
        answer.finish(&mut |piece| show(&mut screen, args, piece))?;
        match form {
            Form::Ids if !args.json => screen.end_ids()?,
            _ => screen.end()?,
        }
        let prompt_tokens = prompt.len();
        Ok(Run {
            answer,
            form,
            prompt_tokens,
            max_tokens,
            sampling,
            logprobs: args.logprobs.map(|_| logprobs),
            loaded,
            finish,
            timings,
            first_token,
        })
    }
}

fn show(screen: &mut Screen, args: &Args, piece: Piece) -> anyhow::Result<()> {
    match piece {
        Piece::Text(_) if args.json => Ok(()),
        piece => Ok(screen.show(&piece)?),
    }
}

impl PromptArgs {
    /// The prompt from the command line or stdin, whose last line end is the shell's, not the user's.
    pub fn read(&self, command: &str, prompt: Option<&str>) -> anyhow::Result<String> {
        let text = match prompt {
            None if std::io::stdin().is_terminal() => {
                let message = "no prompt: give one, or - to read it from stdin";
                crate::usage_error(command, message);
            }
            None | Some("-") => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
                text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
            }
            Some(text) => text.to_owned(),
        };
        if text.is_empty() || (!self.raw && text.trim().is_empty()) {
            bail!("the prompt is empty: nothing to answer");
        }
        Ok(text)
    }

    /// The tokens that the model reads: `text` in the chat format, or as it stands.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<Token>> {
        if self.raw {
            return Ok(tokenizer.encode_with_specials(text));
        }
        let renderer = Renderer::new(tokenizer)?;
        let mut conversation = Conversation::new([Message::system(SystemConfig {
            current_date: Some(self.date.clone().unwrap_or_else(date::today)),
            reasoning_effort: Some(self.reasoning.into()),
            ..SystemConfig::default()
        })]);
        if let Some(system) = &self.system {
            let developer = DeveloperConfig { instructions: Some(system.clone()), ..DeveloperConfig::default() };
            conversation.messages.push(Message::developer(developer));
        }
        conversation.messages.push(Message::user(text));
        Ok(renderer.render_for_completion(&conversation, History::default()))
    }
}

/// Context and most new tokens, from flags, the prompt's length and the model's limit.
fn room(args: &Args, prompt: usize, model_max: usize) -> anyhow::Result<(usize, usize)> {
    if let Some(context) = args.model.context {
        if context > model_max {
            bail!("--context {context} is more than the model's own limit of {model_max} tokens");
        }
        return Ok((context, args.max_tokens.unwrap_or(context)));
    }
    let max_tokens = args.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    Ok((prompt.saturating_add(max_tokens).min(model_max), max_tokens))
}

impl Run {
    fn to_json(&self) -> serde_json::Value {
        let (text, reasoning) = match self.form {
            Form::Text(_) => (Some(&self.answer.text), Some(&self.answer.reasoning)),
            Form::Ids => (None, None),
        };
        let t = &self.timings;
        let mut json = json!({
            "text": text,
            "reasoning": reasoning,
            "tokens": self.answer.tokens,
            "prompt_tokens": self.prompt_tokens,
            "finish_reason": self.finish.name(),
            "seed": self.sampling.seed,
            "timings": {
                "load_s": self.loaded.as_secs_f64(),
                "first_token_s": self.first_token.map(|d| d.as_secs_f64()),
                "prompt_s": t.prompt.as_secs_f64(),
                "prompt_per_second": rate(t.prompt_tokens, t.prompt),
                "decode_s": t.decode.as_secs_f64(),
                "decode_per_second": rate(t.decode_tokens, t.decode),
            },
        });
        if let Some(logprobs) = &self.logprobs {
            let tokens = self.answer.tokens.iter().zip(logprobs);
            json["logprobs"] = tokens.map(|(&token, of)| self.logprobs_json(token, of)).collect();
        }
        json
    }

    /// With OpenAI's names, but for `token`, which is an id as in `tokens`; its text is beside it.
    fn logprobs_json(&self, token: Token, of: &Logprobs) -> serde_json::Value {
        let one = |token: Token, logprob: f64| {
            let text = match &self.form {
                Form::Text(tokenizer) => Some(tokenizer.decode(&[token])),
                Form::Ids => None,
            };
            json!({ "token": token, "text": text, "logprob": logprob })
        };
        let mut json = one(token, of.logprob);
        json["top_logprobs"] = of.top.iter().map(|&(token, logprob)| one(token, logprob)).collect();
        json
    }

    fn summary(&self) -> String {
        let t = &self.timings;
        let seed = match self.sampling.temperature {
            0.0 => "greedy".to_owned(),
            _ => format!("seed {}", self.sampling.seed),
        };
        format!(
            "load {:.2} s, prompt {} tokens {:.2} s ({:.1}/s), answer {} tokens {:.2} s ({:.1}/s), first token after \
             {:.2} s, {}, {seed}",
            self.loaded.as_secs_f64(),
            self.prompt_tokens,
            t.prompt.as_secs_f64(),
            rate(t.prompt_tokens, t.prompt),
            self.answer.tokens.len(),
            t.decode.as_secs_f64(),
            rate(t.decode_tokens, t.decode),
            self.first_token.unwrap_or_default().as_secs_f64(),
            self.finish.name(),
        )
    }
}

/// Tokens per second; 0 where nothing ran.
fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}
