//! Bulk work shared out among processes that know nothing of each other: which texts are whose, and their results in one again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sideburn_files::printable;

use crate::error::{Place, listed};

/// A part of many texts, one of several that are worked on apart: `2/4` is the second of four. It has every fourth text, from
/// the second on, so that long texts that stand together are spread over all parts.
///
/// ```
/// use sideburn_data::Shard;
///
/// let second: Shard = "2/4".parse()?;
/// assert_eq!(second.places(10).collect::<Vec<_>>(), [1, 5, 9]);
/// assert!("5/4".parse::<Shard>().is_err());
/// # Ok::<(), sideburn_data::ShardError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    /// From 1.
    number: usize,
    count: usize,
}

impl Shard {
    /// Part `number`, which counts from 1, of `count`.
    ///
    /// # Errors
    /// If there is none of that number.
    pub fn new(number: usize, count: usize) -> Result<Self, ShardError> {
        if (1..=count).contains(&number) {
            return Ok(Self { number, count });
        }
        Err(ShardError::NoShard { given: format!("{number}/{count}") })
    }

    /// Its number, from 1.
    pub fn number(self) -> usize {
        self.number
    }

    /// How many parts there are.
    pub fn count(self) -> usize {
        self.count
    }

    /// The places of its texts, from 0, among `texts`.
    pub fn places(self, texts: usize) -> impl Iterator<Item = usize> {
        (self.number - 1..texts).step_by(self.count)
    }

    /// The part that has the text at this place.
    fn of_place(place: usize, count: usize) -> Self {
        Self { number: place % count + 1, count }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let parsed = text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        let (number, count) = parsed.ok_or_else(|| ShardError::NoShard { given: text.to_owned() })?;
        Self::new(number, count)
    }
}

impl TryFrom<String> for Shard {
    type Error = ShardError;

    fn try_from(text: String) -> Result<Self, ShardError> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

/// The first line of a file with the results of a part: what they are results of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardHeader {
    /// Which part.
    pub shard: Shard,
    /// How many texts all parts have together.
    pub texts: usize,
    /// Records of each text: one, or one of each system.
    pub records: usize,
    /// A short text that tells this job from others: a hash of all texts, and of what was to be done with them.
    pub job: String,
}

/// The field with the place of a text, from 0, among those of all parts.
const AT: &str = "at";
/// The field that tells records of one text from each other.
const SYSTEM: &str = "system";

impl ShardHeader {
    /// The file: the header, then the records, each with the place of its text among those of all parts.
    pub fn to_lines(&self, records: impl IntoIterator<Item = (usize, Map<String, Value>)>) -> String {
        let mut lines = serde_json::to_string(self).expect("plain fields") + "\n";
        for (place, record) in records {
            let mut line = Map::from_iter([(AT.to_owned(), place.into())]);
            line.extend(record);
            lines += &(Value::Object(line).to_string() + "\n");
        }
        lines
    }
}

/// Why parts do not make a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// What should name a part names none.
    #[error("{given:?} is no part; write I/N, such as 2/4 for the second of four, with I from 1 to N")]
    NoShard {
        /// What was given.
        given: String,
    },
    /// There is nothing to join.
    #[error("no file is given; give the files of all parts")]
    NoFiles,
    /// A file that no part has written.
    #[error(
        "{at}: {reason}; give files that were written with --shard",
        reason = printable(reason)
    )]
    NotOfShard {
        /// The line.
        at: Place,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of another job.
    #[error(
        "{path} is of another job than {first}: {what} {found}, and there {expected}; join parts of one input, model and flags",
        path = printable(path),
        first = printable(first),
        found = printable(found),
        expected = printable(expected)
    )]
    OtherJob {
        /// The file.
        path: PathBuf,
        /// The first file.
        first: PathBuf,
        /// What differs.
        what: &'static str,
        /// What it has.
        found: String,
        /// What the first has.
        expected: String,
    },
    /// Two files of one part.
    #[error(
        "{path} and {first} are both part {shard}; leave one of them out",
        path = printable(path),
        first = printable(first)
    )]
    ShardTwice {
        /// The part.
        shard: Shard,
        /// The second file.
        path: PathBuf,
        /// The first.
        first: PathBuf,
    },
    /// Parts of which there is no file.
    #[error("there is no file of {}; run them, or give their files", listed(&parts(shards)))]
    ShardsMissing {
        /// Which.
        shards: Vec<Shard>,
    },
    /// A record that another part should have, or none.
    #[error("{at}: the text at {place} is not one of part {shard}, which has those that {texts} texts leave to it")]
    Stray {
        /// The line.
        at: Place,
        /// The place of the text, from 0.
        place: usize,
        /// The part of the file.
        shard: Shard,
        /// How many texts there are.
        texts: usize,
    },
    /// Two records of one text.
    #[error(
        "{at}: a second record of the text at {place}{system}; the first is in line {first}",
        system = system.as_ref().map_or_else(String::new, |system| format!(" by {:?}", printable(system).to_string()))
    )]
    RecordTwice {
        /// The second.
        at: Place,
        /// The place of the text, from 0.
        place: usize,
        /// Whose.
        system: Option<String>,
        /// The line of the first.
        first: u64,
    },
    /// Texts without a record.
    #[error(
        "{path}, part {shard}: no record, or not all, of {missing} of its {texts} texts, at {}; it may not have come to its end: \
         run the part again",
        listed(&places.iter().map(ToString::to_string).collect::<Vec<_>>()),
        path = printable(path)
    )]
    RecordsMissing {
        /// The file.
        path: PathBuf,
        /// Its part.
        shard: Shard,
        /// How many texts lack a record.
        missing: usize,
        /// How many texts the part has.
        texts: usize,
        /// The places of the first of them, from 0.
        places: Vec<usize>,
    },
}

