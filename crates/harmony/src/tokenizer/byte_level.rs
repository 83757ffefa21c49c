//! The byte-level alphabet of GPT-2 style vocabularies: each byte is written as one printable character.
//!
//! Printable Latin-1 characters stand for themselves; the 68 other bytes, in order, take U+0100 and up.

/// The character that stands for `byte` in a vocabulary.
pub(super) fn char_of(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&other| !is_printable(other)).count();
    u32::try_from(earlier).ok().and_then(|n| char::from_u32(0x100 + n)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Appends the bytes that a vocabulary entry stands for. Characters outside the alphabet stand for their UTF-8.
pub(super) fn extend_bytes(out: &mut Vec<u8>, token: &str) {
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        // The non-printable bytes are three runs, in order: 0x00..=0x20, 0x7f..=0xa0, 0xad.
        n @ 0x100..=0x120 => u8::try_from(n - 0x100).ok(),
        n @ 0x121..=0x142 => u8::try_from(n - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        n => u8::try_from(n).ok().filter(|&byte| is_printable(byte)),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character_and_comes_back() {
        let chars: std::collections::BTreeSet<char> = (0..=u8::MAX).map(char_of).collect();
        assert_eq!(chars.len(), 256);
        for byte in 0..=u8::MAX {
            let mut out = Vec::new();
            extend_bytes(&mut out, &char_of(byte).to_string());
            assert_eq!(out, [byte]);
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(0x7f), char_of(0xad)), ('Ġ', 'Ċ', 'ġ', 'Ń'));
    }

    #[test]
    fn characters_outside_the_alphabet_are_their_utf8() {
        let mut out = Vec::new();
        extend_bytes(&mut out, "Ġ日a");
        assert_eq!(out, " 日a".as_bytes());
    }
}
