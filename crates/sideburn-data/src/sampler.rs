//! Which samples each training step sees.

use sideburn_batch::Key;

use crate::error::DataError;

/// Shuffled batches of example numbers: every example once per epoch, in an order that is a pure function of the seed
/// and the epoch.
///
/// Any step's batch can be asked for at any time, so that a run resumes in mid-epoch without replaying or saving
/// anything.
///
/// ```
/// use sideburn_data::BatchSampler;
///
/// let sampler = BatchSampler::new(10, 4, 42)?;
/// assert_eq!(sampler.batches_per_epoch(), 3);
/// assert_eq!(sampler.batch(2).len(), 2, "the last batch of an epoch is what is left");
/// assert_eq!(sampler.epoch_of(3), 1);
/// assert_eq!(sampler.batch(3), BatchSampler::new(10, 4, 42)?.batch(3));
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSampler {
    len: usize,
    batch_size: usize,
    batches: usize,
    key: Key,
}

impl BatchSampler {
    /// Batches of `batch_size` out of `len` examples. The last batch of an epoch is smaller if `len` is not a multiple.
    ///
    /// # Errors
    /// If `len` or `batch_size` is zero.
    pub fn new(len: usize, batch_size: usize, seed: u64) -> Result<Self, DataError> {
        if len == 0 || batch_size == 0 {
            return Err(DataError::NoBatches { len, batch_size, drop_last: false });
        }
        // The name keeps sample order and dropout apart, which start from the same seed.
        let key = Key::from_seed(seed).fold_in_name("sample order");
        Ok(Self { len, batch_size, batches: len.div_ceil(batch_size), key })
    }

    /// The same, with full batches only: each epoch leaves out the last `len % batch_size` examples of its order.
    ///
    /// # Errors
    /// If there are fewer samples than a batch holds.
    pub fn drop_last(self) -> Result<Self, DataError> {
        let Self { len, batch_size, .. } = self;
        match len / batch_size {
            0 => Err(DataError::NoBatches { len, batch_size, drop_last: true }),
            batches => Ok(Self { batches, ..self }),
        }
    }

    /// How many batches an epoch has; at least 1.
    pub fn batches_per_epoch(&self) -> usize {
        self.batches
    }

    /// The epoch that `step` is in; both count from 0.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.batches as u64
    }

    /// The example numbers of `step`, which counts from 0 through all epochs.
    ///
    /// The epoch's order is made anew each time: microseconds for a data set of tens of thousands, for which there is
    /// no state that could be wrong.
    pub fn batch(&self, step: u64) -> Vec<usize> {
        let order = self.key.fold_in(self.epoch_of(step)).permutation(self.len);
        let start = (step % self.batches as u64) as usize * self.batch_size;
        order[start..self.len.min(start.saturating_add(self.batch_size))].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_example_comes_once_per_epoch(len in 1usize..60, batch_size in 1usize..20, seed: u64, epoch in 0u64..1 << 40) {
            let sampler = BatchSampler::new(len, batch_size, seed).unwrap();
            let per_epoch = sampler.batches_per_epoch() as u64;
            let steps: Vec<u64> = (epoch * per_epoch..(epoch + 1) * per_epoch).collect();
            let batches: Vec<Vec<usize>> = steps.iter().map(|&step| sampler.batch(step)).collect();
            prop_assert!(steps.iter().all(|&step| sampler.epoch_of(step) == epoch));
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && batch.len() <= batch_size));
            let mut seen = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
            for (step, batch) in steps.iter().zip(&batches).rev() {
                prop_assert_eq!(&sampler.batch(*step), batch, "the batch must not depend on what was asked before");
            }
        }

        #[test]
        fn drop_last_leaves_full_batches_only(len in 1usize..60, batch_size in 1usize..20, step in 0u64..500) {
            match BatchSampler::new(len, batch_size, 1).unwrap().drop_last() {
                Ok(sampler) => prop_assert_eq!(sampler.batch(step).len(), batch_size),
                Err(_) => prop_assert!(len < batch_size),
            }
        }
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let sampler = BatchSampler::new(100, 100, 1).unwrap();
        assert_ne!(sampler.batch(0), sampler.batch(1));
        assert_ne!(sampler.batch(0), BatchSampler::new(100, 100, 2).unwrap().batch(0));
        assert_ne!(sampler.batch(0), Key::from_seed(1).fold_in(0).permutation(100), "that key may be dropout's");
    }

    #[test]
    fn nothing_to_sample_is_an_error() {
        assert!(BatchSampler::new(0, 4, 0).is_err());
        assert!(BatchSampler::new(4, 0, 0).is_err());
        assert_eq!(BatchSampler::new(3, usize::MAX, 0).unwrap().batch(5).len(), 3);
        let message = BatchSampler::new(3, 4, 0).unwrap().drop_last().unwrap_err().to_string();
        assert!(message.starts_with("3 examples in batches of 4 make no full batch"), "{message}");
    }
}
