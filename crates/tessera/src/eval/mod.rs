//! `tessera eval`: how many questions of a set a checkpoint answers rightly.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use tessera_harmony::message::Message;
use tessera_harmony::parse::Parser;
use tessera_harmony::render::{History, Renderer};
use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::Token;

use crate::args::{ModelName, at_least_one, whole_number};
use crate::executor::{self, Backend, DeviceArgs, Notes, Place, Precision, StepTokens, Weights};
use crate::interrupt::{self, Interrupted, Second};
use crate::memory;
use crate::opened::{self, Opened};
use crate::progress;

mod answers;
mod check;
mod decode;
mod item;
mod table;

use answers::{Answer, Answers};
use check::Ending;
use decode::{Outcome, Prompt, Room};
use item::Item;
use table::Table;

/// The demo model's held-out items, 2,000 a family.
const HELD_OUT: &[u8] = include_bytes!("../../../../assets/held_out.jsonl.gz");
const HELD_OUT_NAME: &str = "the built-in items";
/// Of an unpacked file of items.
const MAX_ITEMS_BYTES: u64 = 1 << 30;
/// The most tokens of a step.
const STEP_TOKENS: StepTokens = StepTokens { cpu: 512, gpu: 8192 };
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// Count right answers to a set of questions
///
/// Answers are taken greedily and checked by program. Without --items the questions are those that the demo model was not
/// trained on, 2,000 for each of its ten families. Ctrl-C shows the table of what is answered (exit status 130).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera eval --limit 100                                the demo model on a part of its own set
  tessera eval openai/gpt-oss-20b --items mine.jsonl --json
  tessera eval demo --precision f32 --family addition --answers answers.jsonl

Items are lines of JSON, with these fields as OpenAI's chat API has them:
  messages          required; content is text or text parts, the last is the user's or a tool's
  tools             functions that may be called
  response_format   of type json_schema
  reasoning_effort  low, medium (without it) or high
and these of their own:
  check             required; {\"equals\": TEXT}, {\"contains\": TEXT}, {\"json\": VALUE} or
                    {\"tool_call\": {\"name\": NAME, \"arguments\": VALUE}}
  family            what the table sums by; other without it
  current_date      YYYY-MM-DD that the model is told; none without it
  id                anything, for the reader
For example:
  {\"messages\": [{\"role\": \"user\", \"content\": \"What is 2 + 2?\"}], \"check\": {\"equals\": \"4\"}}
An answer that was cut off is wrong, whatever it says.

Lines of --answers come as answers are done; index is the item's place in the file, from 0 on.
prompt_tokens are the ids that the model read, tokens those that it answered, the stop token
included; finish_reason is stop, tool_calls or length.")]
pub struct Args {
    #[command(flatten)]
    model: ModelName,
    /// Items to ask, one JSON object a line; may be gzipped
    #[arg(long, value_name = "FILE.jsonl")]
    items: Option<PathBuf>,
    /// Only items of this family; may be repeated
    #[arg(long, value_name = "NAME")]
    family: Vec<String>,
    /// Only the first items of each family
    #[arg(long, value_name = "ITEMS", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Most tokens of one answer
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "1024", value_parser = at_least_one)]
    max_tokens: usize,
    /// Sequences that are computed together
    #[arg(long, default_value = "32", value_parser = rows)]
    rows: usize,
    /// How exactly to compute
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    precision: Precision,
    /// Threads that compute [default: all cores]
    #[arg(short, long, env = "TESSERA_THREADS", value_parser = crate::args::threads)]
    threads: Option<usize>,
    /// Write each answer as a line of JSON, to FILE.jsonl.partial until all are there
    #[arg(long, value_name = "FILE.jsonl")]
    answers: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let items = chosen(items(args.items.as_deref())?, &args.family, args.limit)?;
    let backend = args.device.backend("eval", args.precision, args.threads, Notes::Shown)?;
    let (opened, tokenizer) = opened::with_tokenizer(args.model.get())?;
    let eval = Eval::new(&args, &backend, &opened, &tokenizer, &items)?;
    let create = |path: &PathBuf| Answers::create(path, args.items.as_deref());
    let mut answers = args.answers.as_ref().map(create).transpose()?;
    let started = Instant::now();
    let mut table = Table::new(items.iter().map(|(_, item)| item.family.as_str()));
    let outcome = eval.run(&mut table, answers.as_mut())?;
    let time = started.elapsed();
    let kept = match (answers, outcome) {
        (None, _) => None,
        (Some(answers), Outcome::Complete) => answers.finish().map(|()| None)?,
        (Some(answers), Outcome::Interrupted) => Some(answers.keep_partial()?),
    };
    match args.json {
        true => writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&table.to_json(time))?)?,
        false => write!(io::stdout(), "{table}")?,
    }
    eprintln!("{}", summary(&table, time));
    if table.cut_off() > 0 {
        eprintln!(
            "{} answers were cut off at --max-tokens {} or the end of the context",
            table.cut_off(),
            args.max_tokens
        );
    }
    if let Some(partial) = kept {
        eprintln!("the answers so far are in {}", partial.display());
    }
    if outcome == Outcome::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

