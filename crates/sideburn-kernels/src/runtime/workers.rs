//! The threads that the CPU kernels share.

use burn::tensor::Device;
use rayon::prelude::*;

/// Runs `task` on one of the CPU kernels' threads, if `device` is the CPU.
///
/// An operation that is called from any other thread is handed over to these, which takes longer than a small
/// operation. A forward or a backward pass is hundreds of operations: hand it over as a whole.
///
/// A thread of the pool that waits for others may begin with another task meanwhile. Two tasks at a time must therefore
/// not need the same lock, as a forward and a backward pass through one autodiff graph do. One thread trains a model.
pub fn on_workers<R: Send>(device: &Device, task: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "flex")]
    if crate::runtime::row_layout::is_cpu(device) {
        return rayon::scope(|_| task());
    }
    let _ = device;
    task()
}

/// The values `element(0)`, `element(1)`, ..., `element(len - 1)`, computed by all of the CPU kernels' threads. Each
/// value is computed by itself, so that the number of threads changes nothing.
pub fn elements(len: usize, element: impl Fn(u64) -> f32 + Sync) -> Vec<f32> {
    // A draw takes tens of nanoseconds: handing over fewer would cost more than it saves.
    const AT_ONCE: usize = 1 << 12;
    (0..len).into_par_iter().with_min_len(AT_ONCE).map(|index| element(index as u64)).collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn elements_are_in_order() {
        let len = (1 << 14) + 3;
        assert!(elements(len, |index| index as f32).into_iter().eq((0..len).map(|index| index as f32)));
        assert!(elements(0, |_| 1.0).is_empty());
    }

    #[test]
    fn the_cpu_has_workers_of_its_own_with_and_without_autodiff() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            assert!(rayon::current_thread_index().is_none());
            assert!(on_workers(&device, || rayon::current_thread_index().is_some()));
        }
    }
}
