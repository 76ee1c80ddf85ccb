//! Regular expressions for names of places, as Python's `re` reads them.

use fancy_regex::{Captures, Error, Regex, RegexBuilder, RuntimeError};

use crate::AdapterError;

/// After so many steps back a match is given up. Names have fewer than 100 characters, of which honest patterns need a few
/// hundred steps.
const MAX_STEPS: usize = 100_000;

/// A regular expression of a configuration, with look-around and back-references.
#[derive(Debug)]
pub(crate) struct Pattern {
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(PATTERN, name)`. `field` is where the pattern stands.
    ///
    /// # Errors
    /// If it is not a regular expression.
    pub(crate) fn of_whole_name(field: &'static str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(field, pattern, &format!("^(?:{pattern})$"))
    }

    /// `re.match("(.*\\.)?(PATTERN)$", name)`, by which `peft` finds ranks: groups of the pattern count from 3.
    ///
    /// # Errors
    /// If it is not a regular expression.
    pub(crate) fn of_name_end(field: &'static str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(field, pattern, &format!(r"^(.*\.)?({pattern})$"))
    }

    /// `re.match(EXPRESSION, name)` with an expression that is made of `pattern`.
    ///
    /// # Errors
    /// If it is not a regular expression.
    pub(crate) fn of_name_start(field: &'static str, pattern: &str, expression: &str) -> Result<Self, AdapterError> {
        Self::new(field, pattern, &format!("^(?:{expression})"))
    }

    fn new(field: &'static str, text: &str, expression: &str) -> Result<Self, AdapterError> {
        let text = text.to_owned();
        match RegexBuilder::new(expression).backtrack_limit(MAX_STEPS).build() {
            Ok(regex) => Ok(Self { field, text, regex }),
            Err(error) => Err(AdapterError::TargetPattern { field, pattern: text, message: error.to_string() }),
        }
    }

    /// Whether `name` is meant.
    ///
    /// # Errors
    /// If the search takes too many steps.
    pub(crate) fn is_match(&self, name: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(name).map_err(|error| self.given_up(name, &error))
    }

    /// What the groups are, if `name` is meant.
    ///
    /// # Errors
    /// If the search takes too many steps.
    pub(crate) fn captures<'n>(&self, name: &'n str) -> Result<Option<Captures<'n>>, AdapterError> {
        self.regex.captures(name).map_err(|error| self.given_up(name, &error))
    }

    fn given_up(&self, name: &str, error: &Error) -> AdapterError {
        let message = match error {
            Error::RuntimeError(RuntimeError::BacktrackLimitExceeded) => {
                format!("{name:?} takes more than {MAX_STEPS} steps; write it without repetitions inside each other")
            }
            other => format!("at {name:?}: {other}"),
        };
        AdapterError::TargetPattern { field: self.field, pattern: self.text.clone(), message }
    }
}

/// Whether `pattern` means the same as text in which a point is any character.
pub(crate) fn is_literal(pattern: &str) -> bool {
    pattern.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
}

/// [`Pattern::of_name_end`] for a [literal](is_literal) pattern and an ASCII name, of which `peft`'s EVA writes one for each
/// layer.
pub(crate) fn ends_with_literal(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.as_bytes(), pattern.as_bytes());
    let Some(start) = name.len().checked_sub(pattern.len()) else { return false };
    let alike = |(found, wanted): (&u8, &u8)| found == wanted || (*wanted == b'.' && *found != b'\n');
    (start == 0 || name[start - 1] == b'.') && name[start..].iter().zip(pattern).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "encoder.block.1.layer.0.SelfAttention.q";

    fn whole(pattern: &str) -> Result<bool, AdapterError> {
        Pattern::of_whole_name("target_modules", pattern)?.is_match(NAME)
    }

    #[test]
    fn patterns_are_pythons() {
        // What `re.fullmatch` says of each.
        for (pattern, expected) in [
            (r"^(?!decoder).*\.q", true),
            (r"(?!encoder).*\.q", false),
            (r".*(?<=SelfAttention\.)q", true),
            (r".*(?<!SelfAttention\.)q", false),
            (r".*\.q\Z", true),
            (r".*\.(q|qq)", true),
            (r".*\.(x|q)$", true),
            (r"encoder", false),
            (r"(?i).*selfattention\.Q", true),
            (r"(?P<stack>en|de)coder.*", true),
            (r"(e)ncod\1r.*", true),
            (r".*block\.(?:0|[2-9]|1)\..*", true),
        ] {
            assert_eq!(whole(pattern).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn groups_count_behind_those_of_peft() {
        let ends = |pattern: &str| Pattern::of_name_end("rank_pattern", pattern).unwrap().is_match("a.b.xx").unwrap();
        assert!(ends(r"(x)\3"));
        assert!(!ends(r"(x)\1"), "the first group of `peft` is what stands before");
    }

    #[test]
    fn literal_patterns_are_patterns() {
        let names = ["a.q", "q", "freq", "b.a.q", "bxa.q", "a.qq", "", "a."];
        for pattern in ["q", "a.q", "b.a.q", ".q", "", "a", "."] {
            assert!(is_literal(pattern));
            let slow = Pattern::of_name_end("rank_pattern", pattern).unwrap();
            for name in names {
                assert_eq!(ends_with_literal(name, pattern), slow.is_match(name).unwrap(), "{pattern:?} for {name:?}");
            }
        }
        assert!(!is_literal("a*") && !is_literal("ä") && !is_literal(r"a\.b"));
    }

    #[test]
    fn a_pattern_that_does_not_end_is_given_up() {
        let error = whole(r"(?=e)(\w*\.?)*(\w*\.?)*(\w*\.?)*(\w*\.?)*!").unwrap_err().to_string();
        assert!(error.starts_with("target_modules \"(?=e)") && error.contains("more than 100000 steps"), "{error}");
        assert!(error.contains(NAME), "{error}");
    }

    #[test]
    fn an_error_names_the_field() {
        let error = Pattern::of_name_end("alpha_pattern", "(").unwrap_err().to_string();
        assert!(error.starts_with("alpha_pattern \"(\" is not a regular expression that is supported"), "{error}");
    }
}