fn summary(table: &Table, time: Duration) -> String {
    let (seconds, tokens) = (time.as_secs_f64(), table.tokens);
    let speed =
        format!("{} answers, {tokens} tokens in {seconds:.1} s ({:.0}/s)", table.items(), tokens as f64 / seconds);
    table.stopped().map_or(speed.clone(), |stopped| format!("{stopped}: {speed}"))
}

fn rows(text: &str) -> Result<usize, String> {
    whole_number(text, 1..=tessera_cuda::MAX_STEP_ROWS)
}

fn items(file: Option<&Path>) -> anyhow::Result<Vec<Item>> {
    let (name, bytes) = match file {
        None => (HELD_OUT_NAME.to_owned(), HELD_OUT.to_vec()),
        Some(file) => {
            let name = file.display().to_string();
            let bytes = std::fs::read(file).with_context(|| format!("{name}: cannot read the items"))?;
            (name, bytes)
        }
    };
    let bytes = if bytes.starts_with(GZIP_MAGIC) {
        unzip(&bytes).with_context(|| format!("{name}: broken gzip"))?
    } else {
        bytes
    };
    let text = String::from_utf8(bytes).with_context(|| format!("{name}: expected UTF-8 text"))?;
    item::read(&name, &text)
}

fn unzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    MultiGzDecoder::new(bytes).take(MAX_ITEMS_BYTES + 1).read_to_end(&mut out)?;
    if out.len() as u64 > MAX_ITEMS_BYTES {
        return Err(io::Error::other(format!("it unpacks to more than {MAX_ITEMS_BYTES} bytes")));
    }
    Ok(out)
}

/// The items asked for, each with its place in the file.
fn chosen(items: Vec<Item>, families: &[String], limit: Option<usize>) -> anyhow::Result<Vec<(usize, Item)>> {
    let known: std::collections::BTreeSet<&str> = items.iter().map(|item| item.family.as_str()).collect();
    if let Some(unknown) = families.iter().find(|name| !known.contains(name.as_str())) {
        bail!("--family {unknown}: no item has it; families are {}", known.into_iter().collect::<Vec<_>>().join(", "));
    }
    let mut counts = std::collections::HashMap::<String, usize>::new();
    let mut wanted = |item: &Item| {
        let count = counts.entry(item.family.clone()).or_default();
        *count += 1;
        (families.is_empty() || families.contains(&item.family)) && limit.is_none_or(|limit| *count <= limit)
    };
    Ok(items.into_iter().enumerate().filter(|(_, item)| wanted(item)).collect())
}

