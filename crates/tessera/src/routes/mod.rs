//! `tessera routes`: which experts each token is sent to, as a table, a drawing or JSON.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::{Config, Sampling, Token};

use crate::args::{ModelArgs, at_least_one};
use crate::executor::{Backend, Weights};
use crate::generate::PromptArgs;
use crate::interrupt::{self, Interrupted, Second};
use crate::opened::{self, Opened};
use crate::output;
use crate::session::{self, Finish, Flow, PROMPT_CHUNK, Rollback, Session};
use crate::source;

use record::{Choice, Routes};

mod drawing;
mod label;
mod record;
mod table;

/// Show which experts a prompt's tokens are sent to
///
/// Prints the expert with the largest weight for every token and layer, then how the choices load the experts of each
/// layer. --svg draws all chosen experts with their weights; --json prints them.
#[derive(clap::Args)]
#[command(override_usage = "tessera routes [OPTIONS] [MODEL] PROMPT\n       \
                            tessera routes [OPTIONS] [MODEL] --tokens FILE.json")]
#[command(after_help = "Examples:
  tessera routes 'What is 27 + 45?'                                a first look, without a model
  tessera routes openai/gpt-oss-20b 'Why is the sky blue?'
  tessera routes ./gpt-oss-20b --svg routes.svg 'Is 2027 prime?'   a drawing, for a browser
  tessera routes ./gpt-oss-20b -n 50 --last 50 'Hi'                the answer's tokens alone
  tessera routes ./gpt-oss-20b --raw --json 'Once upon a time' | jq '.layers[3].load'
  git diff | tessera routes ./gpt-oss-20b -")]
pub struct Args {
    /// Checkpoint folder, .safetensors file, index, hub id or demo; may also be named with --model
    #[arg(value_name = "MODEL")]
    first: Option<String>,
    /// What the model reads; - reads it from stdin. A single argument is the prompt
    #[arg(value_name = "PROMPT")]
    second: Option<String>,
    /// Tokens to generate after the prompt, always the most probable; a stop token ends them and is left out
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 0)]
    max_tokens: usize,
    /// Show and count the last N tokens alone; those before are only read [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    last: Option<usize>,
    #[command(flatten)]
    format: PromptArgs,
    /// Prompt as a JSON array of token ids, for which no tokenizer is needed
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["second", "raw", "system", "reasoning", "date"])]
    tokens: Option<PathBuf>,
    /// Write a drawing of all choices and loads, instead of the table
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Print one JSON object: tokens, and the choices and loads of each layer
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let cannot_write = |file: &Path| format!("cannot write {}", file.display());
    if let Some(file) = &args.svg {
        // Before the minutes that a large model may take.
        output::check_writable(file).with_context(|| cannot_write(file))?;
    }
    let routed = Job::new(&args)?.run(&args)?;
    if let Some(file) = &args.svg {
        std::fs::write(file, drawing::draw(&routed)).with_context(|| cannot_write(file))?;
        eprintln!("wrote {}: {} tokens, {} layers", file.display(), routed.tokens.len(), routed.routes.n_layers());
    }
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&Report::new(&routed))?)?;
    } else if args.svg.is_none() {
        out.write_all(table::print(&routed, table::Screen::of_stdout()).as_bytes())?;
    }
    Ok(out.flush()?)
}

/// A prompt and its model.
struct Job {
    opened: Opened,
    tokenizer: Option<Tokenizer>,
    prompt: Vec<Token>,
}

/// Tokens and where they went.
struct Routed {
    model: String,
    precision: String,
    /// Of the prompt, those that are not shown included.
    prompt_tokens: usize,
    /// Position of the first token that is shown.
    start: usize,
    tokens: Vec<ShownToken>,
    routes: Routes,
}

#[derive(Serialize)]
struct ShownToken {
    position: usize,
    id: Token,
    /// As it is, but for parts of characters, which read as U+FFFD; none without a tokenizer.
    text: Option<String>,
    #[serde(skip)]
    label: String,
}

