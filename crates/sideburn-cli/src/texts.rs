//! Files of texts: what systems and people wrote.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use sideburn::data::{Loaded, is_python};
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

/// The lines of a file, with their numbers: of one that ends in .jsonl a JSON value each, between which lines may be blank,
/// else texts.
fn lines(path: &Path) -> anyhow::Result<Vec<(usize, Line)>> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    if let "csv" | "tsv" | "parquet" | "json" | "7z" = ending.as_str() {
        bail!(
            "{}: .{ending} files are not read here; give texts, one a line, or JSON Lines (.jsonl)",
            shown_in_line(path)
        );
    }
    let file = read_text(path, MAX_TEXTS)?;
    let is_json = matches!(ending.as_str(), "jsonl" | "ndjson");
    let parsed = |(number, line): (usize, &str)| {
        let parsed = if is_json { parse(line) } else { texts_in(line.into()).map(Line::Texts) };
        let parsed = parsed.with_context(|| format!("{}, line {number}", shown_in_line(path)))?;
        Ok((number, parsed))
    };
    let numbered = (1..).zip(file.lines()).filter(|(_, line)| !is_json || !line.trim().is_empty());
    let lines: Vec<_> = numbered.map(parsed).collect::<anyhow::Result<_>>()?;
    ensure!(!lines.is_empty(), "{} has no line", shown_in_line(path));
    Ok(lines)
}

fn parse(line: &str) -> anyhow::Result<Line> {
    let value: Value = match serde_json::from_str(line) {
        Err(_) if is_python(line) => bail!("a Python dictionary, not JSON; write it with json.dumps"),
        value => value.context("not JSON; a .jsonl file has a JSON value on each line")?,
    };
    match value {
        Value::Object(object) => Ok(Line::Object(object)),
        other => texts_in(other).map(Line::Texts),
    }
}

/// A text, or a list of texts.
fn texts_in(value: Value) -> anyhow::Result<Vec<String>> {
    match value {
        Value::String(text) if !text.contains('\0') => Ok(vec![text]),
        Value::Array(texts) if !texts.is_empty() => {
            let text = |text| match text {
                Value::String(text) if !text.contains('\0') => Ok(text),
                Value::String(_) => bail!("a NUL character, which no text has"),
                other => bail!("a list with {other} in it, where texts are expected"),
            };
            texts.into_iter().map(text).collect()
        }
        Value::String(_) => bail!("a NUL character, which no text has"),
        other => bail!("{other}, where a text or a list of texts is expected"),
    }
}

/// The texts of each line of a file, and what the lines are called, if each is an object with an `id`.
pub(crate) struct Texts {
    path: PathBuf,
    pub(crate) texts: Vec<Vec<String>>,
    /// The place of each id.
    ids: Option<HashMap<String, usize>>,
}

impl Texts {
    /// Reads a file, whose objects have their texts in `field`.
    pub(crate) fn read(path: &Path, field: &str) -> anyhow::Result<Self> {
        let (lines, path) = (lines(path)?, path.to_owned());
        let (mut texts, mut ids) = (Vec::with_capacity(lines.len()), HashMap::new());
        for (number, line) in lines {
            let at = || format!("{}, line {number}", shown_in_line(&path));
            let found = match line {
                Line::Texts(texts) => texts,
                Line::Object(mut object) => {
                    if let Some(id) = object.remove("id") {
                        let id = id_of(&id);
                        let known = ids.insert(id.clone(), texts.len());
                        ensure!(known.is_none(), "{}: a second text for {:?}", at(), in_line(&id));
                    }
                    field_of(object, field).with_context(at)?
                }
            };
            texts.push(found);
        }
        let all_have = ids.len() == texts.len();
        Ok(Self { path, texts, ids: all_have.then_some(ids) })
    }

    /// The same in the order of `references`: by the ids, where both have them, else as they are.
    pub(crate) fn in_order_of(mut self, references: &Self) -> anyhow::Result<Vec<Vec<String>>> {
        let [own, other] = [&self.path, &references.path].map(|path| shown_in_line(path));
        let (found, expected) = (self.texts.len(), references.texts.len());
        ensure!(
            found == expected,
            "{own} has {found} lines, {other} has {expected}; both need one for each text, in one order or with ids"
        );
        let (Some(ids), Some(known)) = (&self.ids, &references.ids) else { return Ok(self.texts) };
        let mut ordered = vec![Vec::new(); expected];
        for (id, place) in ids {
            let to =
                known.get(id).with_context(|| format!("{own} has a text for {:?}, {other} has none", in_line(id)))?;
            ordered[*to] = std::mem::take(&mut self.texts[*place]);
        }
        Ok(ordered)
    }
}

fn id_of(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
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
        (Some((_, Line::Object(object))), None) if !object.contains_key("summary") => {
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
    for (place, (number, line)) in lines.into_iter().enumerate() {
        let at = || format!("{}, line {number}", shown_in_line(path));
        let (place, fields) = match line {
            Line::Texts(found) => (place, vec![found]),
            Line::Object(mut object) => {
                let place = match object.remove("id") {
                    None => place,
                    Some(id) => {
                        let id = id_of(&id);
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
