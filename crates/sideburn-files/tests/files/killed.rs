//! Writers that are killed at any moment, and writers that are two.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sideburn_files::AtomicDir;
use tempfile::tempdir;

/// Replaces the two files of `target` by others that belong together, again and again.
fn replace(target: &Path, mark: &str, times: usize) {
    for round in 0..times {
        let staged = AtomicDir::create(target).unwrap();
        for file in ["config", "weights"] {
            fs::write(staged.path().join(file), format!("{mark} {round}")).unwrap();
        }
        staged.commit().unwrap();
    }
}

#[track_caller]
fn assert_of_one_kind(target: &Path) -> String {
    let [config, weights] = ["config", "weights"].map(|file| fs::read_to_string(target.join(file)).unwrap());
    assert_eq!(config, weights, "the files of two writers are mixed");
    config
}

fn staging_directories(parent: &Path) -> Vec<String> {
    let names = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".tmp-")).collect()
}

#[test]
#[ignore = "run by the test below, in a process of its own that is killed"]
fn work() {
    let target = std::env::var_os("TARGET").unwrap();
    // A few seconds, should nobody kill it.
    replace(Path::new(&target), "child", 2000);
}

#[cfg(unix)]
#[test]
fn a_killed_writer_leaves_the_old_files_or_the_new_ones() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("notes"), "mine").unwrap();
    replace(&target, "first", 1);
    let mut left_behind = 0;
    for round in 0..40u64 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["killed::work", "--exact", "--ignored"]).env("TARGET", &target);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(4000 + 977 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_of_one_kind(&target);
        assert_eq!(fs::read_to_string(target.join("notes")).unwrap(), "mine");
        left_behind += staging_directories(parent.path()).len();
    }
    println!("{left_behind} staging directories were left behind by 40 killed writers");
    assert!(assert_of_one_kind(&target).starts_with("child"), "no child came to its first commit");
    // Whoever writes next removes them.
    replace(&target, "last", 1);
    assert_eq!(staging_directories(parent.path()), [""; 0]);
    assert_eq!(assert_of_one_kind(&target), "last 0");
}

#[test]
fn two_writers_do_not_mix() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    std::thread::scope(|scope| {
        for mark in ["one", "two", "three"] {
            let target = &target;
            scope.spawn(move || replace(target, mark, 20));
        }
    });
    assert!(assert_of_one_kind(&target).ends_with(" 19"));
    assert_eq!(staging_directories(parent.path()), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_staging_directory_in_use_stays() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    let first = AtomicDir::create(&target).unwrap();
    fs::write(first.path().join("file"), "first").unwrap();
    let second = AtomicDir::create(&target).unwrap();
    fs::write(second.path().join("file"), "second").unwrap();
    second.commit().unwrap();
    first.commit().unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "first");
}

/// Where directories cannot be exchanged, a writer may be killed between two renames.
#[cfg(unix)]
#[test]
fn old_files_that_were_moved_aside_go_back() {
    let parent = tempdir().unwrap();
    let (target, aside) = (parent.path().join("out"), parent.path().join(".out.tmp-abc.old"));
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("file"), "old").unwrap();
    drop(AtomicDir::create(&target).unwrap());
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "old");
}
