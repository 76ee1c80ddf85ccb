//! What a judge answers, checked.

use serde::{Deserialize, Serialize};
use serde_json::{Deserializer, Map, Value};

/// The longest answer, in bytes. A score with a reason has a few hundred.
const MAX_ANSWER: usize = 64 << 10;

/// A score with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// From 1 to 5.
    pub score: u8,
    /// Why, in the judge's words; empty if it gave none.
    #[serde(default)]
    pub reason: String,
}

impl Verdict {
    /// The verdict in what a model wrote: the one JSON object in it that has a `score`. Words around it, and marks of a code
    /// block, are passed over, since models that are held to no schema add them; so is what is between `<think>` and
    /// `</think>`.
    ///
    /// ```
    /// use sideburn_judge::Verdict;
    ///
    /// let verdict = Verdict::parse("Sure!\n```json\n{\"reason\": \"All there.\", \"score\": 5}\n```")?;
    /// assert_eq!((verdict.score, verdict.reason.as_str()), (5, "All there."));
    /// assert_eq!(Verdict::parse("I would give it a 5.").unwrap_err(), "no JSON object with a \"score\"");
    /// # Ok::<(), String>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong, in a few words: the answer is empty, too long, holds no such object or several that differ, or the
    /// score is no whole number from 1 to 5.
    pub fn parse(answer: &str) -> Result<Self, String> {
        if answer.len() > MAX_ANSWER {
            return Err(format!("{} bytes, where a score and a reason are expected", answer.len()));
        }
        let answer = answer.rsplit_once("</think>").map_or(answer, |(_, answer)| answer).trim();
        if answer.is_empty() {
            return Err("empty".to_owned());
        }
        let mut found: Vec<Self> = Vec::new();
        for object in objects(answer).filter(|object| object.contains_key("score")) {
            let verdict = Self::of(&object)?;
            if found.iter().all(|known| known.score != verdict.score) {
                found.push(verdict);
            }
        }
        match found.len() {
            0 => Err("no JSON object with a \"score\"".to_owned()),
            1 => Ok(found.remove(0)),
            _ => Err("several JSON objects with different scores".to_owned()),
        }
    }

    fn of(object: &Map<String, Value>) -> Result<Self, String> {
        let score = &object["score"];
        let whole = score.as_f64().filter(|number| number.fract() == 0.0 && (1.0..=5.0).contains(number));
        let Some(whole) = whole else {
            return Err(format!(
                "the score {}, where a whole number from 1 to 5 is expected",
                start_of(&score.to_string())
            ));
        };
        let reason = object.get("reason").and_then(Value::as_str).unwrap_or_default();
        Ok(Self { score: whole as u8, reason: reason.to_owned() })
    }
}

/// The JSON objects that stand in a text, from left to right, those within another left out.
fn objects(text: &str) -> impl Iterator<Item = Map<String, Value>> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        while let Some(at) = rest.find('{') {
            rest = &rest[at..];
            let mut values = Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
            if let Some(Ok(object)) = values.next() {
                rest = &rest[values.byte_offset()..];
                return Some(object);
            }
            rest = &rest[1..];
        }
        None
    })
}

/// The first characters of a text from outside, for a message.
pub(crate) fn start_of(text: &str) -> String {
    const SHOWN: usize = 200;
    let start: String = text.trim().chars().take(SHOWN).collect();
    let more = if text.trim().chars().nth(SHOWN).is_some() { " ..." } else { "" };
    format!("{}{more}", sideburn_files::printable(&start))
}
