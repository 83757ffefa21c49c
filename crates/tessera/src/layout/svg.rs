//! The drawing: a record, the tile of one warp, the bits of a group and of a scale word.

use std::fmt::Write as _;

use tessera_cuda::pack::fragment::{Element, place};
use tessera_cuda::pack::{LANES, STEP_K, STEPS, TILE_K, locate_code, locate_field};
use tessera_model::mxfp4::BLOCK;

use super::{CODE_BITS, Choice, WARP_ROWS, WARPS, letter, thread_elements};

const WIDTH: usize = 1200;
const HEIGHT: usize = 800;
const MARGIN: usize = 40;
/// One colour for each lane of a quad, or two for each pair of a group: first step, second step.
const COLOURS: [&str; 8] = ["#cfe3f7", "#d5efd3", "#fbe6c4", "#f3d3e3", "#9fc4ea", "#a9d9a5", "#f4cb8a", "#e3a6c6"];
const CHOSEN: &str = "#c00000";

pub(super) fn draw(choice: Choice) -> String {
    let mut svg = Svg::new();
    record(&mut svg, choice);
    tile(&mut svg, choice);
    group(&mut svg, choice);
    scale_word(&mut svg, choice);
    svg.finish()
}

/// The record as warps by k16 steps.
fn record(svg: &mut Svg, choice: Choice) {
    let (left, top, width, height) = (MARGIN, 90, 80, 80);
    svg.heading(left, top - 40, "a record: 64 rows by 64 columns");
    for (warp, step) in (0..WARPS * STEPS).map(|i| (i / STEPS, i % STEPS)) {
        let is_chosen = match choice {
            Choice::All => false,
            Choice::Element { row, k } => (row / WARP_ROWS, k / STEP_K) == (warp, step),
            Choice::Thread(thread) => thread / LANES == warp,
        };
        let (x, y) = (left + width * step, top + height * warp);
        svg.cell(Cell { x, y, width, height, fill: "#f4f4f4" }, &format!("warp {warp}"), 11);
        svg.text(x + width / 2, y + height / 2 + 18, &format!("step {step}"), 11);
        if is_chosen {
            svg.outline(x, y, width, height);
        }
    }
    for step in 0..=STEPS {
        svg.text(left + width * step, top - 8, &format!("{}", STEP_K * step), 11);
    }
    for warp in 0..=WARPS {
        svg.text(left - 18, top + height * warp, &format!("{}", WARP_ROWS * warp), 11);
    }
    svg.text(left + 160, top + height * WARPS + 24, "steps 0, 1 and 2, 3: one scale for each row", 11);
}

/// One warp's 16 rows of one k16 step.
fn tile(svg: &mut Svg, choice: Choice) {
    let (left, top, width, height) = (460, 90, 43, 20);
    svg.heading(left, top - 40, "a warp's part of one step: lane.register of each pair, even k left");
    for k in 0..STEP_K {
        svg.text(left + width * k + width / 2, top - 8, &k.to_string(), 11);
    }
    for row in 0..WARP_ROWS {
        svg.text(left - 18, top + height * row + 14, &row.to_string(), 11);
        for k in (0..STEP_K).step_by(2) {
            let at = place(Element { row, k });
            let cell = Cell {
                x: left + width * k,
                y: top + height * row,
                width: 2 * width,
                height,
                fill: COLOURS[at.thread % 4],
            };
            svg.cell(cell, &format!("{}.a{}", at.thread, at.register), 11);
        }
        for k in 0..STEP_K {
            let is_chosen = match choice {
                Choice::All => false,
                Choice::Element { row: r, k: c } => (r % WARP_ROWS, c % STEP_K) == (row, k),
                Choice::Thread(thread) => place(Element { row, k }).thread == thread % LANES,
            };
            if is_chosen {
                svg.outline(left + width * k, top + height * row, width, height);
            }
        }
    }
    let note = "warp w has rows 16 w + r; even k is in the low half of the register";
    svg.text(left + width * STEP_K / 2, top + height * WARP_ROWS + 24, note, 11);
}

