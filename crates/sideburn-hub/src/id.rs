//! What a repository on the hub is called.

use std::fmt;
use std::str::FromStr;

use crate::HubError;

/// A repository of a model on the hub, and which of its states: `google/flan-t5-small`, which is at its branch `main`, or
/// `google/flan-t5-small@v1.0`, at a branch, a tag or a commit.
///
/// ```
/// use sideburn_hub::RepoId;
///
/// let id: RepoId = "google/flan-t5-small@refs/pr/3".parse()?;
/// assert_eq!((id.name(), id.revision()), ("google/flan-t5-small", "refs/pr/3"));
/// assert!("https://huggingface.co/google/flan-t5-small".parse::<RepoId>().is_err());
/// # Ok::<(), sideburn_hub::HubError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoId {
    name: String,
    revision: String,
}

impl RepoId {
    /// `OWNER/NAME`, or `NAME` of the few models that have no owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The commit, if the revision is one.
    pub(crate) fn commit(&self) -> Option<&str> {
        Some(&*self.revision).filter(|revision| is_commit(revision))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl FromStr for RepoId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let invalid = |reason: String| HubError::Id { name: text.to_owned(), reason };
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        match why_no_name(name).or_else(|| why_no_revision(revision)) {
            None => Ok(Self { name: name.to_owned(), revision: revision.to_owned() }),
            Some(reason) => Err(invalid(reason)),
        }
    }
}

/// Whether a text is the hash of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What is wrong with the name of a repository, by the rules of `huggingface_hub` (`utils/_validators.py`).
fn why_no_name(name: &str) -> Option<String> {
    if let Some((_, rest)) = name.split_once("://") {
        let parts: Vec<&str> = rest.split('/').skip(1).take(2).filter(|part| !part.is_empty()).collect();
        return Some(match parts[..] {
            [owner, name] => format!("it is a URL; give the id, {owner}/{name}"),
            _ => "it is a URL; give the id, OWNER/NAME".to_owned(),
        });
    }
    let is_part = |part: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        part.len() <= 96 && part.chars().all(inner) && is_edge(part.chars().next()) && is_edge(part.chars().last())
    };
    if name.split('/').count() > 2 {
        Some("it has more than one `/`; an id is OWNER/NAME, or OWNER/NAME@REVISION".to_owned())
    } else if name.contains("..") || name.contains("--") {
        Some("`..` and `--` stand in no id".to_owned())
    } else if !name.split('/').all(is_part) {
        let rule = "letters, digits, `-`, `_` and `.` make an id, OWNER/NAME, at most 96 in each half, `-` and `.` not at an end";
        Some(rule.to_owned())
    } else if name.ends_with(".git") {
        Some("an id does not end in .git".to_owned())
    } else {
        None
    }
}

/// What is wrong with a revision, by the rules of git (`git check-ref-format`), since it becomes a path in the cache.
fn why_no_revision(revision: &str) -> Option<String> {
    let odd =
        |c: char| c.is_control() || c.is_whitespace() || matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\' | '@');
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_ref = revision.split('/').all(is_part) && !revision.contains("..") && !revision.ends_with('.');
    let is_fine = is_ref && revision.len() <= 200 && !revision.contains(odd);
    (!is_fine).then(|| format!("{revision:?} behind the `@` is no branch, tag or commit of git"))
}