fn parts(shards: &[Shard]) -> Vec<String> {
    shards.iter().map(ToString::to_string).collect()
}

/// How many places a message names.
const NAMED: usize = 5;

/// The records of all parts in the order of the texts, from the files of all parts: names and contents.
///
/// # Errors
/// If a file is none of a part, or of another job, a part is missing or there twice, or a text has no record, or two.
pub fn join_shards<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a str)>,
) -> Result<Vec<Map<String, Value>>, ShardError> {
    let mut headers = BTreeMap::<Shard, (ShardHeader, &Path)>::new();
    let mut records = BTreeMap::<(usize, Option<String>), Map<String, Value>>::new();
    for (path, text) in files {
        let mut lines = (1..).zip(text.lines());
        let not = |line: u64, reason: String| ShardError::NotOfShard { at: Place::new(path, line), reason };
        let first = lines.next().map(|(_, line)| line).unwrap_or_default();
        let header: ShardHeader =
            serde_json::from_str(first).map_err(|error| not(1, format!("not the first line of a part: {error}")))?;
        let (shard, texts) = (header.shard, header.texts);
        if let Some((other, first)) = headers.values().next() {
            check_same_job(&header, path, other, first)?;
        }
        if let Some((_, first)) = headers.get(&shard) {
            return Err(ShardError::ShardTwice { shard, path: path.to_owned(), first: first.to_path_buf() });
        }
        let mut of_part = BTreeMap::<usize, usize>::new();
        let mut seen = BTreeMap::<(usize, Option<String>), u64>::new();
        for (number, line) in lines {
            // The last line of a process that was killed may end anywhere.
            let mut record: Map<String, Value> =
                serde_json::from_str(line).map_err(|error| not(number, format!("no record: {error}")))?;
            let place = record.remove(AT).and_then(|place| usize::try_from(place.as_u64()?).ok());
            let place = place.ok_or_else(|| not(number, format!("no field {AT:?} with the place of a text")))?;
            let at = Place::new(path, number);
            if place >= texts || Shard::of_place(place, shard.count) != shard {
                return Err(ShardError::Stray { at, place, shard, texts });
            }
            let of_many = (header.records > 1).then(|| record.get(SYSTEM)).flatten();
            let system = of_many.map(|system| system.as_str().map_or_else(|| system.to_string(), str::to_owned));
            if let Some(first) = seen.insert((place, system.clone()), number) {
                return Err(ShardError::RecordTwice { at, place, system, first });
            }
            *of_part.entry(place).or_default() += 1;
            records.insert((place, system), record);
        }
        let all: Vec<usize> = shard.places(texts).collect();
        let lacking: Vec<usize> = all
            .iter()
            .copied()
            .filter(|place| of_part.get(place).copied().unwrap_or_default() < header.records)
            .collect();
        if !lacking.is_empty() {
            let places = lacking.iter().copied().take(NAMED).collect();
            let (missing, path) = (lacking.len(), path.to_owned());
            return Err(ShardError::RecordsMissing { path, shard, missing, texts: all.len(), places });
        }
        headers.insert(shard, (header, path));
    }
    let Some(count) = headers.keys().next().map(|shard| shard.count) else { return Err(ShardError::NoFiles) };
    let shards = (1..=count).map(|number| Shard { number, count });
    let shards: Vec<Shard> = shards.filter(|shard| !headers.contains_key(shard)).collect();
    if !shards.is_empty() {
        return Err(ShardError::ShardsMissing { shards });
    }
    Ok(records.into_values().collect())
}

