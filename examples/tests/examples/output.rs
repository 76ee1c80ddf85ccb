//! Results, and a standard output that does not take them.

use super::*;

#[test]
fn a_run_leaves_an_adapter_and_its_log() {
    let job = Job::new();
    for _ in 0..2 {
        let output = job.run(args!["--json", job.path("results.json")]);
        assert_ended(&output, 0, &[]);
        assert!(String::from_utf8(output.stdout).unwrap().contains("rougeLsum"));
        assert!(is_adapter(&job.path("out/adapter")));
        assert_eq!(fs::read_to_string(job.path("out/training.jsonl")).unwrap().lines().count(), 2);
        assert!(!job.path("out/unfinished").exists());
        let results: serde_json::Value = serde_json::from_slice(&fs::read(job.path("results.json")).unwrap()).unwrap();
        assert_eq!(results["losses"].as_array().unwrap().len(), 2);
        assert_eq!(results["config"]["max_steps"], serde_json::json!(2));
        let systems = results["systems"].as_array().unwrap();
        assert_eq!(
            systems.iter().map(|system| &system["name"]).collect::<Vec<_>>(),
            ["zero_shot", "first_line", "lora"]
        );
        for system in systems {
            assert_eq!(system["outputs"].as_array().unwrap().len(), 2);
            let score = &system["scores"][3];
            assert_eq!(score["name"], "rougeLsum");
            assert!(["mean", "low", "high"].iter().all(|number| score[*number].is_number()), "{score}");
        }
    }
}

/// As `| head -1` does.
#[test]
fn a_closed_pipe_loses_nothing() {
    let job = Job::new();
    let mut child = job.command(args!["--json", job.path("results.json")]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_ended(&output, 0, &[]);
    assert!(is_adapter(&job.path("out/adapter")) && job.path("results.json").is_file());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_no_success_and_loses_nothing_else() {
    let job = Job::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = job.command(args!["--json", job.path("results.json")]).stdout(full).output().unwrap();
    assert_ended(&output, 1, &["error: the standard output", "No space left"]);
    assert!(is_adapter(&job.path("out/adapter")) && job.path("results.json").is_file());
}

#[cfg(target_os = "linux")]
#[test]
fn results_are_written_to_a_device_and_do_not_replace_it() {
    let job = Job::new();
    assert_ended(
        &job.run(args!["--json", "/dev/full", "--max-steps", "0"]),
        1,
        &["error: cannot write \"/dev/full\"", "No space left"],
    );
    assert!(!fs::symlink_metadata("/dev/full").unwrap().is_file());
    let output = job.run(args!["--json", "/dev/stdout", "--max-steps", "0"]);
    assert_ended(&output, 0, &[]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"systems\": ["));
}

#[test]
fn paths_that_cannot_be_written_are_found_before_the_training() {
    let job = Job::new();
    fs::write(job.path("file"), "mine").unwrap();
    for (more, said) in [
        (args!["--json", job.path("file/results.json")], "file"),
        (args!["--profile", job.path("file/below/trace.json")], "file"),
        (args!["--json", job.directory.path()], "is a directory, not a file"),
        (args!["--output", job.path("file")], "file"),
        (args!["--output", job.path("file/below")], "file"),
    ] {
        assert_ended(&job.run(more), 1, &["error: ", said]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        for option in ["--output", "--json", "--model"] {
            let name = OsString::from_vec(b"not\xffutf8".to_vec());
            let more = vec![option.into(), job.directory.path().join(name).into()];
            assert_ended(&job.run(more), 1, &["error: ", "UTF-8"]);
        }
    }
    let mut left: Vec<_> =
        fs::read_dir(job.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file"]);
}
