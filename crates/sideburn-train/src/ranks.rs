//! Several processes or devices that train one model together: what they do with each other.

mod agree;
mod devices;
mod share;
mod sum;
mod threads;

use burn::tensor::{Tensor, TensorData};

pub(crate) use agree::{agree, agree_to_stop, check_run, check_weights};
pub use agree::{check_same, first_failure};
pub use devices::DeviceRanks;
pub(crate) use share::share_end;
pub use share::share_state;
pub use sum::{OverRanks, micro_batches_of};
pub use threads::ThreadRanks;

/// The ranks of a run, as one of them sees them: processes, threads or devices that hold the same model and give the same
/// micro-batches, each with a part of them to work on.
///
/// Every rank calls the same methods in the same order, and each call returns when all have made it. An implementation needs
/// [`sum`](Self::sum) and [`gather`](Self::gather); `sideburn-mpi` has one over MPI, [`ThreadRanks`] is one over threads, and
/// [`DeviceRanks`] one over the GPUs of a machine.
pub trait Ranks {
    /// The number of this rank, from 0. Rank 0 is the one that writes.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn count(&self) -> usize;

    /// Puts the sum over all ranks in the place of each value. Every rank gets the same bits.
    ///
    /// # Errors
    /// If a rank is gone, or gives another number of values.
    fn sum(&self, values: &mut [f32]) -> Result<(), RankError>;

    /// What each rank gives, in the order of ranks, on all of them.
    ///
    /// # Errors
    /// If a rank is gone.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError>;

    /// What rank 0 gives, on all ranks; what others give is dropped.
    ///
    /// # Errors
    /// If a rank is gone.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, RankError> {
        let given: &[u8] = if self.rank() == 0 { &bytes } else { &[] };
        Ok(self.gather(given)?.swap_remove(0))
    }

    /// The same as [`sum`](Self::sum) for a tensor of `f32`, wherever it is: through main memory, unless devices can reach each
    /// other.
    ///
    /// # Errors
    /// As there, and if the device fails.
    fn sum_tensor(&self, tensor: Tensor<1>) -> Result<Tensor<1>, RankError> {
        let (device, dtype) = (tensor.device(), tensor.dtype());
        let device_failed = |error: &dyn std::fmt::Debug| RankError::Device { message: format!("{error:?}") };
        let data = tensor.try_into_data().map_err(|error| device_failed(&error))?;
        let mut values: Vec<f32> = data.try_into_vec().map_err(|error| device_failed(&error))?;
        self.sum(&mut values)?;
        let length = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [length]), (&device, dtype)))
    }
}

/// The one rank of a run that has no other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<(), RankError> {
        Ok(())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, RankError> {
        Ok(bytes)
    }

    fn sum_tensor(&self, tensor: Tensor<1>) -> Result<Tensor<1>, RankError> {
        Ok(tensor)
    }
}

/// Why ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RankError {
    /// One has ended before the others.
    #[error("rank {rank} of {count} has ended before the others, which cannot go on without it; resume the run")]
    Gone {
        /// Which.
        rank: usize,
        /// How many there are.
        count: usize,
    },
    /// One does something else than the others.
    #[error(
        "rank {rank} does something else than rank 0: it gives {found}, and rank 0 {expected}; start all ranks with the same \
         program, model, data and settings"
    )]
    OutOfStep {
        /// Which.
        rank: usize,
        /// What it gives.
        found: String,
        /// What rank 0 gives.
        expected: String,
    },
    /// One has failed.
    #[error("rank {rank}: {message}")]
    Failed {
        /// Which.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// What all must have alike, one has otherwise.
    #[error(
        "rank {rank} has {what} that rank 0 has not: {found}, and rank 0 {expected}; give all ranks the same model, data and \
         settings"
    )]
    Differs {
        /// The first rank that has.
        rank: usize,
        /// What differs: `a base model`, `data`, `settings`.
        what: String,
        /// What that rank has.
        found: String,
        /// What rank 0 has.
        expected: String,
    },
    /// The weights of one have come away from those of rank 0.
    #[error(
        "rank {rank} has other weights than rank 0 after {steps} steps, though both began with the same: its processor or \
         device rounds in another way; run all ranks on machines of one kind"
    )]
    Diverged {
        /// The first rank that has.
        rank: usize,
        /// Steps that are made.
        steps: u64,
    },
    /// A device from which nothing can be read.
    #[error("the device of this rank failed: {message}")]
    Device {
        /// What it says.
        message: String,
    },
}
