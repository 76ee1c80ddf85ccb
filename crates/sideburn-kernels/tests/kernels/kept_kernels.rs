//! Where compiled kernels are kept: each build of a program finds its own again, and nothing that the folder holds does
//! harm.
//!
//! Needs a GPU, or software that stands in for one. CubeCL itself keeps nothing for `wgpu`, so that the tests put
//! something into the place where it keeps kernels for CUDA, by the same calls.

use std::fs::{self, create_dir_all, read_dir, remove_dir_all, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use burn::tensor::{Device, Tensor};
use burn_cubecl::cubecl::environment::{CacheOption, Namespace, Store, StoreOptions};
use sideburn_kernels::{keep_kernels, matmul};

/// The work of a process: a matrix product, and something that is kept. It prints whether that was there.
#[test]
#[ignore = "run by the tests below, in processes of their own"]
fn work() {
    keep_kernels();
    let gpu = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    let x = Tensor::<2>::ones([64, 96], &gpu);
    assert_eq!(matmul(x.clone(), x.transpose()).sum().into_scalar::<f32>(), 64.0 * 64.0 * 96.0);
    let options = StoreOptions::new().storage(Namespace::scoped("kept", "test")).cache(CacheOption::Lazy);
    let mut store = Store::<u32, Vec<u8>>::new(options);
    let kept = (0..20).filter(|key| store.remove(key).is_some_and(|value| value == kernel(*key))).count();
    for key in 0..20 {
        // What another process has put there, or a folder that takes nothing, is no matter.
        let _ = store.insert(key, kernel(key));
    }
    println!("KEPT {kept} OF 20");
}

/// Something of the size of a compiled kernel.
fn kernel(key: u32) -> Vec<u8> {
    vec![key as u8; 20_000]
}

/// Begins [`work`] in a process of its own, with this folder for caches.
fn start(cache: &Path, directory: &Path) -> Child {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["kept_kernels::work", "--exact", "--ignored", "--nocapture"]).current_dir(directory);
    for variable in ["CUBECL_ENVIRONMENT", "CUBECL_ENVIRONMENT_RECORDS"] {
        process.env_remove(variable);
    }
    process.env("XDG_CACHE_HOME", cache).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How many were there, of 20.
fn kept(process: Child) -> usize {
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let (_, rest) = text.split_once("KEPT ").expect("a number of kernels");
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn run(folder: &Path) -> usize {
    kept(start(folder, folder))
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kept_kernels").join(name);
    let _ = remove_dir_all(&folder);
    create_dir_all(&folder).unwrap();
    folder
}

/// The databases in a folder for caches.
fn databases(cache: &Path) -> Vec<PathBuf> {
    let entries = read_dir(cache.join("sideburn")).into_iter().flatten().map(Result::unwrap);
    let is_database = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "db");
    let mut databases: Vec<_> = entries.map(|entry| entry.path()).filter(is_database).collect();
    databases.sort();
    databases
}

#[test]
fn a_second_process_finds_them() {
    let cache = folder("cache");
    assert_eq!([run(&cache), run(&cache)], [0, 20]);
    assert_eq!(databases(&cache).len(), 1, "one file for a program");
}

#[test]
fn another_build_does_not() {
    let cache = folder("builds");
    run(&cache);
    let [own] = &databases(&cache)[..] else { panic!("one file for a program") };
    fs::rename(own, own.with_file_name("0123456789abcdef.db")).unwrap();
    assert_eq!(run(&cache), 0);
    // Of many programs those stay that were run last.
    for program in 0..12 {
        write(own.with_file_name(format!("{program:016x}.db")), "").unwrap();
    }
    assert_eq!(run(&cache), 20);
    let left = databases(&cache);
    assert!(left.len() == 8 && left.contains(own), "{left:?}");
}

#[test]
fn two_processes_share_a_folder() {
    let cache = folder("shared");
    let both = [start(&cache, &cache), start(&cache, &cache)].map(kept);
    println!("two processes at once found {both:?}");
    assert_eq!(run(&cache), 20);
}

#[test]
fn a_spoilt_file_does_no_harm() {
    let cache = folder("spoilt");
    run(&cache);
    let [own] = &databases(&cache)[..] else { panic!("one file for a program") };
    let whole = fs::read(own).unwrap();
    let noise = |range: std::ops::Range<usize>| {
        let mut bytes = whole.clone();
        let end = range.end.min(bytes.len());
        bytes[range.start.min(end)..end].fill(0xa5);
        bytes
    };
    let spoilt =
        [vec![0xa5; 5000], b"text".to_vec(), whole[..whole.len() / 2].to_vec(), noise(30..90), noise(100..9000)];
    for (case, bytes) in spoilt.iter().enumerate() {
        for entry in read_dir(cache.join("sideburn")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        write(own, bytes).unwrap();
        println!("case {case}: {} of 20 are found", run(&cache));
    }
    // What is no database at all is removed, so that the next process is not left without one.
    write(own, "no database").unwrap();
    assert_eq!([run(&cache), run(&cache)], [0, 20]);
}

#[test]
fn a_folder_that_cannot_be_made_or_written_to_is_no_error() {
    let blocked = folder("blocked");
    write(blocked.join("sideburn"), "a file where a folder should be").unwrap();
    assert_eq!(run(&blocked), 0);
    let read_only = folder("read_only");
    create_dir_all(read_only.join("sideburn")).unwrap();
    let allow = |mode| fs::set_permissions(read_only.join("sideburn"), PermissionsExt::from_mode(mode)).unwrap();
    allow(0o555);
    run(&read_only);
    allow(0o755);
}

#[test]
fn a_configuration_file_has_its_way() {
    let (cache, directory) = (folder("unused"), folder("configured"));
    write(directory.join("cubecl.toml"), "[environment]\npath = \"local\"\n").unwrap();
    kept(start(&cache, &directory));
    assert!(!cache.join("sideburn").exists(), "the configuration was overridden");
    assert!(directory.join("default.db").exists(), "nothing was kept where the configuration says");
}
