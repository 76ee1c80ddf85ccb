//! Output directories: complete or absent, and never at the cost of files that are not ours.
//!
//! Permissions do not stop a test that runs as root, so an unwritable place is one whose parent is a file.

use std::fs;
use std::path::Path;

use sideburn_files::{AtomicDir, FileError, check_writable};
use tempfile::tempdir;

/// All paths under `dir`, sorted, with the content of files.
fn tree(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                pending.push(path);
                found.push((name, "/".to_owned()));
            } else {
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

#[test]
fn a_new_directory_appears_whole() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("runs/first/checkpoint-1");
    let staged = AtomicDir::create(&target).unwrap();
    assert_eq!(staged.target(), target);
    assert_eq!(staged.path().parent(), target.parent());
    fs::write(staged.path().join("config.json"), "{}").unwrap();
    fs::create_dir(staged.path().join("sub")).unwrap();
    fs::write(staged.path().join("sub/weights"), "w").unwrap();
    assert!(!target.exists());
    staged.commit().unwrap();
    assert_eq!(tree(&target), [pair("config.json", "{}"), pair("sub", "/"), pair("sub/weights", "w")]);
    assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "no staging directory is left");
}

#[test]
fn without_a_commit_nothing_is_left() {
    let parent = tempdir().unwrap();
    let staged = AtomicDir::create(parent.path().join("runs/first/out")).unwrap();
    fs::write(staged.path().join("half"), "").unwrap();
    drop(staged);
    assert_eq!(tree(parent.path()), []);

    // Parents that someone else has put to use stay.
    let staged = AtomicDir::create(parent.path().join("runs/first/out")).unwrap();
    fs::write(parent.path().join("runs/mine"), "m").unwrap();
    drop(staged);
    assert_eq!(tree(parent.path()), [pair("runs", "/"), pair("runs/mine", "m")]);

    let existing = parent.path().join("runs");
    let staged = AtomicDir::create(&existing).unwrap();
    fs::write(staged.path().join("mine"), "overwritten").unwrap();
    drop(staged);
    assert_eq!(tree(&existing), [pair("mine", "m")]);
}

#[test]
fn a_panic_between_leaves_nothing() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    let result = std::panic::catch_unwind(|| {
        let staged = AtomicDir::create(&target).unwrap();
        fs::write(staged.path().join("half"), "").unwrap();
        std::panic::resume_unwind(Box::new("in the middle"));
    });
    assert!(result.is_err());
    assert_eq!(tree(parent.path()), []);
}

#[test]
fn an_existing_directory_keeps_what_is_not_replaced() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir_all(target.join("sub")).unwrap();
    for (name, content) in [("thesis.tex", "years of work"), ("config.json", "old"), ("sub/notes", "n")] {
        fs::write(target.join(name), content).unwrap();
    }
    let staged = AtomicDir::create(&target).unwrap();
    assert_eq!(
        staged.path().parent(),
        Some(parent.path().canonicalize().unwrap().as_path()),
        "to change places with it"
    );
    #[cfg(unix)]
    let same_file = {
        use std::os::unix::fs::MetadataExt;
        let file = |target: &Path| fs::metadata(target.join("thesis.tex")).unwrap().ino();
        let before = file(&target);
        move |target: &Path| file(target) == before
    };
    fs::write(staged.path().join("config.json"), "new").unwrap();
    fs::create_dir(staged.path().join("sub")).unwrap();
    fs::write(staged.path().join("sub/weights"), "w").unwrap();
    staged.commit().unwrap();
    let expected = [
        pair("config.json", "new"),
        pair("sub", "/"),
        pair("sub/notes", "n"),
        pair("sub/weights", "w"),
        pair("thesis.tex", "years of work"),
    ];
    assert_eq!(tree(&target), expected);
    #[cfg(unix)]
    assert!(same_file(&target), "a file of another name is a copy");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "the old directory is left");
}

#[test]
fn a_target_that_appears_meanwhile_is_merged_into() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    let staged = AtomicDir::create(&target).unwrap();
    fs::write(staged.path().join("ours"), "o").unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("theirs"), "t").unwrap();
    staged.commit().unwrap();
    assert_eq!(tree(parent.path()), [pair("out", "/"), pair("out/ours", "o"), pair("out/theirs", "t")]);
}

#[test]
fn a_conflict_replaces_nothing() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    fs::create_dir_all(target.join("z")).unwrap();
    fs::write(target.join("a"), "old").unwrap();
    let before = tree(&target);
    let staged = AtomicDir::create(&target).unwrap();
    fs::write(staged.path().join("a"), "new").unwrap();
    fs::write(staged.path().join("z"), "a file here, a directory there").unwrap();
    let error = staged.commit().unwrap_err();
    assert!(matches!(error, FileError::InTheWay { .. }));
    let message = error.to_string();
    assert!(message.contains("out/z") && message.contains("is a directory and a file of that name"), "{message}");
    assert_eq!(tree(&target), before);
}

#[test]
fn a_failed_commit_leaves_nothing() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("runs/out");
    let staged = AtomicDir::create(&target).unwrap();
    fs::remove_dir_all(staged.path()).unwrap();
    let message = staged.commit().unwrap_err().to_string();
    assert!(message.contains("cannot write") && message.contains("runs/out"), "{message}");
    assert_eq!(tree(parent.path()), []);
}

#[test]
fn unwritable_places() {
    let parent = tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "f").unwrap();
    for target in [file.join("out"), file.join("deep/out")] {
        let message = check_writable(&target).unwrap_err().to_string();
        assert!(message.contains(target.to_str().unwrap()), "{message}");
        assert!(message.contains("cannot write") && message.contains("choose another output path"), "{message}");
        assert!(AtomicDir::create(&target).is_err());
    }
    let message = check_writable(&file).unwrap_err().to_string();
    assert!(message.contains("is in the way: it is a file and a directory of that name"), "{message}");
    assert_eq!(tree(parent.path()), [pair("file", "f")]);
}

#[test]
fn checking_leaves_no_trace() {
    let parent = tempdir().unwrap();
    check_writable(parent.path()).unwrap();
    check_writable(parent.path().join("a/b/c")).unwrap();
    assert_eq!(tree(parent.path()), []);
}

#[cfg(unix)]
#[test]
fn a_broken_link_is_found_before_the_work() {
    let parent = tempdir().unwrap();
    let target = parent.path().join("out");
    std::os::unix::fs::symlink("gone", &target).unwrap();
    let message = check_writable(&target).unwrap_err().to_string();
    assert!(message.contains("it is a broken symbolic link and a directory of that name"), "{message}");
}

#[cfg(unix)]
#[test]
fn new_directories_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempdir().unwrap();
    let (ours, plain) = (parent.path().join("ours"), parent.path().join("plain"));
    AtomicDir::create(&ours).unwrap().commit().unwrap();
    fs::create_dir(&plain).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}
