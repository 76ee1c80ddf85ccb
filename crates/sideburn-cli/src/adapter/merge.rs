//! `sideburn adapter merge`: a model of its own out of a base and an adapter.

use std::fmt;
use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;
use sideburn::adapters::{Adapters, Precision};
use sideburn::files::AtomicDir;

use super::companions::{Copied, LeftOut, copy_companions};
use super::on_base::OnBase;
use crate::model::{logits, max_difference, open, probe};
use crate::report::{Finding, in_line, number, shown, table};

/// Work an adapter into the weights of its base, and write the model that results
///
/// The output is a directory as transformers writes it: config.json, model.safetensors, and the tokenizer's files where
/// the base has them, as files and not as links out of its directory (those of the hub's cache excepted). Before it is put in place it is read again and compared: the drift is the largest absolute
/// difference between its logits and those of base and adapter side by side, on a small batch of fixed random tokens. In
/// f32 it is rounding; in bf16 it includes that of every weight of the base. Adapters that are not finite, or cannot be
/// weights (prompts, prefixes), are refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    on: OnBase,
    /// Directory to write to; not that of the base
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How the weights are stored
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    precision: Stored,
}

#[derive(Clone, Copy, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Stored {
    /// 4 bytes a value, as computed
    F32,
    /// 2 bytes a value, rounded
    Bf16,
}

#[derive(Serialize)]
pub(crate) struct Merged {
    output: String,
    precision: Stored,
    copied: Vec<&'static str>,
    /// What was left out of the tokenizer's files, and why.
    not_copied: Vec<LeftOut>,
    /// The largest difference that the adapter makes to a logit.
    effect: f32,
    /// The largest difference that merging and storing makes to a logit.
    drift: f32,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Merged> {
    let output = AtomicDir::create(&args.output)?;
    let (adapter, base) = args.on.directories()?;
    if let (Ok(output), Ok(base)) = (args.output.canonicalize(), base.canonicalize()) {
        ensure!(output != base, "the output {} is the base itself; choose another directory", shown(&output));
    }
    let mut model = open(&base)?;
    model.load_adapter("default", adapter)?;
    let (source, input) = probe(&model);
    let before = logits(&model, &source, &input)?;
    let bare = model.without_adapters(|base| logits(base, &source, &input))?;

    model.merge_and_unload()?;
    let precision = match args.precision {
        Stored::F32 => Precision::F32,
        Stored::Bf16 => Precision::Bf16,
    };
    model.save_dir(output.path(), precision)?;
    drop(model);
    let Copied { copied, left_out } = copy_companions(&base, output.path())?;
    let after = logits(&open(output.path())?, &source, &input)?;
    output.commit()?;
    Ok(Merged {
        output: shown(&args.output),
        precision: args.precision,
        copied,
        not_copied: left_out,
        effect: max_difference(&before, &bare),
        drift: max_difference(&after, &before),
    })
}

impl Finding for Merged {}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [effect, drift] = [self.effect, self.drift].map(|difference| number(difference.into()));
        let precision = match self.precision {
            Stored::F32 => "merging",
            Stored::Bf16 => "merging and rounding to bf16",
        };
        let copied = if self.copied.is_empty() { "nothing".to_owned() } else { self.copied.join(", ") };
        let mut rows = vec![["written".to_owned(), in_line(&self.output)], ["copied".to_owned(), copied]];
        for LeftOut { file, reason } in &self.not_copied {
            rows.push(["not copied".to_owned(), format!("{file}: {reason}")]);
        }
        rows.push(["effect".to_owned(), format!("the adapter changes logits by up to {effect}")]);
        rows.push(["drift".to_owned(), format!("{precision} changes them by up to {drift}")]);
        table(f, &rows)
    }
}
