//! The ranks of a training run that are processes of an MPI job, on one machine or many.
//!
//! [`ranks`] gives those of this process: `MpiRanks`, if a launcher such as `mpirun` or `srun` has
//! started it, and [`Alone`] if none has. A program that hands them to [`Trainer::over`](sideburn_train::Trainer::over) so trains
//! alone or together:
//!
//! ```
//! # use std::convert::Infallible;
//! # use std::error::Error;
//! # use sideburn_train::{Differentiate, TrainConfig, TrainReport, Trainer};
//! # fn train<M: sideburn_adapters::Adapters>(
//! #     mut model: M, config: TrainConfig,
//! #     batch: impl Fn(u64) -> Result<sideburn_batch::PromptBatch, Infallible>,
//! #     losses: impl Differentiate<M, sideburn_batch::PromptBatch>,
//! # ) -> Result<TrainReport, Box<dyn Error>> {
//! let ranks = sideburn_mpi::ranks()?;
//! let report = Trainer::new(config)?.over(&*ranks).train(&mut model, batch, losses)?;
//! if ranks.rank() == 0 {
//!     println!("{} steps on {} ranks", report.steps.len(), ranks.count());
//! }
//! # Ok(report)
//! # }
//! ```
//!
//! # Features
//!
//! * `mpi`: MPI, by the crate `mpi` (Open MPI, MPICH, Intel MPI). It wants the headers of the library and libclang: on Debian
//!   `apt-get install openmpi-bin libopenmpi-dev libclang-dev`. Without it, a process that a launcher has started as one of
//!   several is refused.

#![forbid(unsafe_code)]

#[cfg(feature = "mpi")]
mod world;

use std::env;

use sideburn_train::{Alone, Ranks};
#[cfg(feature = "mpi")]
pub use world::MpiRanks;

/// Why there are no ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// A launcher has started several processes, and this program knows no MPI.
    #[error(
        "this is one of {count} processes of an MPI job, and this program was built without MPI, so that each would train by \
         itself; build it with the feature `mpi`, or start it once"
    )]
    NotBuilt {
        /// How many there are.
        count: usize,
    },
    /// MPI could not be set up.
    #[error("MPI could not be set up: {message}")]
    Init {
        /// What is wrong.
        message: &'static str,
    },
}

/// The variables in which launchers say how many processes they have started: Open MPI, MPICH and Intel MPI (and `srun` for
/// them), MVAPICH, and `srun` with PMIx.
const COUNTS: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// How many processes the launcher of this one has started; none if no launcher says so.
///
/// `SLURM_STEP_NUM_TASKS` counts only where `srun` has set MPI up (`PMIX_RANK`): other programs run under it, too.
pub fn launched() -> Option<usize> {
    launched_by(|name| env::var(name).ok())
}

fn launched_by(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let counts = COUNTS.iter().filter(|name| !name.starts_with("SLURM") || variable("PMIX_RANK").is_some());
    counts.filter_map(|name| variable(name)?.trim().parse().ok()).next()
}

/// The ranks of this process: those of MPI if a launcher has started it, else itself [alone](Alone).
///
/// MPI is ended when they are dropped, which waits for all ranks. It can be begun once in a process.
///
/// # Errors
/// If a launcher has started several processes and this was built without the feature `mpi`, or MPI cannot be set up.
pub fn ranks() -> Result<Box<dyn Ranks>, MpiError> {
    match launched() {
        None => Ok(Box::new(Alone)),
        #[cfg(feature = "mpi")]
        Some(_) => Ok(Box::new(MpiRanks::init()?)),
        #[cfg(not(feature = "mpi"))]
        Some(0 | 1) => Ok(Box::new(Alone)),
        #[cfg(not(feature = "mpi"))]
        Some(count) => Err(MpiError::NotBuilt { count }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_told_by_their_variables() {
        let launched = |set: &[(&str, &str)]| {
            launched_by(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(launched(&[]), None);
        assert_eq!(launched(&[("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_RANK", "0")]), Some(2));
        assert_eq!(launched(&[("PMI_SIZE", "3"), ("PMI_RANK", "1")]), Some(3));
        assert_eq!(launched(&[("SLURM_STEP_NUM_TASKS", "4")]), None);
        assert_eq!(launched(&[("SLURM_STEP_NUM_TASKS", "4"), ("PMIX_RANK", "3")]), Some(4));
        assert_eq!(launched(&[("PMI_SIZE", "many")]), None);
    }
}
