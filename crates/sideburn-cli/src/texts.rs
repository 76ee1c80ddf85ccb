//! Files of texts: what systems and people wrote.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use sideburn::data::Loaded;
use sideburn::files::read_text;

use crate::report::{in_line, shown_in_line};

/// The largest file of texts.
const MAX_TEXTS: u64 = 1 << 30;

/// How many names a message lists.
const LISTED: usize = 5;

/// `[NAME=]PATH`. What stands before the first `=` is a name if no path separator is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("", _) | (_, "")) => Err("write NAME=PATH, or PATH alone".to_owned()),
            Some((name, path)) if !name.contains(['/', '\\']) => {
                Ok(Self { name: Some(name.to_owned()), path: path.into() })
            }
            _ => Ok(Self { name: None, path: text.into() }),
        }
    }
}

/// A line of a file: texts, in an object or not.
enum Line {
    Texts(Vec<String>),
    Object(Map<String, Value>),
}

/// The lines of a file: of one that ends in .jsonl a JSON value each, else texts.
fn lines(path: &Path) -> anyhow::Result<Vec<Line>> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    if let "csv" | "tsv" | "parquet" | "json" | "7z" = ending.as_str() {
        bail!(
            "{}: .{ending} files are not read here; give texts, one a line, or JSON Lines (.jsonl)",
            shown_in_line(path)
        );
    }
    let file = read_text(path, MAX_TEXTS)?;
    let is_json = matches!(ending.as_str(), "jsonl" | "ndjson");
    let parsed = |(number, line): (usize, &str)| match is_json {
        true => parse(line).with_context(|| format!("{}, line {}", shown_in_line(path), number + 1)),
        false => Ok(Line::Texts(vec![line.to_owned()])),
    };
    let lines: Vec<Line> = file.lines().enumerate().map(parsed).collect::<Result<_, _>>()?;
    ensure!(!lines.is_empty(), "{} has no line", shown_in_line(path));
    Ok(lines)
}

fn parse(line: &str) -> anyhow::Result<Line> {
    ensure!(!line.trim_start().starts_with("{'"), "a Python dictionary, not JSON; write it with json.dumps");
    let value: Value = serde_json::from_str(line).context("not JSON; a .jsonl file has a JSON value on each line")?;
    match value {
        Value::Object(object) => Ok(Line::Object(object)),
        other => texts_in(other).map(Line::Texts),
    }
}

/// A text, or a list of texts.
fn texts_in(value: Value) -> anyhow::Result<Vec<String>> {
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(texts) if !texts.is_empty() => {
            let text = |text| match text {
                Value::String(text) => Ok(text),
                other => bail!("a list with {other} in it, where texts are expected"),
            };
            texts.into_iter().map(text).collect()
        }
        other => bail!("{other}, where a text or a list of texts is expected"),
    }
}

/// The texts of each line of a file, those of an object in its `field`.
pub(crate) fn read_texts(path: &Path, field: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let texts = |(number, line)| match line {
        Line::Texts(texts) => Ok(texts),
        Line::Object(object) => {
            field_of(object, field).with_context(|| format!("{}, line {}", shown_in_line(path), number + 1))
        }
    };
    lines(path)?.into_iter().enumerate().map(texts).collect()
}

fn field_of(mut object: Map<String, Value>, field: &str) -> anyhow::Result<Vec<String>> {
    let value = object.remove(field).with_context(|| {
        let known = object.keys().map(|name| in_line(name)).collect::<Vec<_>>().join(", ");
        format!("no field {:?}, only {known}; name one with --field", in_line(field))
    })?;
    texts_in(value)
}

/// A system's name, and what it wrote for each example.
pub(crate) type Written = (String, Vec<String>);

/// Refuses two systems of one name.
pub(crate) fn check_names(systems: &[Written]) -> anyhow::Result<()> {
    for (at, (name, _)) in systems.iter().enumerate() {
        let is_new = systems[..at].iter().all(|(other, _)| other != name);
        ensure!(is_new, "there are two systems called {:?}; name one of them, as NAME=FILE", in_line(name));
    }
    Ok(())
}

