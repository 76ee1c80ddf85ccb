//! `sideburn join`: the results of all parts as one file; and parts of a job.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde_json::{Map, Value};
use sideburn::data::join_shards;
use sideburn::files::{read_text, write_atomic};
use sideburn::prelude::*;

use crate::report::{Finding, count, shown};

/// Make one file of the results of all parts, in the order of the texts
///
/// Parts are what sideburn summarize, evaluate and judge write with --shard I/N. Every part must be there, once, and every text
/// must have its record, once; if not, the error names the part and the place of the text, from 0. A file of one job does not
/// go with those of another.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The files of all parts, in any order
    #[arg(value_name = "FILE", required = true)]
    parts: Vec<PathBuf>,
    /// The file that is written, JSON Lines
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// The largest file of a part.
const MAX_PART: u64 = 1 << 30;

#[derive(Serialize)]
pub(crate) struct Joined {
    output: PathBuf,
    parts: usize,
    records: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Joined> {
    let texts = args.parts.iter().map(|path| read_text(path, MAX_PART)).collect::<Result<Vec<_>, _>>()?;
    let records = join_shards(args.parts.iter().map(PathBuf::as_path).zip(texts.iter().map(String::as_str)))?;
    let count = records.len();
    let lines: String =
        records.into_iter().map(|record: Map<String, Value>| Value::Object(record).to_string() + "\n").collect();
    write_atomic(&args.output, lines.as_bytes())?;
    Ok(Joined { output: args.output.clone(), parts: args.parts.len(), records: count })
}

/// What tells a job from others: everything that is hashed into it.
pub(crate) struct Job(Key);

impl Job {
    /// A job over these texts, by their ids.
    pub(crate) fn over<'a>(texts: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let key = Key::from_seed(0).fold_in_name("job");
        Self(texts.into_iter().fold(key, |key, (id, text)| key.fold_in_name(id).fold_in_name(&text)))
    }

    pub(crate) fn with(self, what: &str) -> Self {
        Self(self.0.fold_in_name(what))
    }

    /// With the weights of an adapter.
    pub(crate) fn with_adapter(self, directory: &Path) -> anyhow::Result<Self> {
        let mut key = self.0;
        for name in ["adapter_model.safetensors", "adapter_model.bin"] {
            let path = directory.join(name);
            if path.exists() {
                let bytes = std::fs::read(&path).with_context(|| shown(&path))?;
                key = bytes.chunks(8).fold(key, |key, part| {
                    key.fold_in(part.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
                });
            }
        }
        Ok(Self(key))
    }

    pub(crate) fn name(&self) -> String {
        format!("{:016x}", self.0.start())
    }
}

impl Finding for Joined {}

impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, parts, records } = self;
        writeln!(f, "{} of {}\n{}", count(*records, "record"), count(*parts, "part"), shown(output))
    }
}
