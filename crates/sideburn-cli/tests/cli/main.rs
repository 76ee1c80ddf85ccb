//! The program as it is run: what it prints, and how it exits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sideburn::adapters::Precision;
use sideburn::prelude::*;
use sideburn::weights::{Dtype, SafetensorsFile, Tensor, TensorSource, write_safetensors};
use tempfile::{TempDir, tempdir};

const BASE: &str = "t5_gated_untied";
const ADAPTER: &str = "adapters/lora_rslora";
const Q_B: &str = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight";

fn golden(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(relative)
}

/// Arguments of the program: text, or paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$(std::ffi::OsString::from(&$arg)),*] };
}

mod check;
mod combine;
mod convert;
mod data;
mod devices;
mod evaluate;
#[cfg(feature = "hub")]
mod hub;
mod inspect;
mod join;
#[cfg(feature = "judge")]
mod judge;
mod merge;
mod output;
mod plan;
mod quantize;
mod rouge;
mod summarize;
mod train;
mod verify;

/// The program, which asks no hub and has an empty cache.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sideburn"));
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no-cache").env_remove("HF_ENDPOINT").env_remove("HF_TOKEN");
    command
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(args: Vec<std::ffi::OsString>) -> Run {
    told(program().args(args).output().unwrap())
}

/// What a run of the program has printed, and how it has exited.
fn told(output: std::process::Output) -> Run {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the program with `--json`. All that it prints must be one object.
#[track_caller]
fn json(code: i32, mut args: Vec<std::ffi::OsString>) -> Value {
    args.push("--json".into());
    let run = run(args);
    assert_eq!(run.code, code, "{}{}", run.stdout, run.stderr);
    assert_eq!(run.stderr, "");
    serde_json::from_str(&run.stdout).unwrap()
}

/// Runs the program, which must fail, and returns what it says of that.
#[track_caller]
fn error(args: Vec<std::ffi::OsString>) -> String {
    let run = run(args);
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    run.stderr
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(path).unwrap();
    file.names().map(|name| (name.to_owned(), file.read(name).unwrap())).collect()
}

/// A copy of an adapter, with other tensors.
fn changed(adapter: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> TempDir {
    let directory = tempdir().unwrap();
    fs::copy(golden(adapter).join("adapter_config.json"), directory.path().join("adapter_config.json")).unwrap();
    let mut tensors = read(&golden(adapter).join("adapter_model.safetensors"));
    change(&mut tensors);
    write_safetensors(directory.path().join("adapter_model.safetensors"), tensors, None).unwrap();
    directory
}

fn with_nan() -> TempDir {
    changed(ADAPTER, |tensors| {
        let b = tensors.get_mut(Q_B).unwrap();
        let mut values = b.to_f32().unwrap();
        values[3] = f32::NAN;
        *b = Tensor::from_f32(b.shape().to_vec(), &values).unwrap();
    })
}

/// [`ADAPTER`] as older releases of `peft` wrote it.
fn pickled() -> TempDir {
    let directory = tempdir().unwrap();
    fs::copy(golden(ADAPTER).join("adapter_config.json"), directory.path().join("adapter_config.json")).unwrap();
    fs::copy(golden("torch/lora_rslora.bin"), directory.path().join("adapter_model.bin")).unwrap();
    directory
}

/// A reference of the inputs that all adapters share, with the logits of one of them.
fn adapter_reference(adapter: &str, directory: &Path) -> PathBuf {
    let mut tensors = read(&golden("lora/t5_gated_untied/io.safetensors"));
    tensors.retain(|name, _| !name.starts_with("grad."));
    let mut own = read(&golden(adapter).join("io.safetensors"));
    own.retain(|name, _| ["logits", "loss"].contains(&name.as_str()));
    tensors.extend(own);
    let path = directory.join("reference.safetensors");
    write_safetensors(&path, tensors, None).unwrap();
    path
}

#[test]
fn help_shows_examples() {
    let help = run(args!["--help"]);
    assert_eq!(help.code, 0);
    assert_contains(&help.stdout, &["Examples:", "sideburn adapter merge my-adapter --base", "Exit status"]);
    for command in ["inspect", "check", "merge", "combine", "convert"] {
        assert_eq!(run(args!["adapter", command, "--help"]).code, 0);
        assert_contains(&error(args!["adapter", command]), &["required arguments"]);
    }
    assert_contains(&error(args!["adapter", "inspekt"]), &["'inspect'"]);
}
