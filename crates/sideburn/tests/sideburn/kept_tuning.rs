//! What one process has tuned on a GPU, the next one finds.
//!
//! Needs a GPU, or software that stands in for one: `cargo test --release -p sideburn --features wgpu kept_tuning`.

use std::fs::{create_dir_all, read_dir, remove_dir_all, write};
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Tensor;
use sideburn::device::parse_device;
use sideburn::kernels::count_launches;

/// The work of a process: a matrix product. It prints the number of kernels launched.
#[test]
#[ignore = "run by the tests below, in processes of their own"]
fn work() {
    let gpu = parse_device("wgpu").unwrap();
    let (sum, launches) = count_launches(&gpu, || {
        let x = Tensor::<2>::ones([64, 96], &gpu);
        x.clone().matmul(x.transpose()).sum().into_scalar::<f32>()
    });
    assert_eq!(sum, 64.0 * 64.0 * 96.0);
    println!("LAUNCHES {}", launches.values().sum::<usize>());
}

/// Runs [`work`] in a process of its own. Returns its number of launches.
fn launches(cache: &Path, directory: &Path) -> usize {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["kept_tuning::work", "--exact", "--ignored", "--nocapture"]).current_dir(directory);
    for variable in ["CUBECL_AUTOTUNE_CACHE", "CUBECL_ENVIRONMENT", "CUBECL_ENVIRONMENT_RECORDS"] {
        process.env_remove(variable);
    }
    let output = process.env("XDG_CACHE_HOME", cache).env("CUBECL_AUTOTUNE_LEVEL", "minimal").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, number) = text.split_once("LAUNCHES ").expect("a number of launches");
    number.split_whitespace().next().unwrap().parse().unwrap()
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kept_tuning").join(name);
    let _ = remove_dir_all(&folder);
    create_dir_all(&folder).unwrap();
    folder
}

/// The files in a folder that hold something, with their sizes.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let entries = read_dir(folder).into_iter().flatten().map(Result::unwrap);
    let mut files: Vec<_> = entries.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect();
    files.retain(|(_, bytes)| *bytes > 0);
    files.sort();
    files
}

#[test]
fn a_second_process_does_not_tune_again() {
    let cache = folder("cache");
    let first = launches(&cache, &cache);
    let kept = files(&cache.join("sideburn"));
    let second = launches(&cache, &cache);
    println!("{first} launches, then {second}; kept: {kept:?}");
    assert!(!kept.is_empty(), "nothing was kept");
    assert!(second < first, "{first} launches, then {second}: tuned again");
    assert_eq!(files(&cache.join("sideburn")), kept, "the second process has added something");
}

#[test]
fn a_configuration_file_has_its_way() {
    let (cache, directory) = (folder("unused"), folder("configured"));
    write(directory.join("cubecl.toml"), "[environment]\npath = \"local\"\n").unwrap();
    launches(&cache, &directory);
    assert!(!cache.join("sideburn").exists(), "the configuration was overridden");
    assert!(directory.join("default.db").exists(), "nothing was kept where the configuration says");
}

#[test]
fn a_folder_that_cannot_be_made_is_no_error() {
    let directory = folder("blocked");
    write(directory.join("sideburn"), "a file where a folder should be").unwrap();
    launches(&directory, &directory);
}
