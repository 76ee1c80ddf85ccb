//! Runs that are killed at random moments.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sideburn_adapters::Key;
use sideburn_train::{Strategy, TrainConfig};
use tempfile::tempdir;

use crate::run_dir::{files, go, settings, with_lora};

fn config() -> TrainConfig {
    TrainConfig { eval_strategy: Strategy::Steps, eval_steps: 3, save_total_limit: Some(2), ..settings() }
}

/// A run that saves after every step.
#[test]
#[ignore = "run by the test below, in processes of their own"]
fn a_run_that_saves_often() {
    go(Path::new(&std::env::var("RUN").unwrap()), &config(), with_lora()).unwrap();
}

/// A run that goes on after each kill ends as one that was never killed, whatever was being done: a step, an evaluation, a
/// checkpoint, or its removal.
///
/// `SIDEBURN_KILLS=200` kills it so often, instead of twelve times; when a run has come to its end, another begins.
#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bits() {
    let kills: u64 = std::env::var("SIDEBURN_KILLS").map_or(12, |kills| kills.parse().unwrap());
    let directory = tempdir().unwrap();
    let whole = directory.path().join("whole");
    let start = |run: &Path| {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process.args(["killing::a_run_that_saves_often", "--exact", "--ignored"]).env("RUN", run);
        process.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let clock = Instant::now();
    assert!(start(&whole).wait_with_output().unwrap().status.success());
    let mut takes = clock.elapsed();
    let check = |run: &Path| {
        for part in ["final", "best", "checkpoint-30"] {
            assert_eq!(files(&run.join(part)), files(&whole.join(part)), "{part}");
        }
        let log = |run: &Path| fs::read_to_string(run.join("training.jsonl")).unwrap();
        assert_eq!(log(run), log(&whole));
    };
    let key = Key::from_seed(15).fold_in_name("kills");
    let (mut killed, mut runs, mut moment) = (0, 0, 0);
    while killed < kills {
        let run = directory.path().join(format!("run-{runs}"));
        runs += 1;
        loop {
            let mut process = start(&run);
            // Long enough for some steps, and now and then for all.
            let wait = if killed < kills { takes.mul_f64(0.1 + 0.5 * key.uniform(moment)) } else { Duration::MAX };
            moment += 1;
            let clock = Instant::now();
            let ended = loop {
                match process.try_wait().unwrap() {
                    Some(status) => break Some(status),
                    None if clock.elapsed() >= wait => break None,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            // How long a run takes depends on what else the machine does.
            takes = takes.mul_f64(if ended.is_some() { 0.8 } else { 1.02 });
            if ended.is_none() {
                process.kill().unwrap();
                killed += 1;
            }
            let output = process.wait_with_output().unwrap();
            if ended.is_some() {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                break;
            }
        }
        check(&run);
    }
}
