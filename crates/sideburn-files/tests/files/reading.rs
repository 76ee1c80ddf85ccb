//! What is opened, and what is refused before a byte of it is read.

use std::fs;

use sideburn_files::{FileError, open_regular, read_capped, read_text};
use tempfile::tempdir;

#[track_caller]
fn assert_message(error: &FileError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn text_and_its_mark() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, "\u{feff}{\"r\": 8}").unwrap();
    assert_eq!(read_text(&path, 64).unwrap(), "{\"r\": 8}");
    fs::write(&path, b"{\"r\": \xff}").unwrap();
    assert_message(&read_text(&path, 64).unwrap_err(), &["config.json", "byte 6 is not UTF-8"]);
    assert_eq!(read_capped(&path, 64).unwrap().len(), 8);
}

#[test]
fn a_cap_is_a_cap() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("large");
    fs::write(&path, [b'x'; 9]).unwrap();
    assert_eq!(read_capped(&path, 9).unwrap().len(), 9);
    assert_message(&read_capped(&path, 8).unwrap_err(), &["large", "has 9 bytes, more than the limit of 8"]);
    // A sparse file of a terabyte is refused by its size.
    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    assert_message(&read_text(&path, 8).unwrap_err(), &["1099511627776 bytes"]);
}

#[test]
fn a_pointer_of_git_lfs_is_told() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n").unwrap();
    assert_message(&read_text(&path, 1024).unwrap_err(), &["tokenizer.json", "Git LFS pointer", "`git lfs pull`"]);
}

#[test]
fn what_is_not_there_or_no_file() {
    let dir = tempdir().unwrap();
    assert_message(&read_text(dir.path().join("absent"), 8).unwrap_err(), &["absent", "does not exist"]);
    assert_message(&read_text(dir.path(), 8).unwrap_err(), &["is not a regular file"]);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_message(&open_regular(file.join("below")).unwrap_err(), &["below", "does not exist"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_endless_devices_are_refused_at_once() {
    let dir = tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = dir.path().join("zero");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    for path in [&pipe, &link] {
        assert!(matches!(read_text(path, 8), Err(FileError::NotAFile { .. })));
        assert!(matches!(open_regular(path), Err(FileError::NotAFile { .. })));
    }
    // A file of `/proc` states a size of 0, and has content.
    assert!(
        matches!(read_capped("/proc/self/maps", 8), Err(FileError::TooLarge { found: 9, limit: 8, .. }))
            || !cfg!(target_os = "linux")
    );
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let message = read_text("a\u{1b}[2Jb\0c", 8).unwrap_err().to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
}