/// A set of items with their prompts, and what runs them.
struct Eval<'a> {
    opened: &'a Opened,
    tokenizer: &'a Tokenizer,
    items: &'a [(usize, Item)],
    prompts: Vec<Prompt>,
    room: Room,
    place: Place<'a>,
    stop_ids: Vec<Token>,
    call: Token,
}

impl<'a> Eval<'a> {
    fn new(
        args: &'a Args,
        backend: &'a Backend,
        opened: &'a Opened,
        tokenizer: &'a Tokenizer,
        items: &'a [(usize, Item)],
    ) -> anyhow::Result<Self> {
        let config = opened.checkpoint.config();
        let renderer = Renderer::new(tokenizer)?;
        let max = config.max_position_embeddings;
        let mut prompts = Vec::with_capacity(items.len());
        for (_, item) in items {
            let tokens = renderer.render_for_completion(&item.conversation, History::default());
            ensure!(
                tokens.len() < max,
                "{}: the prompt has {} tokens, and the model's context is {max}; shorten it",
                item.place,
                tokens.len()
            );
            prompts.push(Prompt { max_new: args.max_tokens.min(max - tokens.len()), tokens });
        }
        let context = prompts.iter().map(|prompt| prompt.tokens.len() + prompt.max_new).max().unwrap_or(0);
        let stop_ids = opened::stop_ids(config, Some(tokenizer));
        let room = |step_tokens| Room::new(config, args.rows.min(items.len()), context, step_tokens);
        let place = backend.place(config, STEP_TOKENS, |step_tokens| room(step_tokens).limits())?;
        let (room, call) = (room(place.limits.max_step_tokens), tokenizer.specials()?.call);
        if place.gpu().is_none() {
            check_memory(executor::cache_bytes(config, args.precision, place.limits), room)?;
        }
        Ok(Self { opened, tokenizer, items, prompts, room, place, stop_ids, call })
    }

    fn run(&self, table: &mut Table, mut answers: Option<&mut Answers>) -> anyhow::Result<Outcome> {
        let mut executor = self.place.open(Weights::Checkpoint(&self.opened.checkpoint))?;
        let _listening = interrupt::listen(Second::Ends);
        let bar = progress::steps("[{bar:40}] {pos}/{len} {msg} {eta}", self.items.len());
        let outcome = decode::greedy(&mut *executor, self.room, &self.prompts, &self.stop_ids, |n, tokens| {
            let answer = self.judge(n, tokens)?;
            table.add(&answer);
            bar.inc(1);
            bar.set_message(format!("{} wrong", table.wrong()));
            answers.as_mut().map_or(Ok(()), |answers| answers.write(&answer))
        });
        bar.finish_and_clear();
        outcome
    }

    fn judge<'t>(&'t self, n: usize, tokens: &'t [Token]) -> anyhow::Result<Answer<'t>> {
        let (index, item) = &self.items[n];
        let messages = self.messages(tokens)?;
        let ending = Ending::of(tokens, &self.stop_ids, self.call);
        let right = item.check.accepts(&messages, ending);
        Ok(Answer { index: *index, item, prompt: &self.prompts[n].tokens, tokens, messages, ending, right })
    }

    fn messages(&self, tokens: &[Token]) -> anyhow::Result<Vec<Message>> {
        let mut parser = Parser::new(self.tokenizer)?;
        for &token in tokens {
            parser.push(token);
        }
        parser.finish();
        Ok(parser.into_messages())
    }
}

/// A cache that the machine cannot hold would end the program when it is made, or when it fills.
fn check_memory(cache_bytes: u64, room: Room) -> anyhow::Result<()> {
    let Some(memory) = memory::total() else { return Ok(()) };
    ensure!(
        cache_bytes <= memory,
        "--rows {} with {} tokens each, prompt and answer, need a cache of {:.1} GB, more than the machine's memory of \
         {:.1} GB; lower --rows or --max-tokens",
        room.sequences,
        room.context,
        cache_bytes as f64 / 1e9,
        memory as f64 / 1e9
    );
    Ok(())
}
