//! What a GPU has, and counting what it is told to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::DispatchDevice;
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

/// The memory of a GPU in bytes, where its backend says how much there is. Opens the device.
pub fn device_memory(device: &Device) -> Option<u64> {
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Cube(device) => device.client().properties().memory.max_memory(),
        #[allow(unreachable_patterns, reason = "there may be no other backend")]
        _ => None,
    }
}