impl Job {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let (model, prompt) = model_and_prompt(args);
        let (opened, tokenizer, prompt) = match &args.tokens {
            Some(file) => {
                let opened = opened::without_tokenizer(model)?;
                let prompt = opened::read_token_ids(file, opened.checkpoint.config().vocab_size)?;
                (opened, None, prompt)
            }
            None => {
                let text = args.format.read("routes", prompt)?;
                let (opened, tokenizer) = opened::with_tokenizer(model)?;
                let prompt = args.format.encode(&tokenizer, &text)?;
                (opened, Some(tokenizer), prompt)
            }
        };
        Ok(Self { opened, tokenizer, prompt })
    }

    fn run(self, args: &Args) -> anyhow::Result<Routed> {
        let config = self.opened.checkpoint.config();
        let context = context(args, &self.prompt, config)?;
        let backend = Backend::cpu(args.model.precision, args.model.threads);
        let limits = |chunk| session::limits(config, context, chunk, Rollback(0));
        let place = backend.place(config, PROMPT_CHUNK, limits)?;
        let executor = place.open(Weights::Checkpoint(&self.opened.checkpoint))?;
        let stop_ids = opened::stop_ids(config, self.tokenizer.as_ref());
        let (mut routes, mut tokens) = (Routes::new(config), self.prompt.clone());
        let listening = interrupt::listen(Second::Ends);
        let mut session = Session::new(executor, config, place.limits, context).traced(&mut routes);
        // The last token that comes has not gone through the model: one more is asked for.
        let n = args.max_tokens.saturating_add(1);
        let (finish, _) = session.generate(&self.prompt, n, Sampling::GREEDY, |token, _| {
            tokens.push(token);
            Ok(if stop_ids.contains(&token) { Flow::Stop } else { Flow::Continue })
        })?;
        drop((session, listening));
        if finish == Finish::Interrupted {
            bail!(Interrupted);
        }
        routes.check_finite()?;
        tokens.truncate(routes.n_tokens());
        Ok(self.routed(args, &tokens, routes))
    }

    fn routed(&self, args: &Args, tokens: &[Token], mut routes: Routes) -> Routed {
        let start = tokens.len() - args.last.unwrap_or(tokens.len()).min(tokens.len());
        routes.keep_last(tokens.len() - start);
        let tokenizer = self.tokenizer.as_ref();
        let shown = |(position, &id)| ShownToken {
            position,
            id,
            text: tokenizer.map(|tokenizer| tokenizer.decode(&[id])),
            label: label::of_token(id, tokenizer),
        };
        let precision = args.model.precision.to_possible_value().expect("no precision is hidden");
        Routed {
            model: self.opened.name.clone(),
            precision: precision.get_name().to_owned(),
            prompt_tokens: self.prompt.len(),
            start,
            tokens: tokens.iter().enumerate().skip(start).map(shown).collect(),
            routes,
        }
    }
}

/// What the positional arguments are: with one alone, it is the prompt, unless that comes as ids.
fn model_and_prompt(args: &Args) -> (Option<&str>, Option<&str>) {
    let (first, second, named) = (args.first.as_deref(), args.second.as_deref(), args.model.model.as_deref());
    let is_model = second.is_some() || args.tokens.is_some();
    if !is_model {
        if let (Some(text), None) = (first.filter(|text| source::may_be_model(text)), named) {
            eprintln!("note: {text} alone is the prompt; for a model of that name: tessera routes {text} PROMPT");
        }
        return (named, first);
    }
    if let (Some(first), Some(flag)) = (first, named) {
        crate::usage_error(
            "routes",
            &format!("two models: {first} and --model {flag}; quote a prompt of several words"),
        );
    }
    (first.or(named), second)
}

/// Positions that prompt and answer take, at most what is allowed. Refuses what cannot be run or drawn.
fn context(args: &Args, prompt: &[Token], config: &Config) -> anyhow::Result<usize> {
    let model_max = config.max_position_embeddings;
    let limit = args.model.context.unwrap_or(model_max);
    if limit > model_max {
        bail!("--context {limit} is more than the model's own limit of {model_max} tokens");
    }
    session::check_prompt(prompt, limit, model_max)?;
    let context = prompt.len().saturating_add(args.max_tokens).min(limit);
    let shown = args.last.unwrap_or(context).min(context);
    let per_token = config.num_hidden_layers * config.num_experts_per_tok;
    if args.svg.is_some() && shown * per_token > drawing::MAX_CELLS {
        bail!(
            "--svg: a drawing of {shown} tokens has {} cells, more than the {} that browsers cope with; --last {} draws \
             the last tokens alone, --json has all",
            shown * per_token,
            drawing::MAX_CELLS,
            drawing::MAX_CELLS / per_token
        );
    }
    Ok(context)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    precision: &'a str,
    prompt_tokens: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    tokens: &'a [ShownToken],
    layers: Vec<LayerReport<'a>>,
}

#[derive(Serialize)]
struct LayerReport<'a> {
    layer: usize,
    chosen: Vec<&'a [Choice]>, // [tokens][top_k]
    load: Vec<f64>,            // [experts]
    max_over_mean: f64,
    never_chosen: usize,
}

impl<'a> Report<'a> {
    fn new(routed: &'a Routed) -> Self {
        let routes = &routed.routes;
        let layer = |layer| {
            let load = routes.load(layer);
            LayerReport {
                layer,
                chosen: routes.by_token(layer).collect(),
                max_over_mean: load.max_over_mean(),
                never_chosen: load.never_chosen(),
                load: load.shares,
            }
        };
        Self {
            model: &routed.model,
            precision: &routed.precision,
            prompt_tokens: routed.prompt_tokens,
            num_local_experts: routes.n_experts,
            num_experts_per_tok: routes.top_k,
            tokens: &routed.tokens,
            layers: (0..routes.n_layers()).map(layer).collect(),
        }
    }
}
