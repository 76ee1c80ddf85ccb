//! `mpirun sideburn train`: the same run with one, two and three processes, whatever happens to one of them.
//!
//! Wants Open MPI, and is built with the feature `mpi` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use sideburn::weights::{SafetensorsFile, TensorSource};
use tempfile::tempdir;

/// Settings of a run of 30 steps that takes a moment, with six ragged micro-batches a step. Each step is saved, and no gradient
/// clipped, so that AdamW's first moment after a step is a tenth of the gradient.
const SHORT: [&str; 12] = [
    "subsample=count:60",
    "max_steps=30",
    "per_device_train_batch_size=2",
    "gradient_accumulation_steps=6",
    "max_source_length=40",
    "max_target_length=10",
    "max_grad_norm=0",
    "learning_rate=1e-3",
    "neftune_noise_alpha=5",
    "adapter.r=4",
    "adapter.lora_alpha=8",
    "save_steps=1",
];

/// `mpirun` with so many ranks, and the variables that it wants of root, and on few cores.
fn mpirun() -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    // No other machine is asked, and containers do not let a process read another's memory.
    command.env("OMPI_MCA_plm_rsh_agent", "sh").env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", "no-cache").env("RAYON_NUM_THREADS", "1");
    command
}

fn settings(more: &[&str]) -> Vec<String> {
    SHORT.iter().chain(more).flat_map(|set| ["--set".to_owned(), (*set).to_owned()]).collect()
}

fn begin(ranks: usize, output: &Path, more: &[&str]) -> Command {
    let mut command = mpirun();
    command.arg("-np").arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_sideburn")).arg("train").args(settings(more));
    command.arg("--output").arg(output);
    command
}

fn resume(ranks: usize, path: &Path) -> Command {
    let mut command = mpirun();
    command.arg("-np").arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_sideburn")).arg("train");
    command.arg("--resume").arg(path);
    command
}

struct Told {
    success: bool,
    stdout: String,
    stderr: String,
}

