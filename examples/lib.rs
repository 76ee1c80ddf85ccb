//! Programs that show Sideburn at work; run them with `cargo run --release --example NAME`.
//!
//! * `dialogsum_lora`: the main job. LoRA teaches a frozen T5 to summarise dialogues.
//! * `compare_methods`: every method of fine-tuning on the same base and data, in a table.
//! * `dialogsum_compare`: full fine-tuning, LoRA and prompt tuning from one base, with tests of how they differ, as a page.
//! * `samsum_falcon_qlora`: the same for a decoder alone. QLoRA teaches a frozen Falcon in 4 bits to summarise chats.
//! * `samsum_int8_lora`: the same over 8 bits. LoRA teaches a frozen T5 in LLM.int8() to summarise chats.
//! * `pretrain_mini`: how the small T5 under `assets/t5-mini` was made.
//!
//! Each of the first two is one file that can be read on its own. Here is what all of them need of a terminal and of the operating
//! system: printing ([`Console`]), ending ([`exit`]) and signals ([`Interrupt`]); what a model makes of dialogues
//! ([`summaries`]); and whether a run came to anything ([`divergence`]).

use std::fmt;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, ensure};
use sideburn::files::{check_writable, printable, write_atomic};
use sideburn::hub::Hub;
use sideburn::prelude::{GenerationConfig, LanguageModel, TokenizedExample, Tokenizer};
use sideburn::train::{Control, Observer, Run, StepRecord, TrainError};
use sideburn::{ManyConfig, generate_many};
use signal_hook::{consts, flag};

/// The standard output. Where it is closed (`| head -1`) or full, the work goes on, and [`finish`](Self::finish) tells.
///
/// Control characters are written as Rust writes them (`\u{1b}`), since the texts of data sets are printed.
#[derive(Debug, Default)]
pub struct Console {
    failed: Option<io::Error>,
}

impl Console {
    /// What `write!` and `writeln!` call.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) {
        if self.failed.is_none() {
            let text = for_terminal(&text.to_string());
            let mut out = io::stdout();
            self.failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// Ends the output.
    ///
    /// # Errors
    /// If something could not be written, unless the reader has closed the output.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("the standard output"),
            _ => Ok(()),
        }
    }
}

/// Text in which a terminal obeys nothing but line breaks and tabs.
pub fn for_terminal(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(|part| printable(part).to_string()).collect::<Vec<_>>().join("\t");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// The end of a program: what went wrong goes to the standard error. The status is 0, 1 after an error, and as a shell has
/// it (130 for SIGINT) after a signal.
pub fn exit(ended: anyhow::Result<()>) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    let mut text = String::new();
    for message in error.chain().map(ToString::to_string) {
        // Most errors repeat the one that caused them.
        if !text.contains(&message) {
            text += if text.is_empty() { "" } else { ": " };
            text += &message;
        }
    }
    let _ = writeln!(io::stderr(), "error: {}", for_terminal(&text));
    let signal = error.chain().find_map(|cause| cause.downcast_ref::<Interrupted>());
    ExitCode::from(signal.map_or(1, |Interrupted(signal)| 128 + *signal as u8))
}

/// The directory that was given, or one of those in the repository's `assets`.
pub fn asset_or(given: &Option<PathBuf>, name: &str) -> PathBuf {
    given.clone().unwrap_or_else(|| Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets")).join(name))
}

/// The directory of the model that was given, as such or by its id on the hub, or one of those in the repository's `assets`.
///
/// # Errors
/// If there is no such model, or it cannot be fetched.
pub fn model_or(given: &Option<PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
    match given {
        Some(given) if !given.exists() => Ok(Hub::from_env()?.model(given)?),
        given => Ok(asset_or(given, name)),
    }
}

/// Checks that a file can be written: meant for before the work whose results it is to hold. Directories that are missing
/// can be made; they are not made yet.
///
/// # Errors
/// If it is a directory, or its own directory cannot be made or written to.
pub fn check_file(path: &Path) -> anyhow::Result<()> {
    let found = path.metadata();
    ensure!(!found.as_ref().is_ok_and(|found| found.is_dir()), "{} is a directory, not a file", path.display());
    if found.is_ok_and(|found| !found.is_file()) {
        // A device or a pipe is written to where it is.
        return Ok(());
    }
    check_writable(directory_of(path)).with_context(|| path.display().to_string())
}

/// Writes a file whole or not at all, and the directories that it lacks. A device or a pipe is written to, not replaced.
///
/// # Errors
/// If it cannot be written.
pub fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory_of(path)).with_context(|| path.display().to_string())?;
    Ok(write_atomic(path, text.as_bytes())?)
}

