//! `sideburn adapter convert`: from `adapter_model.bin` to `adapter_model.safetensors`.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use sideburn::adapters::peft::AdapterDir;
use sideburn::files::check_writable;
use sideburn::weights::TensorSource;

use crate::hub;
use crate::report::{Finding, count, in_line, shown};

/// Write an adapter anew, its tensors as adapter_model.safetensors
///
/// For adapters of older releases of peft, which are adapter_model.bin. The pickle in it is not run: it is read for its
/// tensors, and refused if it asks for anything else. Tensors keep their names, dtypes and bits; adapter_config.json is
/// checked and copied. The output may be the same directory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory with adapter_config.json and adapter_model.bin or adapter_model.safetensors, or an id on the hub
    #[arg(value_name = "DIR|ID")]
    adapter: PathBuf,
    /// Directory to write to
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Serialize)]
pub(crate) struct Converted {
    from: String,
    output: String,
    tensors: usize,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Converted> {
    let adapter = AdapterDir::open(hub::adapter(&args.adapter)?)?;
    check_writable(&args.output)?;
    adapter.save(&args.output)?;
    let tensors = adapter.tensors();
    Ok(Converted { from: shown(tensors.path()), output: shown(&args.output), tensors: tensors.names().len() })
}

impl Finding for Converted {}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, output] = [&self.from, &self.output].map(|path| in_line(path));
        write!(f, "{} of {from} written to {output}", count(self.tensors, "tensor"))
    }
}
