//! Counting what a GPU is told to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};

#[derive(Default)]
struct Counts(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Counts {
    fn launched(&self, kernel: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
    }
}

/// Runs `work` and counts the kernels that are launched meanwhile, on all GPUs and by all threads, under their names.
/// Work that was put off is done before and after, on `device`.
///
/// The first time that a shape is met, kernels are tried out for it, and these launches count as well.
///
/// # Panics
/// If the device fails.
pub fn count_launches<R>(device: &Device, work: impl FnOnce() -> R) -> (R, BTreeMap<&'static str, usize>) {
    device.sync().expect("a device that works");
    let counts = Arc::new(Counts::default());
    let watching = LaunchObservation::new(counts.clone());
    let result = work();
    device.sync().expect("a device that works");
    drop(watching);
    let counts = std::mem::take(&mut *counts.0.lock().unwrap_or_else(PoisonError::into_inner));
    (result, counts)
}