/// The two words of a group.
fn group(svg: &mut Svg, choice: Choice) {
    let top = 520;
    svg.heading(
        MARGIN,
        top - 44,
        "a group of 16 codes: pair and bit (s sign, e and f exponent, m mantissa; odd k large)",
    );
    let chosen = match choice {
        Choice::Element { row, k } => locate_code(row, k).bits.to_vec(),
        Choice::All | Choice::Thread(_) => Vec::new(),
    };
    for (step, element) in (0..2).flat_map(|step| thread_elements(0).map(move |element| (step, element))) {
        let at = locate_code(element.row, STEP_K * step + element.k);
        for (&bit, name) in at.bits.iter().zip(CODE_BITS) {
            let label = format!("{}{}", at.pair, letter(name, at.place.half));
            svg.bit(top + 70 * (bit / 32), bit % 32, COLOURS[at.pair], &label);
        }
    }
    for word in 0..2 {
        svg.word(top + 70 * word, &format!("w{word}"));
    }
    for bit in chosen {
        svg.outline(bit_x(bit % 32), top + 70 * (bit / 32), BIT_WIDTH, BIT_HEIGHT);
    }
    let note =
        "pairs 0 to 3: a0 to a3 of the group's first step; 4 to 7: of the second; 3 and 7 share what the others leave";
    svg.text(WIDTH / 2, top + 126, note, 11);
}

/// The word of four scales.
fn scale_word(svg: &mut Svg, choice: Choice) {
    let top = 720;
    svg.heading(MARGIN, top - 44, "the scale word of four lanes: exponent fields");
    for (i, (row, block)) in [(0, 0), (WARP_ROWS / 2, 0), (0, 1), (WARP_ROWS / 2, 1)].into_iter().enumerate() {
        for (power, bit) in locate_field(row, block).bits.into_iter().enumerate() {
            svg.bit(top, bit, COLOURS[i], &format!("{}{power}", ["a", "b", "c", "d"][i]));
        }
    }
    svg.word(top, "word");
    if let Choice::Element { row, k } = choice {
        for bit in locate_field(row, k / BLOCK).bits {
            svg.outline(bit_x(bit), top, BIT_WIDTH, BIT_HEIGHT);
        }
    }
    let note = format!(
        "a: row g, columns 0 to {}; b: row g + 8; c, d: the same of columns {BLOCK} to {}",
        BLOCK - 1,
        TILE_K - 1
    );
    svg.text(WIDTH / 2, top + 56, &note, 11);
}

const BIT_WIDTH: usize = 33;
const BIT_HEIGHT: usize = 28;

/// The left side of a bit's cell: bit 31 is the leftmost.
fn bit_x(bit: usize) -> usize {
    MARGIN + 40 + BIT_WIDTH * (31 - bit)
}

struct Cell {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
    fill: &'static str,
}

struct Svg(String);

impl Svg {
    fn new() -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"monospace\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        ))
    }

    fn finish(self) -> String {
        self.0 + "</svg>\n"
    }

    fn heading(&mut self, x: usize, y: usize, text: &str) {
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{y}\" font-size=\"15\" font-weight=\"bold\">{text}</text>");
    }

    /// Text around `x`.
    fn text(&mut self, x: usize, y: usize, text: &str, size: usize) {
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" text-anchor=\"middle\">{text}</text>");
    }

    fn cell(&mut self, cell: Cell, label: &str, size: usize) {
        let Cell { x, y, width, height, fill } = cell;
        let _ = writeln!(
            self.0,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\" stroke=\"#666\"/>"
        );
        self.text(x + width / 2, y + (height + size) / 2 - 1, label, size);
    }

    /// Sets something apart that was chosen.
    fn outline(&mut self, x: usize, y: usize, width: usize, height: usize) {
        let _ = writeln!(
            self.0,
            "<rect class=\"chosen\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" \
             stroke=\"{CHOSEN}\" stroke-width=\"3\"/>"
        );
    }

    fn bit(&mut self, y: usize, bit: usize, fill: &'static str, label: &str) {
        self.cell(Cell { x: bit_x(bit), y, width: BIT_WIDTH, height: BIT_HEIGHT, fill }, label, 12);
    }

    /// The name of a word beside its bits, and their numbers above.
    fn word(&mut self, y: usize, name: &str) {
        self.text(MARGIN + 16, y + 19, name, 12);
        for bit in 0..32 {
            self.text(bit_x(bit) + BIT_WIDTH / 2, y - 5, &bit.to_string(), 10);
        }
    }
}
