//! Texts of strangers in a page.

use std::fmt::{self, Write};

/// A text as HTML shows it, between tags and in attributes with quotation marks. Control characters, which HTML forbids
/// or browsers change, are shown as U+FFFD.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let is_special =
            |c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || (c.is_control() && c != '\n' && c != '\t');
        while let Some(at) = rest.find(is_special) {
            f.write_str(&rest[..at])?;
            let mut behind = rest[at..].chars();
            match behind.next() {
                Some('&') => f.write_str("&amp;")?,
                Some('<') => f.write_str("&lt;")?,
                Some('>') => f.write_str("&gt;")?,
                Some('"') => f.write_str("&quot;")?,
                Some('\'') => f.write_str("&#39;")?,
                _ => f.write_char('\u{FFFD}')?,
            }
            rest = behind.as_str();
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed() {
        let hostile = "<script>alert('x & \"y\"')</script>\0\u{1b}[2J\u{9b}\r\n\tü";
        let shown = "&lt;script&gt;alert(&#39;x &amp; &quot;y&quot;&#39;)&lt;/script&gt;\u{fffd}\u{fffd}[2J\u{fffd}\u{fffd}\n\tü";
        assert_eq!(Escaped(hostile).to_string(), shown);
    }
}
