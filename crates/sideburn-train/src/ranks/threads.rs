//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{RankError, Ranks};

/// One of several threads of this process that train together: each with a model and a run of its own.
///
/// It is what tests of ranks run on. Threads share the cores of the machine, so that two are not faster than one.
///
/// ```
/// use sideburn_train::{Ranks, ThreadRanks};
///
/// let sums = std::thread::scope(|scope| {
///     let threads: Vec<_> = ThreadRanks::of(3)
///         .into_iter()
///         .map(|ranks| {
///             scope.spawn(move || {
///                 let mut values = [ranks.rank() as f32, 1.0];
///                 ranks.sum(&mut values).map(|()| values)
///             })
///         })
///         .collect();
///     threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect::<Vec<_>>()
/// });
/// assert_eq!(sums, [[3.0, 3.0]; 3]);
/// ```
#[derive(Debug)]
pub struct ThreadRanks {
    rank: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A round: all give, then all take.
#[derive(Debug)]
struct State {
    given: Vec<Option<Given>>,
    /// What all have given, until the last has taken it.
    all: Option<Arc<Vec<Given>>>,
    /// How many have not taken it yet.
    waiting: usize,
    /// The first that has ended.
    gone: Option<usize>,
}

#[derive(Debug)]
enum Given {
    Values(Vec<f32>),
    Bytes(Vec<u8>),
}

impl Given {
    fn shown(&self) -> String {
        match self {
            Self::Values(values) => format!("{} values", values.len()),
            Self::Bytes(_) => "a message".to_owned(),
        }
    }
}

impl ThreadRanks {
    /// So many ranks, one for each thread.
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn of(count: usize) -> Vec<Self> {
        assert!(count > 0, "no rank");
        let given = (0..count).map(|_| None).collect();
        let state = Mutex::new(State { given, all: None, waiting: 0, gone: None });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        (0..count).map(|rank| Self { rank, shared: Arc::clone(&shared) }).collect()
    }

    /// The state is whole between two statements: a thread that panics elsewhere is told of by its drop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// What all ranks give in this round.
    fn exchange(&self, given: Given) -> Result<Arc<Vec<Given>>, RankError> {
        let mut state = self.lock();
        // The others may still be taking what was given in the last round.
        while state.all.is_some() && state.gone.is_none() {
            state = self.wait(state);
        }
        if let (Some(rank), count) = (state.gone, state.given.len()) {
            return Err(RankError::Gone { rank, count });
        }
        state.given[self.rank] = Some(given);
        if state.given.iter().all(Option::is_some) {
            let all: Vec<Given> = state.given.iter_mut().filter_map(Option::take).collect();
            state.waiting = all.len();
            state.all = Some(Arc::new(all));
            self.shared.changed.notify_all();
        }
        while state.all.is_none() && state.gone.is_none() {
            state = self.wait(state);
        }
        let count = state.given.len();
        let Some(all) = state.all.clone() else {
            let rank = state.gone.unwrap_or_default();
            return Err(RankError::Gone { rank, count });
        };
        state.waiting -= 1;
        if state.waiting == 0 {
            state.all = None;
            self.shared.changed.notify_all();
        }
        Ok(all)
    }
}

impl Drop for ThreadRanks {
    fn drop(&mut self) {
        self.lock().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

impl Ranks for ThreadRanks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.lock().given.len()
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), RankError> {
        let all = self.exchange(Given::Values(values.to_vec()))?;
        values.fill(0.0);
        for (rank, given) in all.iter().enumerate() {
            match given {
                Given::Values(given) if given.len() == values.len() => {
                    values.iter_mut().zip(given).for_each(|(sum, value)| *sum += value);
                }
                _ => return Err(out_of_step(rank, &all)),
            }
        }
        Ok(())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        let all = self.exchange(Given::Bytes(bytes.to_vec()))?;
        let bytes = |(rank, given): (usize, &Given)| match given {
            Given::Bytes(bytes) => Ok(bytes.clone()),
            Given::Values(_) => Err(out_of_step(rank, &all)),
        };
        all.iter().enumerate().map(bytes).collect()
    }
}

/// The first rank that gives something else than rank 0; every rank names the same.
fn out_of_step(other: usize, all: &[Given]) -> RankError {
    let rank = all.iter().position(|given| given.shown() != all[0].shown()).unwrap_or(other);
    RankError::OutOfStep { rank, found: all[rank].shown(), expected: all[0].shown() }
}
