//! What commands find, as text and as JSON.

use std::fmt::{self, Display, Write};
use std::io;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
pub(crate) use sideburn::files::{count, grouped};
use sideburn::files::{printable, printable_lines};

/// What a command has found, ready to be printed.
pub(crate) struct Report {
    /// For people.
    pub(crate) text: String,
    /// For programs.
    pub(crate) json: String,
    /// Whether the verdict, if there is one, is good.
    pub(crate) passed: bool,
}

/// Writes to the standard error, if it is open.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!($($text)*));
    }};
}
pub(crate) use tell;

/// Something that a command can find.
pub(crate) trait Finding: Display + Serialize {
    /// Whether the verdict, if there is one, is good.
    fn passed(&self) -> bool {
        true
    }
}

impl Report {
    pub(crate) fn new(found: impl Finding) -> Self {
        let json = serde_json::to_string_pretty(&found).expect("plain fields, and maps with text as keys");
        let text = for_terminal(found.to_string().trim_end());
        Self { text, json: escaped_json(&json), passed: found.passed() }
    }
}

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Failed,
    NotChecked,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::NotChecked => "not checked",
        })
    }
}

/// Text of several lines for a terminal, in which nothing is obeyed but line breaks; see [`printable_lines`].
///
/// All that the program prints for people goes through here, since paths and files of strangers are part of it.
pub(crate) fn for_terminal(text: &str) -> String {
    printable_lines(text)
}

/// The same for a name or a path that stands in one line: line breaks are escaped, too.
pub(crate) fn in_line(text: &str) -> String {
    printable(text).to_string()
}

/// A path, as reports show it.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A path in one line of a message.
pub(crate) fn shown_in_line(path: &Path) -> String {
    in_line(&shown(path))
}

/// JSON without the control characters that JSON allows in text (DEL, and U+0080 to U+009F, some of which move a
/// terminal's cursor). Line breaks stand between the fields only, where they mean nothing.
fn escaped_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => escaped.push(c),
            _ if c.is_control() => write!(escaped, "\\u{:04x}", u32::from(c)).expect("text takes all that is written"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Writes rows of cells, the columns aligned. The last cell of a row may have several lines.
pub(crate) fn table<const N: usize>(f: &mut fmt::Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row).take(N - 1) {
            *width = (*width).max(cell.chars().count() + 2);
        }
    }
    let indent = format!("\n{}", " ".repeat(widths.iter().sum()));
    for row in rows {
        for (width, cell) in widths.iter().zip(row).take(N - 1) {
            write!(f, "{cell:width$}")?;
        }
        writeln!(f, "{}", row[N - 1].replace('\n', &indent))?;
    }
    Ok(())
}

/// A number to four or five digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e6).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}

/// Whether nobody reads the standard output any more, who then has read enough. A full disk must not pass for success.
pub(crate) fn is_closed(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(error).context("the standard output could not be written"),
    }
}

/// The messages of an error and of all that caused it. Those that the one before has repeated are left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for message in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text += &format!(": {message}");
        }
    }
    for_terminal(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_not_obeyed() {
        let hostile = "a\u{1b}[2Jb\0c\u{9b}d\u{7f}\re\nf";
        assert_eq!(for_terminal(hostile), "a\\u{1b}[2Jb\\0c\\u{9b}d\\u{7f}\\re\nf");
        assert_eq!(in_line("x\ny"), "x\\ny");
        let json = escaped_json(&serde_json::to_string(hostile).unwrap());
        assert!(!json.chars().any(char::is_control), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }
}
