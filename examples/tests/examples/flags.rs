//! Flags that mean nothing, or too much.

use super::*;

#[test]
fn flags_that_mean_nothing_are_refused() {
    let job = Job::new();
    for (flag, value, said) in [
        ("--batch-size", "0", "batch"),
        ("--r", "0", "`r` is 0"),
        ("--r", "1099511627776", "`r` is 1099511627776"),
        ("--r", "18446744073709551615", "`r` is 18446744073709551615"),
        ("--lora-alpha", "NaN", "`lora_alpha` is NaN"),
        ("--lora-alpha", "inf", "`lora_alpha` is inf"),
        ("--learning-rate", "NaN", "`learning_rate` is NaN"),
        ("--learning-rate", "inf", "`learning_rate` is inf"),
        ("--learning-rate", "1e400", "`learning_rate` is inf"),
        ("--max-eval-samples", "0", "--max-eval-samples is 0"),
        ("--device", "abacus", "\"abacus\" is no device"),
    ] {
        assert_ended(&job.run(args![flag, value]), 1, &["error: ", said]);
        assert!(!job.path("out/adapter").exists(), "{flag} {value}");
    }
    let negative = job.run(args!["--learning-rate=-1"]);
    assert_ended(&negative, 1, &["`learning_rate` is -1"]);
}

/// As many as there are.
#[test]
fn a_batch_is_never_larger_than_the_data() {
    let all = "18446744073709551615";
    let output = Job::new().run(args!["--batch-size", all, "--max-eval-samples", all, "--max-steps", "0"]);
    assert_ended(&output, 0, &[]);
}

#[test]
fn no_steps_leave_the_adapter_as_it_began() {
    let job = Job::new();
    let output = job.run(args!["--max-steps", "0"]);
    assert_ended(&output, 0, &[]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("\n0 steps in 0 s"));
    assert!(is_adapter(&job.path("out/adapter")));
}

#[test]
fn a_run_that_diverges_is_not_passed_off_as_an_adapter() {
    for (rate, steps, said) in [
        ("1e30", "2", "the gradient is zero at step 1: nothing can be learnt any more"),
        ("1e30", "12", "the training did not end well"),
        // Not zero, and finite to the end.
        ("10", "30", "the training did not end well"),
    ] {
        let job = Job::new();
        let output = job.run(args!["--learning-rate", rate, "--max-steps", steps]);
        assert_ended(&output, 1, &[said, "learning rate", "unfinished"]);
        assert!(!job.path("out/adapter").exists() && !job.path("out/training.jsonl").exists());
        assert!(is_adapter(&job.path("out/unfinished/adapter")));
    }
}