/// The directory that a file is in; `.` for a bare name.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A signal that asked for an end.
#[derive(Debug)]
struct Interrupted(usize);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(signal, _)| *signal as usize == self.0) {
            Some((_, name)) => write!(f, "interrupted by {name}"),
            None => write!(f, "interrupted by signal {}", self.0),
        }
    }
}

impl std::error::Error for Interrupted {}

const SIGNALS: &[(i32, &str)] = &[
    (consts::SIGINT, "SIGINT"),
    (consts::SIGTERM, "SIGTERM"),
    #[cfg(unix)]
    (consts::SIGHUP, "SIGHUP"),
];

/// Stops training at the end of a step when Ctrl-C is pressed, the terminal is closed, or the process is told to end, so
/// that there is something to save. A second signal, or one after training, ends the process at once.
#[derive(Debug)]
pub struct Interrupt(&'static Signals);

#[derive(Debug)]
struct Signals {
    /// The number of the signal that came; 0 if none did.
    came: Arc<AtomicUsize>,
    /// Whether the next signal ends the process.
    ends: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on, for one training at a time.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn listen() -> io::Result<Self> {
        static SIGNALS_OF_PROCESS: OnceLock<Signals> = OnceLock::new();
        let signals = match SIGNALS_OF_PROCESS.get() {
            Some(signals) => signals,
            None => {
                let registered = Signals::register()?;
                SIGNALS_OF_PROCESS.get_or_init(|| registered)
            }
        };
        signals.came.store(0, Ordering::Relaxed);
        signals.ends.store(false, Ordering::Relaxed);
        Ok(Self(signals))
    }
}

impl Signals {
    fn register() -> io::Result<Self> {
        let signals = Self { came: Arc::default(), ends: Arc::default() };
        for (signal, _) in SIGNALS {
            flag::register_conditional_shutdown(*signal, 128 + signal, Arc::clone(&signals.ends))?;
            flag::register(*signal, Arc::clone(&signals.ends))?;
            flag::register_usize(*signal, Arc::clone(&signals.came), *signal as usize)?;
        }
        Ok(signals)
    }
}

impl<M> Observer<M> for Interrupt {
    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        match self.0.came.load(Ordering::Relaxed) {
            0 => Ok(Control::GoOn),
            signal => Err(TrainError::Step { step: record.step, source: Box::new(Interrupted(signal)) }),
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::Relaxed);
    }
}

/// What a model writes behind the prompts of examples.
///
/// # Errors
/// If one of them cannot be answered.
pub fn summaries<M: LanguageModel<Error: Send + Sync>>(
    model: &M,
    tokenizer: &Tokenizer,
    examples: &[TokenizedExample],
    generation: GenerationConfig,
) -> anyhow::Result<Vec<String>> {
    let prompts: Vec<&Vec<u32>> = examples.iter().map(|example| &example.prompt).collect();
    let config = ManyConfig::new(generation);
    let texts = generate_many(model, tokenizer, &prompts, &config, |_| ControlFlow::Continue(()));
    texts.into_iter().map(|texts| Ok(texts?.remove(0))).collect()
}

/// Why a run has come to nothing, if it has: no gradient is left, or the loss has ended above where it began. That is the
/// mean over the last tenth of the steps, at least ten, and more than three of their deviations above the loss of the first
/// step, since one batch is harder than another.
pub fn divergence(steps: &[StepRecord]) -> Option<String> {
    let (first, last) = (steps.first()?, steps.last()?);
    let began = first.loss;
    if last.grad_norm == 0.0 {
        let StepRecord { step, loss, .. } = last;
        return Some(format!(
            "the gradient is zero at step {step}: nothing can be learnt any more. The loss began at {began:.3} and is \
             {loss:.3}; lower the learning rate"
        ));
    }
    let count = (steps.len() / 10).max(10);
    if steps.len() < 2 * count {
        return None;
    }
    let losses = || steps[steps.len() - count..].iter().map(|step| step.loss);
    let ended = losses().sum::<f64>() / count as f64;
    let variance = losses().map(|loss| (loss - ended).powi(2)).sum::<f64>() / (count - 1) as f64;
    (ended - began > 3.0 * variance.sqrt()).then(|| {
        format!(
            "the loss ended at {ended:.3}, above the {began:.3} where it began: the run has diverged; lower the learning \
             rate"
        )
    })
}
