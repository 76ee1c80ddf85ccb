//! What the examples have in common.

use std::path::Path;

use sideburn::train::StepRecord;
use sideburn_examples::{check_file, divergence, for_terminal, write_file};

fn run(losses: impl IntoIterator<Item = f64>) -> Vec<StepRecord> {
    let record = |(step, loss)| StepRecord {
        step,
        loss,
        penalty: 0.0,
        learning_rate: 1e-3,
        grad_norm: 1.0,
        tokens: 100,
        seconds: 0.1,
    };
    (0..).zip(losses).map(record).collect()
}

#[test]
fn a_run_that_came_to_nothing_is_known() {
    let noise = |step: u32| 0.3 * f64::from(step * 7 % 5);
    assert_eq!(divergence(&[]), None);
    assert_eq!(divergence(&run((0..100).map(|step| 5.0 - 0.02 * f64::from(step) + noise(step)))), None);
    assert_eq!(divergence(&run((0..100).map(|step| 2.0 + noise(step)))), None, "noise alone");
    assert_eq!(divergence(&run([2.0, 2.5])), None, "two steps say nothing");
    let diverged = divergence(&run((0..100).map(|step| if step < 3 { 5.0 } else { 8.3 + noise(step) }))).unwrap();
    assert!(diverged.contains("ended at 8.900, above the 5.000 where it began"), "{diverged}");

    let mut stuck = run([5.6, 8.3]);
    stuck[1].grad_norm = 0.0;
    let reason = divergence(&stuck).unwrap();
    assert!(reason.contains("the gradient is zero at step 1") && reason.contains("began at 5.600"), "{reason}");
}

#[test]
fn files_that_cannot_be_written_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    assert!(check_file(&directory.join("results.json")).is_ok());
    let error = |path: &Path| format!("{:#}", check_file(path).unwrap_err());
    assert!(error(directory).contains("is a directory"));
    let file = directory.join("a-file");
    std::fs::write(&file, "mine").unwrap();
    assert!(error(&file.join("results.json")).contains("a-file"));
    let (missing, file) = (directory.join("new"), directory.join("new/results.json"));
    check_file(&file).unwrap();
    assert!(!missing.exists());
    write_file(&file, "{}").unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "{}");
}

#[test]
fn control_characters_are_written_not_obeyed() {
    assert_eq!(for_terminal("a\tb\n\u{1b}[2J\0"), "a\tb\n\\u{1b}[2J\\0");
}
