//! Escaping of untrusted text: names, tags, endpoints, errors and file heads come from users, peers
//! and files, and end up in terminals and logs.
//!
//! A control character moves the cursor or forges a line of a log. A character that changes the
//! direction of writing, or that is invisible, makes text look like other text (Unicode Technical
//! Report 36, "Unicode Security Considerations"). Names and tags must not contain such characters,
//! and every program escapes them in the text that it shows.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

/// Returns true if a character is visible and leaves the text around it as it is.
///
/// Joiners (U+200C, U+200D) are allowed: several scripts and most composed emoji need them.
#[must_use]
pub fn is_printable(char: char) -> bool {
    !char.is_control()
        && !matches!(
            char,
            // Marks, embeddings, overrides and isolates of direction.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Separators of lines and paragraphs.
            | '\u{2028}' | '\u{2029}'
            // Invisible: zero-width space, Mongolian vowel separator, invisible operators, shaping,
            // byte order mark, annotations, tags, fillers.
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}'
            | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Displays text with every character that is not [printable](is_printable) escaped as in Rust:
/// `\n`, `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> Printable<'_> {
    Printable(text)
}

/// Text that [`Display`](fmt::Display) escapes; made by [`printable`].
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaping(f).write_str(self.0)
    }
}

/// Escapes every character of a JSON text that is not [printable](is_printable), in the way of JSON
/// (`\u001b`). Line feeds stay. All others occur in JSON strings only, where an escape is valid.
#[must_use]
pub fn printable_json(text: &str) -> Cow<'_, str> {
    let is_shown = |char: char| char == '\n' || is_printable(char);
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if is_shown(char) {
            escaped.push(char);
            continue;
        }
        for unit in char.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    Cow::Owned(escaped)
}

/// A writer that passes text on to another one and escapes every character that is not
/// [printable](is_printable).
#[derive(Debug)]
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, char)) = rest.char_indices().find(|(_, char)| !is_printable(*char)) {
            let (before, from) = rest.split_at(at);
            self.0.write_str(before)?;
            // Rust's own escape leaves some of these as they are.
            match char {
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                other => write!(self.0, "{}", other.escape_unicode())?,
            }
            rest = from.get(char.len_utf8()..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_harmless_is_as_it_was() {
        for text in [
            "",
            "debian-12",
            "Grüße, 世界",
            "a\\n",
            "👩\u{200d}🚀",
            "\u{301}e",
        ] {
            assert_eq!(printable(text).to_string(), text);
        }
    }

    #[test]
    fn json_stays_json() {
        let line = "{\"name\":\"a\u{202e}b\u{e0001}c\u{9b}\"}\n";
        let escaped = "{\"name\":\"a\\u202eb\\udb40\\udc01c\\u009b\"}\n";
        assert_eq!(printable_json(line), escaped);
        assert!(matches!(printable_json("{}\n"), Cow::Borrowed("{}\n")));
    }

    #[test]
    fn what_moves_the_cursor_or_turns_text_round_is_escaped() {
        for (text, shown) in [
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("one\ntwo\r\n\tthree\0", "one\\ntwo\\r\\n\\tthree\\u{0}"),
            ("cod\u{202e}txt.exe", "cod\\u{202e}txt.exe"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            ("\u{9b}31m\u{7f}\u{85}", "\\u{9b}31m\\u{7f}\\u{85}"),
            ("adm\u{200b}in\u{feff}", "adm\\u{200b}in\\u{feff}"),
        ] {
            assert_eq!(printable(text).to_string(), shown);
        }
    }
}
