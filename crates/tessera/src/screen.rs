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
    /// What the last piece was, and whether it ended a line.
    last: Last,
    ids: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    Hidden,
    Shown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Text { ends_line: bool },
    Reasoning { ends_line: bool },
}

impl Screen {
    pub fn new(reasoning: Reasoning) -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        let style = Style::of(&err);
        Self { out, err, style, reasoning, last: Last::Nothing, ids: 0 }
    }

    pub fn show(&mut self, piece: &Piece) -> io::Result<()> {
        match piece {
            Piece::Text(text) => {
                self.end_reasoning()?;
                self.out.write_all(safe(&self.out, text).as_bytes())?;
                self.out.flush()?;
                self.last = Last::Text { ends_line: text.ends_with('\n') };
            }
            Piece::Reasoning(text) if self.reasoning == Reasoning::Shown => {
                self.end_text()?;
                write!(self.err, "{}{}{}", self.style.dim(), safe(&self.err, text), self.style.reset())?;
                self.err.flush()?;
                self.last = Last::Reasoning { ends_line: text.ends_with('\n') };
            }
            Piece::Reasoning(_) => {}
        }
        Ok(())
    }

    /// The answer is over: what follows begins on a new line.
    pub fn end(&mut self) -> io::Result<()> {
        self.end_reasoning()?;
        if matches!(self.last, Last::Text { ends_line: false }) {
            writeln!(self.out)?;
        }
        self.last = Last::Nothing;
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
        if let Last::Reasoning { ends_line } = self.last {
            self.err.write_all(if ends_line { b"\n" } else { b"\n\n" })?;
            self.last = Last::Nothing;
        }
        Ok(())
    }

    /// Reasoning after text: on a terminal, where both are seen together, it begins on a new line.
    fn end_text(&mut self) -> io::Result<()> {
        if matches!(self.last, Last::Text { ends_line: false }) && self.out.is_terminal() {
            writeln!(self.err)?;
        }
        Ok(())
    }
}
