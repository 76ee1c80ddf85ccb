//! Seconds on the wall, and of processor time, which can be compared on a machine that is at work on other things, too.

use std::fmt::{self, Display};
use std::fs;
use std::time::Instant;

/// Seconds that something took.
#[derive(Clone, Copy, Debug)]
pub struct Seconds {
    /// On the wall.
    pub wall: f64,
    /// Of all threads of this process, as Linux counts them; 0 elsewhere.
    pub processor: f64,
}

impl Seconds {
    /// Of so many times as much.
    pub fn times(self, factor: f64) -> Self {
        Self { wall: self.wall * factor, processor: self.processor * factor }
    }

    /// Of both.
    pub fn plus(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, processor: self.processor + other.processor }
    }

    /// How many parts in a hundred this floor is of what was taken.
    pub fn of(self, taken: Self) -> String {
        let percent = |floor: f64, taken: f64| 100.0 * floor / taken;
        let (wall, processor) = (percent(self.wall, taken.wall), percent(self.processor, taken.processor));
        format!("{wall:.0} % ({processor:.0} % of processor time)")
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s ({:.1} s of processor time)", self.wall, self.processor)
    }
}

/// A moment, from which seconds are counted.
#[derive(Debug)]
pub struct Clock {
    wall: Instant,
    threads: f64,
    process: f64,
}

impl Clock {
    /// Now.
    pub fn start() -> Self {
        Self { wall: Instant::now(), threads: of_threads(), process: of_process() }
    }

    /// What was spent since.
    pub fn spent(&self) -> Seconds {
        let (threads, process) = (of_threads() - self.threads, of_process() - self.process);
        // Beyond what the system rounds, it is the time of threads that have ended.
        let processor = if process - threads > 0.03 { process } else { threads };
        Seconds { wall: self.wall.elapsed().as_secs_f64(), processor }
    }
}

/// Of the threads that this process has now, to a nanosecond.
fn of_threads() -> f64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let ran = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    threads.filter_map(ran).sum::<f64>() / 1e9
}

/// Of all threads that this process has had, to a hundredth of a second.
fn of_process() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The fewest seconds of each kind of several runs.
pub fn fewest(run: impl FnMut()) -> Seconds {
    let [fewest] = fewest_in_turns(7, [Box::new(run)]);
    fewest
}

/// The fewest seconds of each kind of some rounds, in each of which all run, one after the other.
pub fn fewest_in_turns<const N: usize>(rounds: usize, mut runs: [Box<dyn FnMut() + '_>; N]) -> [Seconds; N] {
    let mut fewest = [Seconds { wall: f64::INFINITY, processor: f64::INFINITY }; N];
    for _ in 0..rounds {
        for (fewest, run) in fewest.iter_mut().zip(&mut runs) {
            let clock = Clock::start();
            run();
            let Seconds { wall, processor } = clock.spent();
            *fewest = Seconds { wall: fewest.wall.min(wall), processor: fewest.processor.min(processor) };
        }
    }
    fewest
}
