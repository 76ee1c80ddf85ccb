//! `sideburn quantize`: a model whose linear layers are packed in 4 or 8 bits.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde::Serialize;
use sideburn::adapters::Precision;
use sideburn::files::AtomicDir;
use sideburn::prelude::*;

use crate::adapter::companions::{Copied, LeftOut, copy_companions};
use crate::hub;
use crate::loading::with_progress;
use crate::quantization::To;
use crate::report::{Finding, in_line, shown, table};

/// Quantise the linear layers of a model as bitsandbytes does, and write the model that results
///
/// The output is a directory that transformers and Sideburn load as it is: config.json with its quantization_config, the packed
/// weights in model.safetensors, and the tokenizer's files where the model has them. Layers are packed as they are read, so that
/// the model need not fit into memory unquantised. The output head, embeddings and what transformers keeps in f32 (wo of T5) are
/// left as they are: matrices of 16 bits in 16 bits. 4 bits are in blocks of 64 with double quantisation.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the model, which is not quantised yet, or its id on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// What to quantise to
    #[arg(long, value_enum)]
    to: To,
    /// Directory to write to; not that of the model
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Serialize)]
pub(crate) struct Quantized {
    output: String,
    to: To,
    /// How many linear layers are packed.
    packed: usize,
    /// And how many are not.
    left: usize,
    /// Bytes of the files of weights.
    bytes: u64,
    copied: Vec<&'static str>,
    /// What was left out of the tokenizer's files, and why.
    not_copied: Vec<LeftOut>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Quantized> {
    let output = AtomicDir::create(&args.output)?;
    let directory = hub::model(&args.model)?;
    if let (Ok(output), Ok(model)) = (args.output.canonicalize(), directory.canonicalize()) {
        ensure!(output != model, "the output {} is the model itself; choose another directory", shown(&output));
    }
    let (device, quantization) = (parse_device("flex")?, args.to.quantization());
    let load = || Ok(AutoModel::from_dir_quantized(&directory, quantization, &device)?);
    let model = with_progress(&directory, load)?;
    model.save_dir(output.path(), Precision::F32)?;
    let linears = model.linears();
    let packed = linears.iter().filter(|(_, linear)| linear.weight().packed().is_some()).count();
    let left = linears.len() - packed;
    let bytes = size(output.path())?;
    let Copied { copied, left_out } = copy_companions(&directory, output.path())?;
    output.commit()?;
    Ok(Quantized { output: shown(&args.output), to: args.to, packed, left, bytes, copied, not_copied: left_out })
}

/// The size of the weights in a directory that has just been written, in bytes.
fn size(directory: &Path) -> anyhow::Result<u64> {
    Ok(directory.join("model.safetensors").metadata()?.len())
}

impl Finding for Quantized {}

impl fmt::Display for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copied = if self.copied.is_empty() { "nothing".to_owned() } else { self.copied.join(", ") };
        let mut rows = vec![
            ["written".to_owned(), in_line(&self.output)],
            [
                "packed".to_owned(),
                format!("{} linear layers in {}; {} stay floats", self.packed, self.to.name(), self.left),
            ],
            ["weights".to_owned(), format!("{:.1} MB", self.bytes as f64 / 1e6)],
            ["copied".to_owned(), copied],
        ];
        for LeftOut { file, reason } in &self.not_copied {
            rows.push(["not copied".to_owned(), format!("{file}: {reason}")]);
        }
        table(f, &rows)
    }
}
