//! The choices as an SVG: tokens to the right, layers and their experts downwards, loads as bars beside them.

use std::fmt::Write;

use super::Routed;
use super::label::cut;
use super::record::Load;

/// More rectangles than this make a file of tens of megabytes, which browsers are slow to show.
pub const MAX_CELLS: usize = 200_000;

const CELL_WIDTH: usize = 14;
const LEFT: usize = 60;
const RIGHT: usize = 30;
/// Title, legend, and the first band's caption; the tokens' texts come on top.
const HEAD: usize = 136;
const BOTTOM: usize = 30;
/// Between bands; holds the caption.
const BAND_GAP: usize = 30;
/// Between the cells and the loads.
const BAR_GAP: usize = 16;
const BAR_WIDTH: usize = 140;
/// The title and the legend need this much, however few the tokens.
const MIN_WIDTH: usize = 960;
const MAX_LABEL_CHARS: usize = 24;
/// What a character of a token's text takes upwards, on a slope.
const LABEL_RISE: usize = 5;
/// From one numbered expert to the next, so that the numbers do not touch.
const TICK_DISTANCE: usize = 16;

const STYLE: &str = "text{font:11px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}\
.token,.tick{font:9px monospace}.tick{text-anchor:end}.paper{fill:#fff}.back{fill:#f3f3f0}.cell{fill:#0b3d91}\
.bar{fill:#c8641e}.even{stroke:#555;stroke-dasharray:3 2}.begin{stroke:#1a7f37;stroke-width:2}";

/// A whole SVG document.
pub fn draw(routed: &Routed) -> String {
    let drawing = Drawing::new(routed);
    let (width, height) = (drawing.width(), drawing.top + routed.routes.n_layers() * drawing.band() + BOTTOM);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" \
         height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
    );
    drawing.write_title(&mut out);
    drawing.write_axes(&mut out);
    for layer in 0..routed.routes.n_layers() {
        drawing.write_band(layer, &mut out);
    }
    drawing.write_begin_of_answer(&mut out);
    out.push_str("</svg>\n");
    out
}

struct Drawing<'a> {
    routed: &'a Routed,
    loads: Vec<Load>,
    /// The tokens' texts, ready for XML.
    names: Vec<String>,
    /// Height of an expert's row.
    row: usize,
    /// Where the first band begins.
    top: usize,
}

impl<'a> Drawing<'a> {
    fn new(routed: &'a Routed) -> Self {
        let row = match routed.routes.n_experts {
            0..=16 => 12,
            17..=64 => 8,
            _ => 5,
        };
        let loads = (0..routed.routes.n_layers()).map(|layer| routed.routes.load(layer)).collect();
        let names = routed.tokens.iter().map(|token| escape(&token.label)).collect();
        let longest = routed.tokens.iter().map(|token| token.label.chars().count().min(MAX_LABEL_CHARS)).max();
        Self { routed, loads, names, row, top: HEAD + LABEL_RISE * longest.unwrap_or(0) }
    }

    fn cells_width(&self) -> usize {
        self.routed.tokens.len() * CELL_WIDTH
    }

    fn width(&self) -> usize {
        (LEFT + self.cells_width() + BAR_GAP + BAR_WIDTH + RIGHT).max(MIN_WIDTH)
    }

    fn rows_height(&self) -> usize {
        self.routed.routes.n_experts * self.row
    }

    fn band(&self) -> usize {
        self.rows_height() + BAND_GAP
    }

    /// Share of the longest bar.
    fn most(&self) -> f64 {
        self.loads.iter().map(|load| load.busiest().1).fold(f64::MIN_POSITIVE, f64::max)
    }

