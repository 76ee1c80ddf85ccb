//! All processes of an MPI job.

use mpi::Count;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use sideburn_train::{RankError, Ranks};

use crate::MpiError;

/// How many elements go at once: MPI counts in 32 bits, and what is sent is copied first.
const PART: usize = 1 << 22;

/// The ranks of an MPI job, from one of its processes.
///
/// MPI ends the whole job where a process dies or cannot be reached, and its launcher says which: it returns no error. If a
/// process panics, this does the same, with `MPI_Abort`.
pub struct MpiRanks {
    world: SimpleCommunicator,
    /// MPI ends with it.
    _universe: Universe,
}

impl MpiRanks {
    /// Begins MPI. The thread that calls it must make all calls.
    ///
    /// # Errors
    /// If MPI was begun before in this process, or lets no other thread run beside this one.
    pub fn init() -> Result<Self, MpiError> {
        let begun = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threading) = begun.ok_or(MpiError::Init { message: "it has been begun before" })?;
        if threading == Threading::Single {
            return Err(MpiError::Init { message: "this MPI library does not allow a process to have threads" });
        }
        Ok(Self { world: universe.world(), _universe: universe })
    }
}

impl Drop for MpiRanks {
    fn drop(&mut self) {
        // The others may be waiting for something that does not come.
        if std::thread::panicking() {
            self.world.abort(1);
        }
    }
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn count(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), RankError> {
        for part in values.chunks_mut(PART) {
            let own = part.to_vec();
            self.world.all_reduce_into(&own[..], part, SystemOperation::sum());
        }
        Ok(())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        let mut lengths = vec![0u64; self.count()];
        self.world.all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
        if lengths.iter().sum::<u64>() > Count::MAX as u64 {
            // What is gathered are messages and hashes; the weights of rank 0 are broadcast.
            let longest = (0..lengths.len()).max_by_key(|rank| lengths[*rank]).unwrap_or_default();
            let found = format!("a message of {} bytes", lengths[longest]);
            return Err(RankError::OutOfStep { rank: longest, found, expected: "less than 2 GiB in all".to_owned() });
        }
        let counts: Vec<Count> = lengths.iter().map(|length| *length as Count).collect();
        let starts: Vec<Count> = counts
            .iter()
            .scan(0, |at, count| {
                let start = *at;
                *at += count;
                Some(start)
            })
            .collect();
        let mut all = vec![0u8; lengths.iter().sum::<u64>() as usize];
        self.world.all_gather_varcount_into(bytes, &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]));
        let part = |(start, count): (&Count, &Count)| all[*start as usize..(start + count) as usize].to_vec();
        Ok(starts.iter().zip(&counts).map(part).collect())
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, RankError> {
        let root = self.world.process_at_rank(0);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        for part in bytes.chunks_mut(PART) {
            root.broadcast_into(part);
        }
        Ok(bytes)
    }
}
