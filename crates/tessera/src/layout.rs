//! `tessera layout`: who holds what, from a nibble of a checkpoint to a half of a thread's register.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context;
use tessera_cuda::pack::fragment::{Element, Place, element, place};
use tessera_cuda::pack::{
    LANES, RECORD_BYTES, REGISTERS, STEP_K, STEPS, THREADS, TILE_K, TILE_ROWS, locate_code, locate_field,
};
use tessera_model::mxfp4::BLOCK;

use crate::args::whole_number;

mod svg;

/// Rows of the tile that a warp has.
const WARP_ROWS: usize = TILE_ROWS / WARPS;
const WARPS: usize = THREADS / LANES;
/// How the device brings each pair of a group home, before it masks.
const DECODE: [&str; 8] = [
    "w0",
    "w0 ror 6",
    "w0 << 4",
    "(w0 << 2 & 180c180c | w1 & ~180c180c) ror 4",
    "w1",
    "w1 ror 6",
    "w1 << 4",
    "(w0 << 2 & 180c180c | w1 & ~180c180c) << 6",
];
/// The bits of a code, lowest first: mantissa, two of the exponent, sign.
const CODE_BITS: [char; 4] = ['m', 'f', 'e', 's'];

/// Draw the order of packed weights: which thread holds what
///
/// A record is 64 rows by 64 columns of a packed MXFP4 matrix. Without arguments: the map of a tile of 64x16, and the bits
/// of a group of 16 codes. With --row and --k: the way of one element from the checkpoint to the tensor core. With --warp
/// and --lane: everything that one thread holds. Rows are those of the packed matrix; gate_up is packed 8 gates and their 8
/// ups in turn.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tessera layout
  tessera layout --row 21 --k 37
  tessera layout --warp 1 --lane 22
  tessera layout --row 21 --k 37 --svg layout.svg")]
pub struct Args {
    /// Row of the record, 0 to 63
    #[arg(long, requires = "k", value_name = "R", value_parser = index::<TILE_ROWS>)]
    row: Option<usize>,
    /// Column of the record, 0 to 63
    #[arg(long, requires = "row", value_name = "K", value_parser = index::<TILE_K>)]
    k: Option<usize>,
    /// Warp of the warpgroup, 0 to 3
    #[arg(long, requires = "lane", value_name = "W", value_parser = index::<WARPS>)]
    warp: Option<usize>,
    /// Lane of the warp, 0 to 31
    #[arg(long, requires = "warp", conflicts_with = "row", value_name = "L", value_parser = index::<LANES>)]
    lane: Option<usize>,
    /// Write a drawing, with what was chosen set apart
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// What to look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    All,
    Element { row: usize, k: usize },
    Thread(usize),
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let choice = match (args.row.zip(args.k), args.warp.zip(args.lane)) {
        (Some((row, k)), _) => Choice::Element { row, k },
        (None, Some((warp, lane))) => Choice::Thread(warp * LANES + lane),
        (None, None) => Choice::All,
    };
    if let Some(path) = args.svg {
        return std::fs::write(&path, svg::draw(choice)).with_context(|| path.display().to_string());
    }
    let text = match choice {
        Choice::All => map() + "\n" + &group() + "\n" + &scale_word(),
        Choice::Element { row, k } => chain(row, k),
        Choice::Thread(thread) => share(thread),
    };
    Ok(write!(io::stdout(), "{text}")?)
}

/// A number below `N`.
fn index<const N: usize>(text: &str) -> Result<usize, String> {
    whole_number(text, 0..=N - 1)
}

