//! The dialogues that a command is about.

use std::path::PathBuf;

use clap::ValueEnum;
use sideburn::data::{Columns, Loaded, Subsample, read_examples};
use sideburn::prelude::*;

use crate::report::shown;

/// Where the dialogues are.
#[derive(clap::Args)]
pub(crate) struct DataArgs {
    /// A file (.csv, .tsv, .json, .jsonl, .ndjson, .parquet), or the directory or 7z archive of a data set
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// What the directory holds, and how its files and their columns are called
    #[arg(long, value_name = "NAME", default_value = "dialogsum")]
    dataset: Known,
    /// Which part of the directory [default: test to evaluate, else train]
    #[arg(long, value_name = "NAME")]
    split: Option<Part>,
    /// The columns of a file of your own, such as dialogue=text,summary=target,id=index
    #[arg(long, value_name = "FIELD=COLUMN,..")]
    columns: Option<Columns>,
    /// Skip and report records that are no example, which are errors otherwise
    #[arg(long)]
    lenient: bool,
    /// A part of the examples: every:100, count:500 or fraction:0.1
    #[arg(long, value_name = "PART")]
    subsample: Option<Subsample>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Known {
    Dialogsum,
    Samsum,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    Validation,
    Test,
}

impl DataArgs {
    /// The examples, and what they are called. `split` is the one that is meant where none is named; `seed` chooses a
    /// part.
    pub(crate) fn read(&self, split: Split, seed: u64) -> anyhow::Result<(Loaded, String)> {
        let mut dataset = self.dataset();
        dataset.columns.lenient |= self.lenient;
        let (mut loaded, title) = if self.data.is_dir() || self.data.extension().is_some_and(|ending| ending == "7z") {
            let split = self.split.map_or(split, |part| match part {
                Part::Train => Split::Train,
                Part::Validation => Split::Validation,
                Part::Test => Split::Test,
            });
            (dataset.read(&self.data, split)?, format!("{}, {split}", dataset.name))
        } else {
            let name = self.data.file_name().map(|name| name.to_string_lossy().into_owned());
            (read_examples(&self.data, &dataset.columns)?, name.unwrap_or_else(|| shown(&self.data)))
        };
        if let Some(subsample) = self.subsample {
            let mut chosen = subsample.indices(loaded.examples.len(), seed)?.into_iter().peekable();
            let mut at = 0;
            loaded.examples.retain(|_| {
                at += 1;
                chosen.next_if_eq(&(at - 1)).is_some()
            });
        }
        Ok((loaded, title))
    }

    /// The data set, with the columns that are named.
    pub(crate) fn dataset(&self) -> Dataset {
        let known = match self.dataset {
            Known::Dialogsum => Dataset::dialogsum(),
            Known::Samsum => Dataset::samsum(),
        };
        match &self.columns {
            Some(columns) => Dataset { columns: columns.clone(), ..known },
            None => known,
        }
    }

    /// What was asked for, to be recorded with results.
    pub(crate) fn record(&self) -> serde_json::Value {
        serde_json::json!({ "data": shown(&self.data), "subsample": self.subsample })
    }
}
