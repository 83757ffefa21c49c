//! The choices as text: a map of tokens and layers, then the loads of each layer.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::ops::Range;

use super::label::{columns, cut};
use super::record::Load;
use super::{Choice, Routed, ShownToken};
use crate::term::Style;

/// Tokens of the map, some screens full: the last ones, since prompts most often begin alike. JSON has all.
const MAX_SHOWN_TOKENS: usize = 256;
/// Longest heading of a column, written downwards.
const MAX_LABEL_CHARS: usize = 12;
/// Where the output is no terminal and `COLUMNS` says nothing.
const DEFAULT_WIDTH: usize = 80;
/// From an expert without choices to the busiest one of all layers.
const SHADES: [char; 9] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What the text is shown on.
pub struct Screen {
    style: Style,
    width: usize,
}

impl Screen {
    pub fn of_stdout() -> Self {
        Self { style: Style::of(&io::stdout()), width: width() }
    }
}

/// Of the terminal, else as `COLUMNS` says.
fn width() -> usize {
    let terminal = || {
        let mut editor = io::stdout().is_terminal().then(rustyline::DefaultEditor::new)?.ok()?;
        editor.dimensions().map(|(columns, _)| usize::from(columns))
    };
    let given = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal().filter(|&columns| columns > 0).or_else(given).unwrap_or(DEFAULT_WIDTH)
}

pub fn print(routed: &Routed, screen: Screen) -> String {
    let map = Map::new(routed, screen);
    let mut out = String::new();
    map.write_title(&mut out);
    let n_tokens = routed.tokens.len();
    let per_band = (map.screen.width.saturating_sub(map.margin()) / map.cell).max(1);
    for start in (n_tokens.saturating_sub(MAX_SHOWN_TOKENS)..n_tokens).step_by(per_band) {
        map.write_band(start..(start + per_band).min(n_tokens), &mut out);
    }
    map.write_loads(&mut out);
    out
}

struct Map<'a> {
    routed: &'a Routed,
    screen: Screen,
    /// Width of a column, the space before it included.
    cell: usize,
}

impl<'a> Map<'a> {
    fn new(routed: &'a Routed, screen: Screen) -> Self {
        // A wide character of a heading takes two columns, whatever the number of experts.
        Self { routed, screen, cell: 1 + digits(routed.routes.n_experts - 1).max(2) }
    }

    /// `layer 12 `.
    fn margin(&self) -> usize {
        "layer ".len() + digits(self.routed.routes.n_layers() - 1) + 1
    }

    fn write_title(&self, out: &mut String) {
        let Routed { model, precision, routes, tokens, prompt_tokens, start } = self.routed;
        let last = start + tokens.len() - 1;
        let _ = writeln!(out, "{model} ({precision}): {} of {} experts for each token", routes.top_k, routes.n_experts);
        let _ =
            write!(out, "tokens {start} to {last}, of which {} generated; ", (last + 1).saturating_sub(*prompt_tokens));
        let _ = writeln!(out, "each cell is the expert with the largest weight");
        if self.screen.style == Style::Ansi {
            let _ = writeln!(out, "a colour is an expert's, and the brighter, the larger its weight");
        }
        if tokens.len() > MAX_SHOWN_TOKENS {
            let _ = writeln!(
                out,
                "shown: the last {MAX_SHOWN_TOKENS} of these {} tokens; --svg and --json have all",
                tokens.len()
            );
        }
    }

    /// One row per layer for as many tokens as fit the width.
    fn write_band(&self, range: Range<usize>, out: &mut String) {
        let tokens = &self.routed.tokens[range.clone()];
        let (first, last) = (tokens[0].position, tokens[tokens.len() - 1].position);
        let _ = writeln!(out, "\ntokens {first} to {last}");
        self.write_headings(tokens, out);
        let digits = digits(self.routed.routes.n_layers() - 1);
        for layer in 0..self.routed.routes.n_layers() {
            let _ = write!(out, "layer {layer:digits$} ");
            let chosen = self.routed.routes.by_token(layer).skip(range.start).take(range.len());
            chosen.for_each(|choices| self.write_cell(choices[0], out));
            out.push('\n');
        }
    }

    fn write_cell(&self, Choice { expert, weight }: Choice, out: &mut String) {
        let width = self.cell;
        let _ = match self.screen.style {
            Style::Plain => write!(out, "{expert:width$}"),
            Style::Ansi => {
                let (paper, ink) = colours(expert, weight);
                write!(out, "\x1b[48;5;{paper};38;5;{ink}m{expert:width$}\x1b[0m")
            }
        };
    }