/// What systems wrote for the examples, from a file: a text a line in the examples' order, or JSON Lines, whose objects
/// may have an `id` and stand in any order. The objects' `field` has the text; where none is named, that is `summary`,
/// or, where there is no such field, each field but `id` is a system.
pub(crate) fn read_predictions(file: &Named, field: Option<&str>, loaded: &Loaded) -> anyhow::Result<Vec<Written>> {
    let (path, examples) = (&file.path, &loaded.examples);
    let lines = lines(path)?;
    let stem = || path.file_stem().map_or_else(|| shown_in_line(path), |stem| stem.to_string_lossy().into_owned());
    let name = file.name.clone().unwrap_or_else(stem);
    let of_object = match (lines.first(), field) {
        (Some(Line::Object(object)), None) if !object.contains_key("summary") => {
            let names: Vec<String> = object.keys().filter(|name| *name != "id").cloned().collect();
            ensure!(!names.is_empty(), "{}, line 1: no field but id, where texts are expected", shown_in_line(path));
            Some(names)
        }
        _ => None,
    };
    let names = of_object.clone().unwrap_or_else(|| vec![field.unwrap_or("summary").to_owned()]);
    let places: HashMap<&str, usize> =
        examples.iter().enumerate().map(|(at, example)| (example.id.as_str(), at)).collect();
    let mut texts: Vec<Vec<Option<String>>> = vec![vec![None; examples.len()]; names.len()];
    let count = lines.len();
    for (number, line) in lines.into_iter().enumerate() {
        let at = || format!("{}, line {}", shown_in_line(path), number + 1);
        let (place, fields) = match line {
            Line::Texts(found) => (number, vec![found]),
            Line::Object(mut object) => {
                let place = match object.remove("id") {
                    None => number,
                    Some(id) => {
                        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
                        *places.get(id.as_str()).with_context(|| {
                            let known: Vec<String> =
                                examples.iter().take(LISTED).map(|example| in_line(&example.id)).collect();
                            format!(
                                "{}: no dialogue has the id {:?}; they are {}, ..",
                                at(),
                                in_line(&id),
                                known.join(", ")
                            )
                        })?
                    }
                };
                let of = |name: &String| field_of(object.clone(), name).with_context(at);
                (place, names.iter().map(of).collect::<Result<_, _>>()?)
            }
        };
        if place >= examples.len() {
            // Told below, with the count.
            break;
        }
        for (texts, found) in texts.iter_mut().zip(fields) {
            let [text]: [String; 1] = found.try_into().map_err(|found: Vec<String>| {
                anyhow::anyhow!("{}: {} texts, where a system writes one", at(), found.len())
            })?;
            let known = texts[place].replace(text);
            ensure!(known.is_none(), "{}: a second text for {:?}", at(), in_line(&examples[place].id));
        }
    }
    let missing: Vec<String> = (0..examples.len())
        .filter(|at| texts.iter().any(|texts| texts[*at].is_none()))
        .map(|at| in_line(&examples[at].id))
        .collect();
    if count != examples.len() || !missing.is_empty() {
        let rows = match loaded.rows == examples.len() {
            true => String::new(),
            false => format!(" (of {} records: those that differ in the reference alone are one)", loaded.rows),
        };
        let listed = missing.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        let lacking =
            if missing.is_empty() { String::new() } else { format!("; none for {listed}{}", more(missing.len())) };
        bail!(
            "{} has {count} texts for {} dialogues{rows}{lacking}; give one for each",
            shown_in_line(path),
            examples.len()
        );
    }
    let is_alone = names.len() == 1;
    let named = |field: String| match (&file.name, &of_object) {
        (Some(name), Some(_)) if !is_alone => format!("{name} {field}"),
        (None, Some(_)) => field,
        _ => name.clone(),
    };
    Ok(names.into_iter().map(named).zip(texts.into_iter().map(|texts| texts.into_iter().flatten().collect())).collect())
}

/// ` and 3 more`, of a list of which some are shown.
fn more(count: usize) -> String {
    count.checked_sub(LISTED).filter(|more| *more > 0).map_or_else(String::new, |more| format!(" and {more} more"))
}
