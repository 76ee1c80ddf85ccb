//! Scores of texts, by whomever, as lines of JSON.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sideburn_files::read_text;

use crate::{
    agreement::{Agreement, agreement},
    error::JudgeError,
};

/// The largest file of ratings.
const MAX_FILE: u64 = 1 << 30;

/// The scores of one text: a line of a file of ratings, by a judge or by people.
///
/// ```
/// use sideburn_judge::Rating;
///
/// let line = r#"{"id": "test_0", "system": "lora", "scores": {"relevance": 4, "fluency": 4.5}}"#;
/// let rating: Rating = serde_json::from_str(line)?;
/// assert_eq!((rating.id.as_str(), rating.scores["fluency"]), ("test_0", 4.5));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// The example.
    pub id: String,
    /// Who wrote the text; may be missing where there is one system only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// By the names of criteria, from 1 to 5. Means of several people need not be whole.
    pub scores: BTreeMap<String, f64>,
    /// Why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, String>,
    /// Criteria without a score, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
}

impl Rating {
    /// The ratings in a file of JSON Lines. Objects without an `id`, in which results have their means, are passed over.
    ///
    /// # Errors
    /// [`JudgeError::File`] if it cannot be read, or has more than 1 GiB; [`JudgeError::Rating`] if a line is no rating, a
    /// score is not between 1 and 5, or a text is rated twice.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Self>, JudgeError> {
        let path = path.as_ref();
        let text = read_text(path, MAX_FILE)?;
        let (mut ratings, mut seen) = (Vec::<Self>::new(), HashMap::new());
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |reason: String| JudgeError::Rating { path: path.to_owned(), line: number, reason };
            let value: Value = serde_json::from_str(line).map_err(|error| fail(format!("not JSON: {error}")))?;
            if value.as_object().is_some_and(|object| !object.contains_key("id")) {
                continue;
            }
            let rating: Self = serde_json::from_value(value).map_err(|error| {
                let form = r#"{"id": "test_0", "scores": {"relevance": 4}}"#;
                fail(format!("no rating such as {form}: {error}"))
            })?;
            if let Some((name, score)) = rating.scores.iter().find(|(_, score)| !(1.0..=5.0).contains(*score)) {
                return Err(fail(format!("{name} is {score}; scores are from 1 to 5")));
            }
            if let Some(first) = seen.insert((rating.id.clone(), rating.system.clone()), number) {
                return Err(fail(format!("{:?} is rated already on line {first}", rating.id)));
            }
            ratings.push(rating);
        }
        Ok(ratings)
    }
}

/// How far two agree, criterion by criterion, over the texts that both have rated. A text is the same if its `id` and its
/// `system` are; where one side names no system, the other must have one only.
///
/// ```
/// use sideburn_judge::{Rating, compare_ratings};
///
/// let ratings = |scores: [f64; 4]| -> Vec<Rating> {
///     let rating = |(id, score): (usize, f64)| Rating {
///         id: id.to_string(),
///         scores: [("fluency".to_owned(), score)].into(),
///         ..Rating::default()
///     };
///     scores.into_iter().enumerate().map(rating).collect()
/// };
/// let found = compare_ratings(&ratings([1.0, 2.0, 4.0, 5.0]), &ratings([1.0, 3.0, 4.0, 5.0]))?;
/// assert_eq!((found["fluency"].n, found["fluency"].spearman), (4, Some(1.0)));
/// # Ok::<(), sideburn_judge::JudgeError>(())
/// ```
///
/// # Errors
/// [`JudgeError::Unrelated`] if no text has a criterion that both have rated, or it is not clear which text is meant.
pub fn compare_ratings(first: &[Rating], second: &[Rating]) -> Result<BTreeMap<String, Agreement>, JudgeError> {
    let unrelated = |reason: &str| Err(JudgeError::Unrelated { reason: reason.to_owned() });
    let names_none = |ratings: &[Rating]| ratings.iter().any(|rating| rating.system.is_none());
    let by_id = names_none(first) || names_none(second);
    let text = |rating: &Rating| (rating.id.clone(), rating.system.clone().filter(|_| !by_id));
    let mut of_text = HashMap::new();
    for rating in second {
        if of_text.insert(text(rating), rating).is_some() {
            return unrelated("one side names no system, and the other has several; name them on both sides");
        }
    }
    let (mut pairs, mut seen) = (BTreeMap::<&String, (Vec<f64>, Vec<f64>)>::new(), HashMap::new());
    for rating in first {
        if seen.insert(text(rating), ()).is_some() {
            return unrelated("one side names no system, and the other has several; name them on both sides");
        }
        let Some(other) = of_text.get(&text(rating)) else { continue };
        for (name, score) in &rating.scores {
            if let Some(other) = other.scores.get(name) {
                let (a, b) = pairs.entry(name).or_default();
                a.push(*score);
                b.push(*other);
            }
        }
    }
    if pairs.is_empty() {
        return unrelated(
            "no text has a criterion that both have rated; look at the ids, the systems and the criteria",
        );
    }
    Ok(pairs.into_iter().map(|(name, (a, b))| (name.clone(), agreement(&a, &b))).collect())
}
