//! Bodies that end too early, are not what they should be, or were begun by a process that is gone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sideburn_testing::http::{Reply, Request};

use crate::fetched::start_another;
use crate::played::{COMMIT, ID, Stage, WEIGHTS_HASH, model, weights};

/// The file that the weights have while they are fetched.
fn incomplete(stage: &Stage) -> PathBuf {
    stage.repo().join("blobs").join(format!("{WEIGHTS_HASH}.incomplete"))
}

/// Puts the beginning of the weights there, as a process leaves it that is killed.
fn begun(stage: &Stage, bytes: &[u8]) {
    fs::create_dir_all(incomplete(stage).parent().unwrap()).unwrap();
    fs::write(incomplete(stage), bytes).unwrap();
}

fn ranges(stage: &Stage) -> Vec<usize> {
    stage.storage.requests().iter().map(Request::range_start).collect()
}

fn is_whole(stage: &Stage) -> bool {
    let blob = stage.repo().join("blobs").join(WEIGHTS_HASH);
    fs::read(blob).is_ok_and(|found| found == weights()) && !incomplete(stage).exists()
}

#[test]
fn what_another_process_has_begun_goes_on() {
    let stage = Stage::new(model());
    begun(&stage, &weights()[..123_456]);
    stage.hub().model(ID).unwrap();
    assert_eq!(ranges(&stage), [123_456]);
    assert!(is_whole(&stage));
}

#[test]
fn a_process_that_is_killed_leaves_a_beginning_and_no_model() {
    let slowly = |request: &Request, reply: Reply| match request.range_start() {
        0 => reply.slowly(10_000, Duration::from_millis(100)),
        _ => reply,
    };
    let stage = Stage::changed(model(), |_, reply| reply, slowly);
    let mut child = start_another(&stage);
    while fs::metadata(incomplete(&stage)).map_or(0, |found| found.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it is still on its way");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!stage.repo().join("refs/main").exists());
    stage.hub().model(ID).unwrap();
    let [first, second] = ranges(&stage)[..] else { panic!("two requests to the storage") };
    assert!(first == 0 && second > 0 && second < 300_000, "{second}");
    assert!(is_whole(&stage));
}

#[test]
fn what_is_all_there_only_gets_its_name() {
    let stage = Stage::new(model());
    begun(&stage, &weights());
    stage.hub().model(ID).unwrap();
    assert_eq!(ranges(&stage), [0; 0]);
    assert!(is_whole(&stage));
}

#[test]
fn a_beginning_of_something_else_is_thrown_away() {
    for bytes in [vec![1; 5000], vec![1; 300_000], vec![1; 400_000]] {
        let stage = Stage::new(model());
        begun(&stage, &bytes);
        stage.hub().model(ID).unwrap();
        assert_eq!(ranges(&stage).last(), Some(&0));
        assert!(is_whole(&stage));
    }
}

#[test]
fn a_server_without_ranges_sends_all() {
    let whole = |_: &Request, _| Reply::new(200).body(weights());
    let stage = Stage::changed(model(), |_, reply| reply, whole);
    begun(&stage, &weights()[..1000]);
    stage.hub().model(ID).unwrap();
    assert_eq!(ranges(&stage), [1000]);
    assert!(is_whole(&stage));
}

#[test]
fn a_body_that_ends_too_early_goes_on() {
    // 100,000 bytes at a time.
    let cut = |_: &Request, reply: Reply| reply.cut(100_000);
    let stage = Stage::changed(model(), |_, reply| reply, cut);
    // The last third is whole, and the server must not cut behind it.
    stage.hub().model(ID).unwrap();
    assert_eq!(ranges(&stage), [0, 100_000, 200_000]);
    assert!(is_whole(&stage));
    assert_eq!(stage.take_events().iter().filter(|event| event.contains("ended in the middle")).count(), 2);
}

#[test]
fn nothing_new_is_asked_for_a_few_times_only() {
    let stage = Stage::changed(model(), |_, reply| reply, |_, reply| reply.cut(0));
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert!(error.ends_with("the connection ended in the middle of the answer"), "{error}");
    assert_eq!(ranges(&stage), [0; 6]);
    assert!(!stage.repo().join("refs/main").exists(), "half a model is none");
    assert!(!stage.repo().join("snapshots").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn what_was_fetched_is_kept_for_the_next_time() {
    let stage = Stage::changed(
        model(),
        |_, reply| reply,
        |request, reply| match request.range_start() {
            0 => reply.cut(70_000),
            _ => Reply::new(404),
        },
    );
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert!(error.ends_with("status 404"), "{error}");
    assert!(!stage.repo().join(".no_exist").exists());
    assert_eq!(fs::read(incomplete(&stage)).unwrap(), &weights()[..70_000]);
}

#[test]
fn another_content_of_the_same_length_is_refused() {
    let mut damaged = weights();
    damaged[299_999] ^= 1;
    let stage = Stage::changed(model(), |_, reply| reply, move |_, reply: Reply| reply.body(damaged.clone()));
    let error = stage.hub().model(ID).unwrap_err().to_string();
    let told = format!("model.safetensors of {ID} came damaged: its hash is ");
    assert!(error.starts_with(&told) && error.contains(&format!("that on the hub {WEIGHTS_HASH}")), "{error}");
    assert!(!incomplete(&stage).exists() && !stage.repo().join("blobs").join(WEIGHTS_HASH).exists());
}

#[test]
fn small_files_are_checked_as_well() {
    let damage = |request: &Request, reply: Reply| match (request.method.as_str(), request.path()) {
        ("GET", path) if path.ends_with("tokenizer.json") => reply.body("{\"version\": \"6.6\"}\n"),
        _ => reply,
    };
    let stage = Stage::changed(model(), damage, |_, reply| reply);
    let error = stage.hub().model(ID).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json of someone/tiny-t5 came damaged"), "{error}");
}

#[test]
fn another_length_is_refused() {
    for length in [299_999, 300_001] {
        let other = move |request: &Request, _| {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let start = request.range_start();
            let range = format!("bytes {start}-{}/{}", length - 1, length);
            Reply::new(if start > 0 { 206 } else { 200 })
                .header("content-range", range)
                .body(&content[start.min(length)..])
        };
        let stage = Stage::changed(model(), |_, reply| reply, other);
        let error = stage.hub().model(ID).unwrap_err().to_string();
        let told = format!("model.safetensors of {ID} is to have 300000 bytes, but {length} came; try again");
        assert_eq!(error, told);
        assert!(!incomplete(&stage).exists());
    }
}

#[test]
fn what_cannot_be_continued_begins_anew() {
    // It has become shorter than what is there: status 416.
    let refuse = |request: &Request, reply: Reply| if request.range_start() > 0 { Reply::new(416) } else { reply };
    let stage = Stage::changed(model(), |_, reply| reply, refuse);
    begun(&stage, &weights()[..1000]);
    stage.hub().model(ID).unwrap();
    assert_eq!(ranges(&stage), [1000, 0]);
    assert!(is_whole(&stage));
}