fn told(output: Output) -> Told {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Told { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

#[track_caller]
fn succeed(command: &mut Command) -> Told {
    let told = told(command.output().unwrap());
    assert!(told.success, "{}{}", told.stdout, told.stderr);
    told
}

fn losses(path: &Path) -> Vec<f64> {
    let log = fs::read_to_string(path.join("training.jsonl")).unwrap_or_default();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!((found.len(), expected.len()), (30, 30), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    assert!(worst <= 1e-6, "{what}: losses differ by up to {worst:e} relative");
}

/// A tenth of the gradient of the first step.
fn first_moments(path: &Path) -> Vec<f32> {
    let file = SafetensorsFile::open(path.join("checkpoint-1/optimizer.safetensors")).unwrap();
    let mut names: Vec<&str> = file.names().filter(|name| name.ends_with("/exp_avg")).collect();
    names.sort_unstable();
    assert!(names.len() > 10);
    names.into_iter().flat_map(|name| file.read(name).unwrap().to_f32().unwrap()).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The process of a rank of the job of `mpirun`.
fn process_of(job: &Child, rank: usize, run: &Path) -> Option<u32> {
    let run = run.as_os_str().as_encoded_bytes();
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let process: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let read = |name: &str| fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
        let has = |bytes: &[u8], wanted: &[u8]| bytes.split(|byte| *byte == 0).any(|part| part == wanted);
        let is = process != job.id()
            && has(&read("environ"), format!("OMPI_COMM_WORLD_RANK={rank}").as_bytes())
            && has(&read("cmdline"), run);
        is.then_some(process)
    })
}

/// Waits until a job has made so many steps.
fn wait_for_steps(job: &mut Child, run: &Path, steps: usize) {
    while losses(run).len() < steps {
        assert!(job.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").arg(name).arg(process.to_string()).status().unwrap().success());
}

#[test]
fn one_two_and_three_ranks_make_the_same_run() {
    let directory = tempdir().unwrap();
    let runs: Vec<PathBuf> = (1..=3).map(|ranks| directory.path().join(format!("of-{ranks}"))).collect();
    let evaluated = ["eval_strategy=steps", "eval_steps=15"];
    for (ranks, run) in (1..).zip(&runs) {
        let told = succeed(&mut begin(ranks, run, &evaluated));
        // One rank writes.
        assert_eq!(told.stdout.matches("trainable params: ").count(), 1, "{}", told.stdout);
        assert_eq!(fs::read_to_string(run.join("training.jsonl")).unwrap().lines().count(), 32);
        assert!(run.join("final/adapter_model.safetensors").exists() && run.join("report.html").exists());
    }
    let alone = directory.path().join("alone");
    let mut without_mpirun = Command::new(env!("CARGO_BIN_EXE_sideburn"));
    without_mpirun.arg("train").args(settings(&evaluated)).arg("--output").arg(&alone).env("RAYON_NUM_THREADS", "1");
    succeed(&mut without_mpirun);
    let whole = first_moments(&alone);
    for (ranks, run) in (1..).zip(&runs) {
        let found = first_moments(run);
        assert_eq!(found.len(), whole.len());
        let differences = found.iter().zip(&whole).map(|(a, b)| f64::from(a - b));
        let relative = norm(differences) / norm(whole.iter().map(|value| f64::from(*value)));
        println!("{ranks} ranks: the first gradient differs by {relative:e} relative");
        assert!(relative <= 1e-6, "{ranks}: {relative:e}");
        assert_close(&format!("{ranks} ranks"), &losses(run), &losses(&alone));
    }
    // One rank of MPI is a run alone.
    let log = |run: &Path| fs::read(run.join("training.jsonl")).unwrap();
    assert_eq!(log(&runs[0]), log(&alone));
}

/// The launcher names the rank, and the run goes on with other numbers of ranks.
#[test]
fn a_rank_that_is_killed_is_named_and_the_run_goes_on_with_others() {
    let directory = tempdir().unwrap();
    let [broken, whole] = ["broken", "whole"].map(|name| directory.path().join(name));
    let mut command = begin(2, &broken, &[]);
    let mut job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&mut job, &broken, 9);
    signal("-KILL", process_of(&job, 1, &broken).unwrap());
    let ended = told(job.wait_with_output().unwrap());
    assert!(!ended.success, "{}", ended.stdout);
    println!("{}", ended.stderr);
    assert!(ended.stderr.contains("process rank 1 with PID"), "{}", ended.stderr);
    assert!(ended.stderr.contains("exited on signal 9"), "{}", ended.stderr);
    let made = losses(&broken).len();
    assert!((9..30).contains(&made) && !broken.join("final").exists(), "{made}");
    succeed(&mut resume(3, &broken));
    succeed(&mut begin(1, &whole, &[]));
    assert_close(&format!("two ranks for {made} steps, then three"), &losses(&broken), &losses(&whole));
    assert!(broken.join("final/adapter_model.safetensors").exists());
}

/// mpirun passes a signal on to all ranks; whichever sees it first, all stop after the same step.
#[test]
fn a_signal_stops_all_ranks_after_one_step() {
    let directory = tempdir().unwrap();
    let [broken, whole] = ["broken", "whole"].map(|name| directory.path().join(name));
    let rare = ["save_steps=1000"];
    let mut command = begin(3, &broken, &rare);
    let mut job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&mut job, &broken, 5);
    signal("-TERM", process_of(&job, 2, &broken).unwrap());
    let ended = told(job.wait_with_output().unwrap());
    assert!(!ended.success);
    assert!(ended.stderr.contains("error: stopped; go on with sideburn train --resume"), "{}", ended.stderr);
    let made = losses(&broken).len();
    assert!(broken.join(format!("checkpoint-{made}")).exists(), "{made}");
    succeed(&mut resume(2, &broken));
    succeed(&mut begin(1, &whole, &rare));
    assert_close(&format!("three ranks for {made} steps, then two"), &losses(&broken), &losses(&whole));
}

/// A job of two ranks with settings of their own.
fn unlike(output: &Path, first: &[&str], second: &[&str]) -> Told {
    let mut command = mpirun();
    for (number, more) in [first, second].into_iter().enumerate() {
        if number > 0 {
            command.arg(":");
        }
        command.args(["-np", "1"]).arg(env!("CARGO_BIN_EXE_sideburn")).arg("train").args(settings(more));
        command.arg("--output").arg(output);
    }
    told(command.output().unwrap())
}

#[test]
fn a_rank_with_something_else_is_named_by_all() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("run");
    let other = directory.path().join("other");
    fs::create_dir(&other).unwrap();
    let rows: String = (0..60).map(|row| format!("train_{row},#Person1#: Tea {row}?,They talk of tea.\n")).collect();
    fs::write(other.join("train.csv"), format!("id,dialogue,summary\n{rows}")).unwrap();
    let data = format!("data={}", other.display());
    let nowhere = format!("data={}", directory.path().join("nowhere").display());
    for (second, expected) in [
        (data.as_str(), "rank 1 has data that rank 0 has not: v1-"),
        (nowhere.as_str(), "rank 1: "),
        ("seed=7", "rank 1 has settings that rank 0 has not: `seed` is 7, and rank 0 `seed` is 42; give all ranks"),
        ("adapter.r=8", "rank 1 has settings that rank 0 has not: `adapter` is "),
        ("learning_rat=1", "rank 1: --set learning_rat=1: no setting is called `learning_rat`"),
    ] {
        let told = unlike(&output, &[], &[second]);
        assert!(!told.success, "{second}");
        assert!(told.stderr.contains(&format!("error: {expected}")), "{second}: {}", told.stderr);
        assert!(!output.exists(), "{second}");
    }
    let few = told(begin(3, &output, &["gradient_accumulation_steps=2"]).output().unwrap());
    assert!(!few.success);
    assert!(few.stderr.contains("`gradient_accumulation_steps` is 2, and there are 3 ranks"), "{}", few.stderr);
}

/// What only the rank that writes can meet ends the others, too.
#[test]
fn an_error_of_the_rank_that_writes_ends_all() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("run");
    fs::create_dir_all(&output).unwrap();
    fs::write(output.join("checkpoint-3"), "in the way").unwrap();
    let ended = told(begin(2, &output, &[]).output().unwrap());
    assert!(!ended.success);
    assert!(ended.stderr.contains("rank 0: ") && ended.stderr.contains("is in the way"), "{}", ended.stderr);
    assert_eq!(losses(&output).len(), 3);
    let again = told(begin(2, &output, &[]).output().unwrap());
    assert!(again.stderr.contains("there is a run in it already"), "{}", again.stderr);
}
