//! Makes text that a process or a peer chose safe to print: nothing in it can move a terminal's
//! cursor, reorder what is read, hide characters, or split a line.
//!
//! Used by the text sink ([`Escaped`]) and the JSON sink ([`JsonSafe`]); the latter also escapes what
//! JSON itself allows raw, since people look at NDJSON on terminals too.

use std::{
    fmt::{self, Write as _},
    io,
};

use serde_json::ser::{CompactFormatter, Formatter};

/// Whether a character may not reach a terminal as it is: controls (C0, DEL, C1), line separators,
/// direction controls (Unicode TR 9) and characters that are not seen.
#[must_use]
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Shows hostile characters as `\n`, `\t` or `\u{1b}`, and the backslash as `\\`, so that what is
/// shown says exactly what was there.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\n' => formatter.write_str("\\n")?,
                '\r' => formatter.write_str("\\r")?,
                '\t' => formatter.write_str("\\t")?,
                '\\' => formatter.write_str("\\\\")?,
                hostile if is_hostile(hostile) => {
                    write!(formatter, "{}", hostile.escape_unicode())?;
                }
                harmless => formatter.write_char(harmless)?,
            }
        }
        Ok(())
    }
}

/// serde_json's compact format with hostile characters as `\uXXXX`.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonSafe;

impl Formatter for JsonSafe {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(start) = rest.find(is_hostile) {
            let (harmless, hostile) = rest.split_at(start);
            CompactFormatter.write_string_fragment(writer, harmless)?;
            let mut characters = hostile.chars();
            if let Some(character) = characters.next() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = characters.as_str();
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde::Serialize;

    use super::*;

    fn json(text: &str) -> String {
        let mut bytes = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, JsonSafe,
        ))
        .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[rstest]
    #[case::plain("nginx: worker", "nginx: worker")]
    #[case::colour("\u{1b}[31mred", "\\u{1b}[31mred")]
    #[case::newline("a\nb\rc\td", "a\\nb\\rc\\td")]
    #[case::backslash("a\\n", "a\\\\n")]
    #[case::right_to_left("a\u{202e}b", "a\\u{202e}b")]
    #[case::c1("\u{9b}2J", "\\u{9b}2J")]
    #[case::letters("größe 東京", "größe 東京")]
    fn shows_what_was_there(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(Escaped(text).to_string(), shown);
    }

    #[test]
    fn json_escapes_what_json_would_let_through() {
        assert_eq!(
            json("a\u{7f}\u{9b}\u{2028}\u{202e}\u{e0041}"),
            r#""a\u007f\u009b\u2028\u202e\udb40\udc41""#
        );
    }

    proptest! {
        #[test]
        fn nothing_hostile_gets_out(text in any::<String>()) {
            prop_assert!(!Escaped(&text).to_string().contains(is_hostile));
            prop_assert!(!json(&text).contains(is_hostile));
        }

        #[test]
        fn json_reads_back_as_it_was(text in any::<String>()) {
            prop_assert_eq!(serde_json::from_str::<String>(&json(&text)).unwrap(), text);
        }
    }
}
