//! `sideburn data split`: a data set in parts that share no dialogue.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{bail, ensure};
use serde::Serialize;
use sideburn::data::{split_examples, write_examples};
use sideburn::files::AtomicDir;
use sideburn::prelude::*;

use crate::report::{Finding, count, shown, table};
use crate::source::DataArgs;

/// Split a data set into parts that share no dialogue
///
/// Each part is a file in the output directory, such as train.jsonl, so that the directory is a data set that other
/// commands read. Examples with one dialogue stay together, whatever their ids are. The same seed makes the same parts.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// The parts, and how much of the examples each has
    #[arg(long, value_name = "NAME=FRACTION,..", default_value = "train=0.8,validation=0.1,test=0.1")]
    parts: Parts,
    /// The form of the files: csv, tsv, json, jsonl or parquet
    #[arg(long, value_name = "ENDING", default_value = "jsonl")]
    format: String,
    /// Where the files are written
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What decides who is in which part
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

/// The endings of files that are data sets.
const FORMATS: [&str; 6] = ["csv", "tsv", "json", "jsonl", "ndjson", "parquet"];

#[derive(Clone)]
struct Parts(Vec<(String, f64)>);

impl FromStr for Parts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            let (name, fraction) = part.split_once('=')?;
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
            Some((name.to_owned(), fraction.trim().parse().ok()?)).filter(|_| is_name)
        };
        let parts: Option<Vec<(String, f64)>> = text.split(',').map(|text| part(text.trim())).collect();
        let parts = parts.ok_or("write train=0.8,test=0.2, with names of letters, digits, hyphens and underscores")?;
        let is_twice = |(at, (name, _)): (usize, &(String, f64))| parts[..at].iter().any(|(other, _)| other == name);
        match parts.iter().enumerate().find(|part| is_twice(*part)) {
            Some((_, (name, _))) => Err(format!("{name} is there twice")),
            None => Ok(Self(parts)),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct Divided {
    output: PathBuf,
    #[serde(flatten)]
    source: serde_json::Value,
    seed: u64,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    fraction: f64,
    examples: usize,
    file: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Divided> {
    let Parts(parts) = &args.parts;
    let is_plain = args.format.chars().all(|c| c.is_ascii_alphanumeric());
    ensure!(is_plain, "--format is an ending such as csv, tsv, json, jsonl or parquet");
    for (name, _) in parts {
        let others = FORMATS.iter().filter(|format| **format != args.format);
        if let Some(other) =
            others.map(|format| args.output.join(format!("{name}.{format}"))).find(|other| other.exists())
        {
            bail!("{} is there, so that {name} would be there twice; delete it, or write elsewhere", shown(&other));
        }
    }
    let (loaded, _) = args.data.read(Split::Train, args.seed)?;
    let fractions: Vec<f64> = parts.iter().map(|(_, fraction)| *fraction).collect();
    let divided = split_examples(loaded.examples, &fractions, args.seed)?;
    let staged = AtomicDir::create(&args.output)?;
    let mut found = Vec::new();
    for ((name, fraction), examples) in parts.iter().zip(divided) {
        let file = format!("{name}.{}", args.format);
        write_examples(staged.path().join(&file), &examples, "summary")?;
        let file = args.output.join(file);
        found.push(Part { name: name.clone(), fraction: *fraction, examples: examples.len(), file });
    }
    staged.commit()?;
    Ok(Divided { output: args.output.clone(), source: args.data.record(), seed: args.seed, parts: found })
}

impl Finding for Divided {}

impl fmt::Display for Divided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |part: &Part| [part.name.clone(), count(part.examples, "example"), shown(&part.file)];
        table(f, &self.parts.iter().map(row).collect::<Vec<_>>())
    }
}
