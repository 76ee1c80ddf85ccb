//! Single files: the old one or the new one, and pipes and devices stay what they are.

use std::fs;
#[cfg(unix)]
use std::path::Path;

use sideburn_files::write_atomic;
use tempfile::tempdir;

#[test]
fn a_failed_write_leaves_the_old_file() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("config.json");
    write_atomic(&path, b"old").unwrap();
    write_atomic(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    // Permissions would not stop a test that runs as root; a parent that is a file stops everyone.
    let message = write_atomic(path.join("x"), b"data").unwrap_err().to_string();
    assert!(message.contains("cannot write") && message.contains("choose another output path"), "{message}");
    // A rename that fails at the last moment: the temporary file goes, the directory stays.
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert!(write_atomic(&taken, b"data").is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[cfg(unix)]
#[test]
fn written_files_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().unwrap();
    let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
    write_atomic(&ours, b"").unwrap();
    fs::write(&plain, b"").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_written_to() {
    use std::os::unix::fs::FileTypeExt;
    let dir = tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    write_atomic(&pipe, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), "through");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    write_atomic("/dev/null", b"nothing").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let message = write_atomic("/dev/full", b"data").unwrap_err().to_string();
    assert!(message.contains("cannot write \"/dev/full\"") && message.contains("room on the disk"), "{message}");
    let message = write_atomic("/dev/full", &vec![0; 1 << 20]).unwrap_err().to_string();
    assert!(message.contains("cannot write"), "{message}");
}
