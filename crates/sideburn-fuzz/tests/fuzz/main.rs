//! All targets over known inputs, over what once broke them, and over a fixed number of changed files.
//!
//! `SIDEBURN_FUZZ_ROUNDS` sets another number of changed files for each target (400 if it is not set),
//! `SIDEBURN_FUZZ_SEED` another seed (0), and `SIDEBURN_FUZZ_TARGET` chooses one target. An input that breaks a promise is written to `fuzz/regressions/TARGET/`, where
//! it stays: from then on every run begins with it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use peak_alloc::PeakAlloc;
use sideburn_batch::Key;
use sideburn_fuzz::{TARGETS, Target, mutate};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc; // one test in this binary: it measures the whole process

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, expected a number")),
        Err(_) => default,
    }
}

fn regressions(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions").join(target.name)
}

/// Runs one input, and says what was broken.
fn broken(target: &Target, bytes: &[u8]) -> Option<String> {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let run = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    if let Err(panic) = run {
        let text = panic.downcast_ref::<String>().cloned();
        return Some(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default());
    }
    let (held, limit) = (MEMORY.peak_usage().saturating_sub(before), (4 << 20) + target.memory * bytes.len());
    (held > limit).then(|| format!("{held} bytes of memory for {} bytes, the limit is {limit}", bytes.len()))
}

/// Runs all inputs of a target up to the first that breaks a promise.
fn run(target: &Target) -> Result<(), String> {
    let (name, folder) = (target.name, regressions(target));
    let seeds = (target.seeds)();
    let known = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| fs::read(entry.path()).unwrap());
    for bytes in seeds.iter().cloned().chain(known).chain([Vec::new()]) {
        if let Some(what) = broken(target, &bytes) {
            return Err(format!("{name}, {} known bytes: {what}", bytes.len()));
        }
    }
    let key = Key::from_seed(number("SIDEBURN_FUZZ_SEED", 0)).fold_in_name(name);
    for round in 0..number("SIDEBURN_FUZZ_ROUNDS", 400) {
        let bytes = mutate(&seeds, target.words, key.fold_in(round));
        if let Some(what) = broken(target, &bytes) {
            let path = folder.join(format!("{:016x}", Key::from_seed(0).fold_in_name(&format!("{bytes:?}")).bits(0)));
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, bytes).unwrap();
            return Err(format!("{name}, round {round}, kept as {}: {what}", path.display()));
        }
    }
    Ok(())
}

/// That changes repeat with their key, and differ.
fn check_changes() {
    let seeds = [b"{\"a\": 12}".to_vec(), b"[3]".to_vec()];
    let all = || (0..500).map(|i| mutate(&seeds, &[b"null"], Key::from_seed(i))).collect::<Vec<_>>();
    let (first, second) = (all(), all());
    assert_eq!(first, second);
    let mut different = first.clone();
    different.sort();
    different.dedup();
    assert!(different.len() > 400, "{}", different.len());
    assert!(first.iter().any(Vec::is_empty) || first.iter().any(|bytes| bytes.len() < 3));
    assert!(first.iter().any(|bytes| bytes.windows(20).any(|part| part == b"18446744073709551615")));
    let of_nothing = || mutate(&[vec![]], &[], Key::from_seed(1));
    assert_eq!(of_nothing(), of_nothing());
}

#[test]
fn promises_hold_for_every_target() {
    check_changes();
    std::panic::set_hook(Box::new(|_| {})); // a library that panics is caught, and says nothing of use
    let only = std::env::var("SIDEBURN_FUZZ_TARGET").ok();
    let chosen = TARGETS.iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name));
    let broken: Vec<String> = chosen.filter_map(|target| run(target).err()).collect();
    let _ = std::panic::take_hook();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
