//! A token's text where every character can be seen.

use std::fmt::Write;

use tessera_harmony::tokenizer::Tokenizer;
use tessera_model::Token;

/// A token as a column's heading: its text, a control token's name, or its id where there is no text.
pub fn of_token(token: Token, tokenizer: Option<&Tokenizer>) -> String {
    let bytes = tokenizer.and_then(|tokenizer| tokenizer.token_bytes(token));
    bytes.map_or_else(|| format!("#{token}"), visible)
}

/// Text in which spaces and line ends are marks, and what cannot be seen is spelled; a part of a character reads as its
/// bytes. All that is left can stand in XML and be printed on a terminal.
fn visible(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                ' ' => out.push('·'),
                '\n' => out.push('↵'),
                '\t' => out.push('⇥'),
                c if c.is_control() || c.is_whitespace() || is_invisible(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that steer others (Unicode's format characters), and those that are none (U+FFFE and its like), which XML
/// does not allow.
fn is_invisible(c: char) -> bool {
    let steers = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    steers || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe
}

/// The first `n` characters, the last of them `…` where more follow.
pub fn cut(label: &str, n: usize) -> String {
    if label.chars().count() <= n {
        return label.to_owned();
    }
    label.chars().take(n.saturating_sub(1)).chain(['…']).collect()
}

/// Columns that a terminal gives a character: marks that stand on the one before take none, East Asian ones and pictures
/// two. Close enough to line up a table; the ranges are those of Unicode's EastAsianWidth.
pub fn columns(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{20d0}'..='\u{20ff}' | '\u{3099}'..='\u{309a}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_can_be_seen() {
        for (bytes, expect) in [
            ("plain <&'\"> é 中".as_bytes(), "plain·<&'\">·é·中"),
            (b" a\n\tb\r", "·a↵⇥b\\u{d}"),
            (b"\x00\x1b[2J\x7f", "\\u{0}\\u{1b}[2J\\u{7f}"),
            ("\u{a0}\u{2028}\u{202e}\u{fffe}\u{1ffff}".as_bytes(), "\\u{a0}\\u{2028}\\u{202e}\\u{fffe}\\u{1ffff}"),
            (b"\xe2\x82", "\\xe2\\x82"),
            (b"a\xffb", "a\\xffb"),
        ] {
            assert_eq!(visible(bytes), expect);
        }
    }

    #[test]
    fn long_labels_are_cut() {
        assert_eq!((cut("abcd", 4).as_str(), cut("abcde", 4).as_str(), cut("äöü", 2).as_str()), ("abcd", "abc…", "ä…"));
    }
}