    fn write_title(&self, out: &mut String) {
        let Routed { model, precision, routes, tokens, .. } = self.routed;
        let (model, n) = (escape(model), tokens.len());
        let (top_k, n_experts) = (routes.top_k, routes.n_experts);
        let _ = writeln!(
            out,
            "<title>Routes of {n} tokens through {model}</title>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"28\">Which experts each token is sent to</text>\n\
             <text x=\"{LEFT}\" y=\"46\">{model} ({precision}): {n} tokens, {} layers, {top_k} of {n_experts} experts for \
             each</text>",
            routes.n_layers()
        );
        let _ = writeln!(out, "<g class=\"legend\" transform=\"translate({LEFT} 60)\">");
        let _ = writeln!(out, "<text x=\"0\" y=\"10\">routing weight</text>");
        for (i, weight) in [0.1, 0.25, 0.5, 0.75, 1.0].into_iter().enumerate() {
            let x = 90 + 50 * i;
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"0\" width=\"14\" height=\"12\" fill=\"#0b3d91\" fill-opacity=\"{weight}\"/>\
                 <text x=\"{}\" y=\"10\">{weight}</text>",
                x + 18
            );
        }
        let _ = writeln!(
            out,
            "<rect x=\"350\" y=\"1\" width=\"30\" height=\"10\" fill=\"#c8641e\"/><text x=\"386\" y=\"10\">load: share of the \
             layer's choices, longest {:.1} %; dashed line: even share, {:.1} %</text>\n</g>",
            100.0 * self.most(),
            100.0 / n_experts as f64
        );
    }

    fn write_axes(&self, out: &mut String) {
        let middle = self.top + self.rows_height() / 2;
        let _ = writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"92\">token →</text>\n\
             <text transform=\"translate(16 {middle}) rotate(-90)\" text-anchor=\"middle\">← layer, expert</text>\n\
             <text x=\"{}\" y=\"92\">load →</text>",
            LEFT + self.cells_width() + BAR_GAP
        );
        for (i, (token, name)) in self.routed.tokens.iter().zip(&self.names).enumerate() {
            let (x, y) = (LEFT + i * CELL_WIDTH + CELL_WIDTH / 2, self.top - 24);
            let short = escape(&cut(&token.label, MAX_LABEL_CHARS));
            let _ = writeln!(
                out,
                "<text class=\"token\" transform=\"translate({x} {y}) rotate(-60)\">{short}<title>token {}: {name}, id {}\
                 </title></text>",
                token.position, token.id
            );
        }
    }

    /// One layer: a row for each expert, a column for each token, a bar for each load.
    fn write_band(&self, layer: usize, out: &mut String) {
        let load = &self.loads[layer];
        let (expert, share) = load.busiest();
        let _ = writeln!(out, "<g class=\"band\" transform=\"translate({LEFT} {})\">", self.top + layer * self.band());
        let _ = writeln!(
            out,
            "<text x=\"0\" y=\"-5\">layer {layer}: busiest expert {expert} ({:.1} %), max/mean {:.2}, never chosen {}</text>\n\
             <rect class=\"back\" width=\"{}\" height=\"{}\"/>",
            100.0 * share,
            load.max_over_mean(),
            load.never_chosen(),
            self.cells_width(),
            self.rows_height()
        );
        for expert in (0..load.shares.len()).step_by(TICK_DISTANCE.div_ceil(self.row)) {
            let y = expert * self.row + (self.row + 6) / 2;
            let _ = writeln!(out, "<text class=\"tick\" x=\"-4\" y=\"{y}\">{expert}</text>");
        }
        self.write_cells(layer, out);
        self.write_bars(layer, load, out);
        out.push_str("</g>\n");
    }

    fn write_cells(&self, layer: usize, out: &mut String) {
        let tokens = self.routed.tokens.iter().zip(&self.names);
        for (i, (choices, (token, name))) in self.routed.routes.by_token(layer).zip(tokens).enumerate() {
            for choice in choices {
                let _ = writeln!(
                    out,
                    "<rect class=\"cell\" x=\"{}\" y=\"{}\" width=\"{CELL_WIDTH}\" height=\"{}\" fill-opacity=\"{:.3}\">\
                     <title>token {}: {name}, layer {layer}, expert {}, weight {:.4}</title></rect>",
                    i * CELL_WIDTH,
                    choice.expert * self.row,
                    self.row,
                    choice.weight,
                    token.position,
                    choice.expert,
                    choice.weight
                );
            }
        }
    }

    fn write_bars(&self, layer: usize, load: &Load, out: &mut String) {
        let (x, scale) = (self.cells_width() + BAR_GAP, BAR_WIDTH as f64 / self.most());
        for (expert, &share) in load.shares.iter().enumerate() {
            let _ = writeln!(
                out,
                "<rect class=\"bar\" x=\"{x}\" y=\"{}\" width=\"{:.2}\" height=\"{}\"><title>layer {layer}, expert {expert}: \
                 {:.2} % of the choices</title></rect>",
                expert * self.row,
                share * scale,
                self.row - 1,
                100.0 * share
            );
        }
        let even = x as f64 + scale / self.routed.routes.n_experts as f64;
        let _ = writeln!(
            out,
            "<line class=\"even\" x1=\"{even:.2}\" y1=\"0\" x2=\"{even:.2}\" y2=\"{}\"/>",
            self.rows_height()
        );
    }

    /// Where generated tokens follow those of the prompt.
    fn write_begin_of_answer(&self, out: &mut String) {
        let Routed { routes, prompt_tokens, start, tokens, .. } = self.routed;
        if !(start + 1..start + tokens.len()).contains(prompt_tokens) {
            return;
        }
        let x = LEFT + (prompt_tokens - start) * CELL_WIDTH;
        let bottom = self.top + routes.n_layers() * self.band() - BAND_GAP;
        let _ = writeln!(
            out,
            "<line class=\"begin\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{bottom}\"><title>the answer begins</title></line>\n\
             <text x=\"{x}\" y=\"{}\">↑ the answer begins</text>",
            self.top,
            bottom + 16
        );
    }
}

/// Text between tags: markup characters by their names, what XML does not allow as U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a b=\"c\" d='e'> & é\n"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt; &amp; é\n");
        assert_eq!(escape("\u{0}\u{1b}\u{fffe}\t"), "\u{fffd}\u{fffd}\u{fffd}\t");
    }
}
