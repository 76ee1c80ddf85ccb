//! Signals while a model is trained.

use std::time::{Duration, Instant};

use super::*;

/// A run that goes on until it is told to end, with some steps behind it.
fn in_training(job: &Job) -> Running {
    let _ = fs::remove_dir_all(job.path("out/unfinished"));
    let mut running = Running(Some(job.command(args!["--max-steps", "1000000"]).spawn().unwrap()));
    let (log, began) = (job.path("out/unfinished/training.jsonl"), Instant::now());
    while fs::read_to_string(&log).unwrap_or_default().lines().count() < 2 {
        assert!(began.elapsed() < Duration::from_secs(120), "no step was made");
        let ended = running.0.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "ended with {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

fn send(signal: &str, running: &Running) {
    let id = running.0.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

#[test]
fn a_signal_saves_what_is_there_beside_what_was_there() {
    let job = Job::new();
    assert_ended(&job.run(vec![]), 0, &[]);
    let earlier = || {
        ["adapter/adapter_model.safetensors", "training.jsonl"]
            .map(|file| fs::read(job.path("out").join(file)).unwrap())
    };
    let before = earlier();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let running = in_training(&job);
        send(signal, &running);
        let name = format!("interrupted by SIG{signal}");
        assert_ended(&running.wait(), code, &["the training did not end well", "unfinished", &name]);
        assert!(is_adapter(&job.path("out/unfinished/adapter")));
        assert!(fs::read_to_string(job.path("out/unfinished/training.jsonl")).unwrap().lines().count() >= 2);
        assert!(earlier() == before, "the earlier adapter and its log are as they were");
    }
    // A run that ends well takes the place of both.
    assert_ended(&job.run(vec![]), 0, &[]);
    assert!(!job.path("out/unfinished").exists());
}

/// A process that is killed saves nothing, but its log does not pass for that of an earlier adapter.
#[test]
fn a_kill_leaves_the_earlier_run_as_it_was() {
    let job = Job::new();
    assert_ended(&job.run(vec![]), 0, &[]);
    let log = fs::read(job.path("out/training.jsonl")).unwrap();
    let running = in_training(&job);
    send("KILL", &running);
    assert_eq!(running.wait().status.code(), None);
    assert_eq!(fs::read(job.path("out/training.jsonl")).unwrap(), log);
    assert!(!job.path("out/unfinished/adapter").exists());
}
