//! The examples as they are run: what they leave behind, and how they end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::{TempDir, tempdir};

mod common;
mod flags;
#[cfg(unix)]
mod interrupts;
mod others;
mod output;

/// Arguments of a program: text, or paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$(std::ffi::OsString::from(&$arg)),*] };
}
pub(crate) use args;

/// An example, which `cargo test --workspace` has built.
fn program(name: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let built = this.ancestors().nth(2).unwrap().join("examples").join(name);
    let built = built.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(built.exists(), "{} is missing: cargo build --release --workspace --examples", built.display());
    let mut command = Command::new(built);
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// A short run into a directory.
struct Job {
    directory: TempDir,
}

impl Job {
    fn new() -> Self {
        Self { directory: tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The program with two steps and two summaries, unless `more` says otherwise.
    fn command(&self, more: Vec<OsString>) -> Command {
        let mut command = program("dialogsum_lora");
        for (option, value) in
            [("--max-steps", "2".into()), ("--max-eval-samples", "2".into()), ("--output", self.path("out"))]
        {
            if !more.iter().any(|given| *given == *option) {
                command.arg(option).arg(value);
            }
        }
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, more: Vec<OsString>) -> Output {
        self.command(more).output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts that the program ended by itself with this status, and has said all of `parts`.
#[track_caller]
fn assert_ended(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn is_adapter(directory: &Path) -> bool {
    ["adapter_config.json", "adapter_model.safetensors"].iter().all(|file| directory.join(file).is_file())
}

/// Ends with the child, so that a test that fails leaves none behind.
struct Running(Option<Child>);

impl Running {
    fn wait(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
        }
    }
}
