//! What people see: text from pods' owners must not command a terminal.

use std::io::{self, Write};

/// Writes control characters, all but line feed and tab, as `\u001b` and the like: a reader sees that they are there, and
/// JSON stays the same JSON.
#[derive(Debug)]
pub struct Visible<W> {
    inner: W,
    /// The first byte of a two-byte character that may be a control character (U+0080 to U+009F) came last.
    begun: bool,
}

/// UTF-8 begins U+0080 to U+00BF with this.
const LATIN_1: u8 = 0xc2;

impl<W: Write> Visible<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, begun: false }
    }
}

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            let control = match (std::mem::take(&mut self.begun), byte) {
                (true, 0x80..=0x9f) => true,
                (true, _) => {
                    shown.push(LATIN_1);
                    false
                }
                (false, _) => false,
            };
            match byte {
                b'\n' | b'\t' => shown.push(*byte),
                _ if control || byte.is_ascii_control() => write!(shown, "\\u00{byte:02x}")?,
                &LATIN_1 => self.begun = true,
                _ => shown.push(*byte),
            }
        }
        self.inner.write_all(&shown)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        for (text, want) in [
            ("shop/cart -> db\n\t5432 ✓ ü ° \u{a0}", "shop/cart -> db\n\t5432 ✓ ü ° \u{a0}"),
            ("a\u{1b}[2J\u{7}\r\u{7f}\0b", "a\\u001b[2J\\u0007\\u000d\\u007f\\u0000b"),
            ("a\u{9b}2Jb\u{80}\u{9f}\u{a1}", "a\\u009b2Jb\\u0080\\u009f\u{a1}"),
        ] {
            for size in 1..=text.len() {
                let mut visible = Visible::new(Vec::new());
                for part in text.as_bytes().chunks(size) {
                    visible.write_all(part).expect("a vector takes everything");
                }
                assert_eq!(String::from_utf8(visible.inner).expect("text"), want, "in parts of {size}");
            }
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"name": "a\u{1b}\u{7f}\u{9b}\n\"ü"});
        let mut visible = Visible::new(Vec::new());
        serde_json::to_writer(&mut visible, &value).expect("written");
        assert!(!visible.inner.contains(&0x9b));
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&visible.inner).expect("JSON"), value);
    }
}
