//! `sideburn data convert`: a data set in another form.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use sideburn::data::write_examples;
use sideburn::prelude::*;

use crate::report::{Finding, count, grouped, shown};
use crate::source::DataArgs;

/// Write a data set in another form: CSV, TSV, JSON, JSON Lines or Parquet, as the name of the output ends
///
/// Records that differ in the reference alone become one example. Several references are a list, or in CSV columns:
/// summary1, summary2 and so on. Columns that are not asked for are left out. Parquet needs a build with the feature
/// `parquet`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// The file to be written: .csv, .tsv, .json, .jsonl, .ndjson or .parquet
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What a subsample follows from
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
pub(crate) struct Converted {
    records: usize,
    examples: usize,
    skipped: usize,
    #[serde(flatten)]
    source: serde_json::Value,
    seed: u64,
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Converted> {
    let (loaded, _) = args.data.read(Split::Train, args.seed)?;
    write_examples(&args.output, &loaded.examples, "summary")?;
    let (records, examples, skipped) = (loaded.rows, loaded.examples.len(), loaded.skipped.len());
    let Args { data, output, seed } = args;
    Ok(Converted { records, examples, skipped, source: data.record(), seed: *seed, output: output.clone() })
}

impl Finding for Converted {}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, examples, skipped, output, .. } = self;
        let (records, examples) = (count(*records, "record"), count(*examples, "example"));
        writeln!(f, "{records}, {examples}, {} skipped: {}", grouped(*skipped), shown(output))
    }
}
