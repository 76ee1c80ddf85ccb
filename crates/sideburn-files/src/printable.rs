//! Text from strangers, made fit to be shown.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;

/// `text`, a name or a path from outside, such that a terminal shows it and does not obey it.
///
/// Control characters (escape, bell, a NUL, line ends, …), the marks that change the direction of writing, and separators
/// of lines stand as Rust escapes them: `\u{1b}`, `\0`, `\n`. Bytes that are not UTF-8 stand as `\u{fffd}` does. All else,
/// quotes and backslashes too, stays as it is: this is for eyes, not to be read back.
///
/// Use it for whatever an error shows without quoting it by `{:?}`, which escapes as well.
///
/// ```
/// use std::path::Path;
/// use sideburn_files::printable;
///
/// assert_eq!(printable("a name, 名前").to_string(), "a name, 名前");
/// assert_eq!(printable(Path::new("red\u{1b}[31m\0")).to_string(), r"red\u{1b}[31m\0");
/// ```
pub fn printable<T: AsRef<OsStr> + ?Sized>(text: &T) -> Printable<'_> {
    Printable(text.as_ref().to_string_lossy())
}

/// Text of several lines, each of them [`printable`]: a terminal obeys nothing in it but the line breaks.
///
/// ```
/// assert_eq!(sideburn_files::printable_lines("one\n\u{1b}[2Jtwo"), "one\n\\u{1b}[2Jtwo");
/// ```
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(|line| printable(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// The digits of a whole number in groups of three.
///
/// ```
/// assert_eq!(sideburn_files::grouped(1_234_567), "1,234,567");
/// assert_eq!(sideburn_files::grouped(12), "12");
/// ```
pub fn grouped(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap_or_default());
    groups.collect::<Vec<_>>().join(",")
}

/// A number with what it counts.
///
/// ```
/// assert_eq!(sideburn_files::count(1, "site"), "1 site");
/// assert_eq!(sideburn_files::count(2_000, "site"), "2,000 sites");
/// ```
pub fn count(number: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// What [`printable`] gives: it shows itself by `{}`.
#[derive(Clone, Debug)]
pub struct Printable<'a>(Cow<'a, str>);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &*self.0;
        while let Some(at) = rest.find(is_obeyed) {
            let (shown, tail) = rest.split_at(at);
            let mut tail = tail.chars();
            write!(f, "{shown}{}", tail.next().map(char::escape_debug).into_iter().flatten().collect::<String>())?;
            rest = tail.as_str();
        }
        f.write_str(rest)
    }
}

/// Whether a terminal, or whatever lays text out, does something at that character instead of showing it.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_obeyed_is_escaped_and_nothing_else() {
        let shown = |text: &str| printable(text).to_string();
        assert_eq!(shown("a\u{1b}]0;title\u{7}b"), r"a\u{1b}]0;title\u{7}b");
        assert_eq!(shown("\0\r\n\t\u{7f}\u{9b}2J"), r"\0\r\n\t\u{7f}\u{9b}2J");
        assert_eq!(shown("txt.\u{202e}exe\u{2029}"), r"txt.\u{202e}exe\u{2029}");
        // A decomposed letter, as macOS has them in paths, a joined emoji, quotes and a Windows path.
        for text in ["u\u{308}", "👩\u{200d}🔬", "it's \"quoted\"", r"C:\models\x", ""] {
            assert_eq!(shown(text), text);
        }
    }

    #[cfg(unix)]
    #[test]
    fn paths_need_not_be_text() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(printable(OsStr::from_bytes(b"a\xff\x1b")).to_string(), "a\u{fffd}\\u{1b}");
    }
}
