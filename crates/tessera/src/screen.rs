//! An answer on the terminal: text on stdout as it comes, reasoning dimmed on stderr.

use std::io::{self, IsTerminal, Stderr, Stdout, Write};

use tessera_model::Token;

use crate::answer::Piece;
use crate::term::{Style, safe};

/// Where an answer is shown.
pub struct Screen {
    out: Stdout,
    err: Stderr,
    style: Style,
    reasoning: Reasoning,
    text: Line,
    thought: Line,
    ids: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    Hidden,
    Shown,
}

/// What a stream's text has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nothing was written, or what was is over.
    None,
    Open,
    Ended,
}

impl Screen {
    pub fn new(reasoning: Reasoning) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let style = Style::of(&err);
        Self { out, err, style, reasoning, text: Line::None, thought: Line::None, ids: 0 }
    }

    pub fn show(&mut self, piece: &Piece) -> io::Result<()> {
        match piece {
            Piece::Text(text) => {
                self.end_reasoning()?;
                self.out.write_all(safe(&self.out, text).as_bytes())?;
                self.out.flush()?;
                self.text = Line::after(text);
            }
            Piece::Reasoning(text) if self.reasoning == Reasoning::Shown => {
                self.part_from_text()?;
                write!(self.err, "{}{}{}", self.style.dim(), safe(&self.err, text), self.style.reset())?;
                self.err.flush()?;
                self.thought = Line::after(text);
            }
            Piece::Reasoning(_) => {}
        }
        Ok(())
    }

    /// The answer is over: what follows begins on a new line.
    pub fn end(&mut self) -> io::Result<()> {
        self.end_reasoning()?;
        if self.text == Line::Open {
            writeln!(self.out)?;
        }
        self.text = Line::None;
        self.out.flush()
    }

    /// The next id of a JSON array that is written as it grows.
    pub fn id(&mut self, id: Token) -> io::Result<()> {
        write!(self.out, "{}{id}", if self.ids == 0 { "[" } else { ", " })?;
        self.ids += 1;
        self.out.flush()
    }

    pub fn end_ids(&mut self) -> io::Result<()> {
        writeln!(self.out, "{}", if self.ids == 0 { "[]" } else { "]" })
    }

    fn end_reasoning(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.thought, Line::None) {
            Line::None => Ok(()),
            Line::Open => self.err.write_all(b"\n\n"),
            Line::Ended => self.err.write_all(b"\n"),
        }
    }

    /// Reasoning after text: on a terminal, where both are seen together, it begins on a new line.
    fn part_from_text(&mut self) -> io::Result<()> {
        if self.thought == Line::None && self.text == Line::Open && self.out.is_terminal() {
            writeln!(self.err)?;
        }
        Ok(())
    }
}

impl Line {
    /// `text` is not empty.
    fn after(text: &str) -> Self {
        if text.ends_with('\n') { Self::Ended } else { Self::Open }
    }
}