/// The lanes of one warp's rows of the tile; the other warps' are the same.
fn map() -> String {
    let mut out = format!("A tile of {TILE_ROWS}x{STEP_K}: the lane and register of each pair of columns\n\n       k");
    for k in (0..STEP_K).step_by(2) {
        let _ = write!(out, "{:>8}", format!("{k},{}", k + 1));
    }
    out.push_str("\n  row r\n");
    for row in 0..WARP_ROWS {
        let _ = write!(out, "  {row:>5} ");
        for k in (0..STEP_K).step_by(2) {
            let at = place(Element { row, k });
            let _ = write!(out, "{:>8}", format!("{}.a{}", at.thread, at.register));
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "\n  Warp w has rows {WARP_ROWS} w + r. Even k is in the low half of a register, odd k in the high half."
    );
    out
}

/// The 64 bits of a group, by what they hold.
fn group() -> String {
    let mut cells = vec![String::new(); 64];
    for (step, element) in [0, 1].iter().flat_map(|step| thread_elements(0).map(move |e| (step * STEP_K, e))) {
        let at = locate_code(element.row, step + element.k);
        for (bit, name) in at.bits.iter().zip(CODE_BITS) {
            cells[*bit] = format!("{}{}", at.pair, letter(name, at.place.half));
        }
    }
    let mut out = String::from("A group: 16 codes of one thread in two words, the registers of two k16 steps\n\n");
    for (word, cells) in cells.chunks(32).enumerate() {
        for half in [1, 0] {
            let bits = 16 * half..16 * half + 16;
            let _ = writeln!(out, "  {:<8}{}", "bit", spaced(bits.clone().rev().map(|bit| bit.to_string())));
            let _ = writeln!(out, "  {:<8}{}\n", format!("w{word}"), spaced(cells[bits].iter().rev().cloned()));
        }
    }
    out.push_str("  Pairs 0 to 3 are registers a0 to a3 of the first step, 4 to 7 of the second.\n");
    out.push_str("  s sign, e and f exponent, m mantissa: small for even k, large for odd k. & 81c081c0 of\n\n");
    for (pair, decode) in DECODE.iter().enumerate() {
        let _ = writeln!(out, "    {pair}  {decode}");
    }
    out
}

/// The 32 bits of a scale word.
fn scale_word() -> String {
    let mut cells = ['-'; 32];
    for (name, row, block) in [('a', 0, 0), ('b', 8, 0), ('c', 0, 1), ('d', 8, 1)] {
        for bit in locate_field(row, block).bits {
            cells[bit] = name;
        }
    }
    let cells: String = cells.into_iter().rev().collect();
    format!(
        "A scale word: exponent fields of rows g (a, c) and g + 8 (b, d), of columns 0 to {} (a, b) and {BLOCK} to {} (c, d)\n\n  \
         bits 31 to 0  {cells}\n",
        BLOCK - 1,
        TILE_K - 1
    )
}

/// The way of one element.
fn chain(row: usize, k: usize) -> String {
    let (at, field) = (locate_code(row, k), locate_field(row, k / BLOCK));
    let Place { thread, register, half } = at.place;
    let side = ["low", "high"][half];
    let home = CODE_BITS.iter().zip([6, 7, 8, 15]).map(|(name, bit)| format!("{name} {}", bit + 16 * half));
    let bits = CODE_BITS.iter().zip(at.bits).map(|(name, bit)| format!("{name} {bit}"));
    let mut out = format!("row {row}, k {k} of a record\n\n");
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<11} {text}");
    };
    line("checkpoint", format!("byte {} of the row's {}, {side} nibble", k / 2, TILE_K / 2));
    line("thread", thread_name(thread));
    line("register", format!("a{register} of k16 step {}, {side} half", at.step));
    line("stored", format!("bytes {} to {} of the record, bits {}", at.group, at.group + 7, listed(bits)));
    line(
        "load",
        format!("16 bytes at {}: the group is words {} and {}", 16 * thread, at.step / 2 * 2, at.step / 2 * 2 + 1),
    );
    line("decode", format!("{}, & 81c081c0: bits {}", DECODE[at.pair], listed(home)));
    let lanes = format!("lanes {} to {}", field.thread % LANES, field.thread % LANES + 3);
    line("scale", format!("word at byte {}, of {lanes}; bits {}", field.word, listed(field.bits.iter().rev())));
    let rotated = ["", ", ror 8"][k / BLOCK];
    line("multiplier", format!("word{rotated}, & 7f807f80: {} half", ["low", "high"][register % 2]));
    out
}

/// What one thread holds.
fn share(thread: usize) -> String {
    let mut out = format!("{}\n\n", thread_name(thread));
    let first = locate_field(element(Place { thread, register: 0, half: 0 }).row, 0);
    let _ = writeln!(out, "  codes       bytes {} to {} of the record's {RECORD_BYTES}", 16 * thread, 16 * thread + 15);
    let _ = writeln!(out, "  scale word  bytes {} to {}\n", first.word, first.word + 3);
    let _ = writeln!(out, "  {:<6}{:<10}{:<6}{:<12}pair of its group", "step", "register", "row", "k low, high");
    for (step, register) in (0..STEPS * REGISTERS).map(|i| (i / REGISTERS, i % REGISTERS)) {
        let at = element(Place { thread, register, half: 0 });
        let k = STEP_K * step + at.k;
        let pair = locate_code(at.row, k).pair;
        let _ = writeln!(
            out,
            "  {step:<6}{:<10}{:<6}{:<12}{pair}",
            format!("a{register}"),
            at.row,
            format!("{k}, {}", k + 1)
        );
    }
    out
}

/// The elements that a thread has of a 64x16 tile.
fn thread_elements(thread: usize) -> impl Iterator<Item = Element> {
    (0..2 * REGISTERS).map(move |i| element(Place { thread, register: i / 2, half: i % 2 }))
}

fn thread_name(thread: usize) -> String {
    let lane = thread % LANES;
    format!("{thread}: warp {}, lane {lane} (g {}, q {})", thread / LANES, lane / 4, lane % 4)
}

fn letter(name: char, half: usize) -> char {
    if half == 0 { name } else { name.to_ascii_uppercase() }
}

fn spaced(cells: impl Iterator<Item = String>) -> String {
    cells.fold(String::new(), |line, cell| format!("{line}{cell:>4}"))
}

fn listed(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