fn check_same_job(header: &ShardHeader, path: &Path, other: &ShardHeader, first: &Path) -> Result<(), ShardError> {
    let differ = |what, found: String, expected: String| match found == expected {
        true => Ok(()),
        false => Err(ShardError::OtherJob { path: path.to_owned(), first: first.to_owned(), what, found, expected }),
    };
    differ("parts", header.shard.count.to_string(), other.shard.count.to_string())?;
    differ("texts", header.texts.to_string(), other.texts.to_string())?;
    differ("records of a text", header.records.to_string(), other.records.to_string())?;
    differ("job", header.job.clone(), other.job.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(shard: &str, texts: usize, job: &str) -> String {
        let header = ShardHeader { shard: shard.parse().unwrap(), texts, records: 1, job: job.to_owned() };
        let record = |place: usize| Map::from_iter([("id".to_owned(), Value::from(format!("t{place}")))]);
        header.to_lines(header.shard.places(texts).map(|place| (place, record(place))))
    }

    fn join(files: &[(&str, String)]) -> Result<Vec<String>, String> {
        let joined = join_shards(files.iter().map(|(name, text)| (Path::new(*name), text.as_str())));
        let joined = joined.map_err(|error| error.to_string())?;
        Ok(joined.into_iter().map(|record| Value::Object(record).to_string()).collect())
    }

    proptest! {
        #[test]
        fn parts_make_the_whole(texts in 0usize..40, count in 1usize..9) {
            let mut files: Vec<(&str, String)> =
                (1..=count).map(|number| ("part", file(&format!("{number}/{count}"), texts, "job"))).collect();
            files.reverse();
            let expected: Vec<String> = (0..texts).map(|place| format!("{{\"id\":\"t{place}\"}}")).collect();
            prop_assert_eq!(join(&files).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for text in ["", "1", "0/4", "5/4", "a/4", "1/0", "-1/4", "1/4/4"] {
            let error = text.parse::<Shard>().unwrap_err().to_string();
            assert!(error.contains("is no part; write I/N"), "{error}");
        }
        assert_eq!(join(&[]).unwrap_err(), "no file is given; give the files of all parts");
    }

    #[test]
    fn gaps_and_doubles_are_named() {
        let parts = || ["1/3", "2/3", "3/3"].map(|shard| file(shard, 8, "job"));
        let [a, b, c] = parts();
        let refused = |files: &[(&str, &str)], expected: &str| {
            let files: Vec<(&str, String)> = files.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
            let error = join(&files).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused(&[("a", &a)], "there is no file of 2/3, 3/3; run them");
        refused(&[("a", &a), ("b", &b), ("b2", &b), ("c", &c)], "b2 and b are both part 2/3; leave one of them out");
        let cut: String = b.lines().take(2).map(|line| format!("{line}\n")).collect();
        refused(
            &[("a", &a), ("b", &cut), ("c", &c)],
            "b, part 2/3: no record, or not all, of 2 of its 3 texts, at 4, 7; it may not have come to its end",
        );
        let torn = &b[..b.len() - 4];
        refused(&[("a", &a), ("b", torn), ("c", &c)], "b, line 4: no record: ");
        let doubled = format!("{b}{}\n", b.lines().nth(2).unwrap());
        refused(&[("b", &doubled)], "b, line 5: a second record of the text at 4; the first is in line 3");
        let stray = format!("{b}{}\n", a.lines().nth(1).unwrap());
        refused(&[("b", &stray)], "b, line 5: the text at 0 is not one of part 2/3");
        refused(&[("a", &a), ("b", &file("2/3", 9, "job"))], "b is of another job than a: texts 9, and there 8");
        refused(&[("a", &a), ("b", &file("2/4", 8, "job"))], "parts 4, and there 3");
        refused(&[("a", &a), ("b", &file("2/3", 8, "other"))], "job other, and there job");
        refused(&[("x", "{\"id\":\"t\"}\n")], "x, line 1: not the first line of a part");
        refused(&[("x", "")], "x, line 1: not the first line of a part");
        let placeless = format!("{a}{{\"id\":\"t\"}}\n");
        refused(&[("a", &placeless)], "a, line 5: no field \"at\"");
    }

    #[test]
    fn a_text_may_have_a_record_of_each_system() {
        let header = ShardHeader { shard: Shard::new(1, 1).unwrap(), texts: 2, records: 2, job: "job".to_owned() };
        let record = |system: &str| Map::from_iter([("system".to_owned(), Value::from(system))]);
        let all = [(0, record("a")), (1, record("a")), (0, record("b")), (1, record("b"))];
        let joined = join(&[("x", header.to_lines(all.clone()))]).unwrap();
        assert_eq!(joined, ["a", "b", "a", "b"].map(|system| format!("{{\"system\":\"{system}\"}}")));
        let error = join(&[("x", header.to_lines(all[..3].to_vec()))]).unwrap_err();
        assert!(error.contains("of 1 of its 2 texts, at 1;"), "{error}");
        let error = join(&[("x", header.to_lines([all[0].clone(), all[0].clone()]))]).unwrap_err();
        assert!(error.contains("line 3: a second record of the text at 0 by \"a\"; the first is in line 2"), "{error}");
    }
}