    /// Tokens' texts written downwards, so that they end above their column.
    fn write_headings(&self, tokens: &[ShownToken], out: &mut String) {
        let stacks: Vec<Vec<String>> = tokens.iter().map(|token| stack(&cut(&token.label, MAX_LABEL_CHARS))).collect();
        let height = stacks.iter().map(Vec::len).max().unwrap_or(0);
        for row in 0..height {
            let mut line = " ".repeat(self.margin());
            for stack in &stacks {
                let text = (row + stack.len()).checked_sub(height).map_or("", |at| &stack[at]);
                let taken: usize = text.chars().map(columns).sum();
                line.extend(std::iter::repeat_n(' ', self.cell.saturating_sub(taken)));
                line.push_str(text);
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }

    fn write_loads(&self, out: &mut String) {
        let routes = &self.routed.routes;
        let loads: Vec<Load> = (0..routes.n_layers()).map(|layer| routes.load(layer)).collect();
        let most = loads.iter().map(|load| load.busiest().1).fold(0.0, f64::max);
        let _ = writeln!(
            out,
            "\nload: each expert's share of a layer's {} choices, from {} (none) to {} ({:.1} %); {:.1} % if all had the same",
            routes.n_tokens() * routes.top_k,
            SHADES[0],
            SHADES[SHADES.len() - 1],
            100.0 * most,
            100.0 / routes.n_experts as f64
        );
        let head = format!("{:>5} {:>8} {:>13} {:>15} ", "layer", "max/mean", "never chosen", "busiest");
        let width = digits(routes.n_experts - 1);
        let per_line = self.screen.width.saturating_sub(head.len() + width + 1).clamp(8, routes.n_experts.max(8));
        let _ = writeln!(out, "{head}experts from");
        for (layer, load) in loads.iter().enumerate() {
            let (expert, share) = load.busiest();
            let busiest = format!("{expert} ({:.1} %)", 100.0 * share);
            let (ratio, never) = (load.max_over_mean(), load.never_chosen());
            let mut start = format!("{layer:>5} {ratio:>8.2} {never:>13} {busiest:>15} ");
            for (i, shares) in load.shares.chunks(per_line).enumerate() {
                let bars: String = shares.iter().map(|&share| shade(share, most)).collect();
                let _ = writeln!(out, "{start}{:width$} {bars}", i * per_line);
                start = " ".repeat(head.len());
            }
        }
    }
}

fn digits(n: usize) -> usize {
    n.to_string().len()
}

/// Characters one above the other, marks with those that they stand on.
fn stack(label: &str) -> Vec<String> {
    let mut stack: Vec<String> = Vec::new();
    for c in label.chars() {
        match stack.last_mut() {
            Some(last) if columns(c) == 0 => last.push(c),
            _ => stack.push(c.into()),
        }
    }
    stack
}

/// Any share but none has a bar.
fn shade(share: f64, most: f64) -> char {
    let bars = SHADES.len() - 1;
    SHADES[((share / most * bars as f64).ceil() as usize).min(bars)]
}

/// Paper and ink of a cell, in the terminal's palette of 256.
fn colours(expert: usize, weight: f32) -> (u8, u8) {
    /// Round the circle of hues, as halves of the brightness.
    const HUES: [[u8; 3]; 12] = [
        [2, 0, 0],
        [2, 1, 0],
        [2, 2, 0],
        [1, 2, 0],
        [0, 2, 0],
        [0, 2, 1],
        [0, 2, 2],
        [0, 1, 2],
        [0, 0, 2],
        [1, 0, 2],
        [2, 0, 2],
        [2, 0, 1],
    ];
    /// Without a divisor in common with the hues, so that neighbours differ and all are used.
    const STEP: usize = 5;
    let brightness = match weight {
        ..0.35 => 2,
        ..0.6 => 3,
        _ => 5,
    };
    let [r, g, b] = HUES[expert * STEP % HUES.len()].map(|half| half * brightness / 2);
    // The palette's cube of 6 x 6 x 6 colours begins at 16, with black; 231 is white. Green is the brightest to the eye.
    let ink = if 2 * r + 5 * g + b > 14 { 16 } else { 231 };
    (16 + 36 * r + 6 * g + b, ink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_tell_none_from_little() {
        let bars: String = [0.0, 0.001, 0.5, 0.51, 1.0].map(|share| shade(share, 1.0)).iter().collect();
        assert_eq!(bars, "·▁▄▅█");
        assert_eq!(shade(0.0, 0.0), '·');
    }

    #[test]
    fn headings_keep_marks_with_their_letters() {
        assert_eq!(stack("ae\u{301}中"), ["a", "e\u{301}", "中"]);
        assert_eq!(stack("\u{301}a"), ["\u{301}", "a"]);
    }

    #[test]
    fn neighbours_differ_in_colour_and_ink_can_be_read() {
        for weight in [0.0, 0.4, 0.9] {
            for expert in 0..128 {
                let (paper, ink) = colours(expert, weight);
                assert!((16..232).contains(&paper) && (ink == 16 || ink == 231));
                assert_ne!(paper, colours(expert + 1, weight).0);
            }
        }
        assert_eq!((colours(0, 0.9), colours(0, 0.1)), ((16 + 36 * 5, 231), (16 + 36 * 2, 231)));
    }
}
