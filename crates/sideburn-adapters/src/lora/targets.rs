//! Which sites an adapter attaches to.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// `target_modules` of `peft`: which linear layers are adapted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Sites whose name is one of these or ends with `.` and one of these.
    Names(Vec<String>),
    /// `all-linear`: every linear layer but the output head. Any other text: sites that this regular expression
    /// matches as a whole.
    Pattern(String),
}

impl<S: Into<String>, const N: usize> From<[S; N]> for TargetModules {
    fn from(names: [S; N]) -> Self {
        Self::Names(names.map(Into::into).into())
    }
}

impl TargetModules {
    /// Every linear layer but the output head.
    pub fn all_linear() -> Self {
        Self::Pattern("all-linear".to_owned())
    }

    /// For each of `sites`, whether it is adapted. `head` names the output head, which `all-linear` leaves out.
    ///
    /// # Errors
    /// If a name or the pattern matches no site, or the pattern is not a regular expression.
    pub(crate) fn select(&self, sites: &[String], head: Option<&str>) -> Result<Vec<bool>, AdapterError> {
        let unmatched = |targets: Vec<String>| Err(AdapterError::UnmatchedTargets { targets, sites: sites.to_vec() });
        let chosen: Vec<bool> = match self {
            Self::Names(names) => {
                let idle: Vec<String> =
                    names.iter().filter(|name| !sites.iter().any(|site| is_suffix(site, name))).cloned().collect();
                if !idle.is_empty() || names.is_empty() {
                    return unmatched(idle);
                }
                sites.iter().map(|site| names.iter().any(|name| is_suffix(site, name))).collect()
            }
            Self::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => {
                sites.iter().map(|site| Some(site.as_str()) != head).collect()
            }
            Self::Pattern(pattern) => {
                // As Python's `re.fullmatch`.
                let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| AdapterError::TargetPattern {
                    pattern: pattern.clone(),
                    message: error.to_string(),
                })?;
                sites.iter().map(|site| regex.is_match(site)).collect()
            }
        };
        if chosen.iter().any(|chosen| *chosen) {
            return Ok(chosen);
        }
        match self {
            Self::Names(names) => unmatched(names.clone()),
            Self::Pattern(pattern) => unmatched(vec![pattern.clone()]),
        }
    }
}

fn is_suffix(site: &str, name: &str) -> bool {
    site.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Vec<String> {
        ["encoder.0.q", "encoder.0.freq", "decoder.0.q", "lm_head"].map(str::to_owned).to_vec()
    }

    fn select(targets: &TargetModules) -> Vec<bool> {
        targets.select(&sites(), Some("lm_head")).unwrap()
    }

    #[test]
    fn names_match_whole_components() {
        assert_eq!(select(&["q"].into()), [true, false, true, false], "`freq` is not `q`");
        assert_eq!(select(&["encoder.0.q"].into()), [true, false, false, false]);
        assert_eq!(select(&["lm_head"].into()), [false, false, false, true]);
    }

    #[test]
    fn patterns_match_the_whole_name() {
        assert_eq!(select(&TargetModules::Pattern(r".*decoder.*\.(q|v)".into())), [false, false, true, false]);
        assert_eq!(select(&TargetModules::all_linear()), [true, true, true, false]);
        let error = TargetModules::Pattern("encoder".into()).select(&sites(), None).unwrap_err();
        assert!(error.to_string().contains("encoder.0.freq"), "{error}");
    }

    #[test]
    fn every_name_must_match() {
        let error = TargetModules::from(["q", "query"]).select(&sites(), None).unwrap_err().to_string();
        assert!(error.contains("\"query\"") && !error.contains("\"q\""), "{error}");
        assert!(error.contains("decoder.0.q"), "the sites are listed: {error}");
        let error = TargetModules::Pattern("(".into()).select(&sites(), None).unwrap_err().to_string();
        assert!(error.starts_with("target_modules \"(\" is not a regular expression that is supported"), "{error}");
        assert!(TargetModules::Names(Vec::new()).select(&sites(), None).is_err(), "an adapter without sites");
    }
}
