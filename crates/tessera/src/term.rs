//! What the terminal gets to see: colour only where it is wanted, no control characters from a model.

use std::borrow::Cow;
use std::io::IsTerminal;

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// How to set text apart on one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Ansi,
}

impl Style {
    /// ANSI on a terminal, unless `NO_COLOR` is set or the terminal is dumb.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if stream.is_terminal() && !set("NO_COLOR") && !dumb { Self::Ansi } else { Self::Plain }
    }

    /// Begins dimmed text.
    pub fn dim(self) -> &'static str {
        self.code(DIM)
    }

    pub fn reset(self) -> &'static str {
        self.code(RESET)
    }

    fn code(self, code: &'static str) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Ansi => code,
        }
    }
}

/// Text of a model, safe to print on `stream`: on a terminal, control characters but line ends and tabs read as U+FFFD.
pub fn safe<'a>(stream: &impl IsTerminal, text: &'a str) -> Cow<'a, str> {
    if stream.is_terminal() { without_controls(text) } else { text.into() }
}

fn without_controls(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(acts) { text.replace(acts, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(without_controls("a\tb\n"), "a\tb\n");
        assert_eq!(without_controls("\x1b[2Jx\r\u{9b}y"), "\u{fffd}[2Jx\u{fffd}\u{fffd}y");
    }
}
