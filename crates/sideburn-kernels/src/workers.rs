//! Where a thread computes from.

use burn::tensor::Device;

/// Runs `task` on one of the threads that the CPU kernels share their work out to, if `device` is the CPU.
///
/// An operation that is called from any other thread hands its work over and waits, which takes longer than a small
/// operation itself. A forward or a backward pass is hundreds of operations: it is worth handing over as a whole.
///
/// A worker that waits for others may begin with another task meanwhile. So two tasks at a time must not need the same
/// lock, as a forward and a backward pass through one autodiff graph do: one thread trains a model.
pub fn on_workers<R: Send>(device: &Device, task: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "flex")]
    if crate::row_layout::is_cpu(device) {
        return rayon::scope(|_| task());
    }
    let _ = device;
    task()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_workers_of_its_own_with_and_without_autodiff() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            assert!(rayon::current_thread_index().is_none());
            assert!(on_workers(&device, || rayon::current_thread_index().is_some()));
        }
    }
}
