//! What a steady step of FLAN-T5-small's architecture asks the allocator for, 8 x 256 source and 64 target tokens: a LoRA
//! step, and one of full fine-tuning; and how often the kernels' memory served a buffer again.
//!
//! With `SIDEBURN_SITES` set to a number, that many places in the code are printed that large allocations of a step come
//! from, and that many that have most of the memory at the moment when most is held.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::Device;
use sideburn::kernels::{MemoryUse, memory_use, release_memory};
use sideburn::prelude::{LanguageModel, T5, TrainConfig, Trainer};
use sideburn::train::{Control, Observer, Run, StepRecord, TrainError};
use sideburn_benches::{SOURCE, TARGET, batch_of, factored, flan_t5_small};

const ROWS: usize = 8;
/// The last one is printed; by then everything that stays is there.
const STEPS: u64 = 4;
/// What counts as large: what the kernels' memory keeps for the next step.
const LARGE: usize = 64 << 10;

/// The system's allocator, counting.
struct Counting;

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static RECORDING: AtomicBool = AtomicBool::new(false);
static SITES: LazyLock<Mutex<Sites>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Whether this thread is noting down an allocation, which allocates.
    static NOTING: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let place = unsafe { System.alloc(layout) };
        count(place, layout.size());
        place
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let place = unsafe { System.alloc_zeroed(layout) };
        count(place, layout.size());
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        forget(place, layout.size());
        // SAFETY: as promised to this function.
        unsafe { System.dealloc(place, layout) };
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        forget(place, layout.size());
        // SAFETY: as promised to this function.
        let place = unsafe { System.realloc(place, layout, size) };
        count(place, size);
        place
    }
}

fn count(place: *mut u8, size: usize) {
    let large = size >= LARGE;
    for (count, by) in COUNTS.iter().zip([1, size, usize::from(large), if large { size } else { 0 }]) {
        count.fetch_add(by as u64, Relaxed);
    }
    if large && RECORDING.load(Relaxed) {
        noting(|sites| sites.add(place as usize, size));
    }
}

fn forget(place: *mut u8, size: usize) {
    if size >= LARGE && RECORDING.load(Relaxed) {
        noting(|sites| sites.remove(place as usize));
    }
}

fn noting(note: impl FnOnce(&mut Sites)) {
    if !NOTING.replace(true) {
        note(&mut SITES.lock().unwrap_or_else(PoisonError::into_inner));
        NOTING.set(false);
    }
}

/// Where large allocations come from.
#[derive(Default)]
struct Sites {
    indices: HashMap<String, usize>,
    sites: Vec<Site>,
    held: HashMap<usize, (usize, usize)>,
    bytes: usize,
    most_bytes: usize,
}

#[derive(Clone, Default)]
struct Site {
    name: String,
    /// How often, and how many bytes, since it was last asked.
    asked: [usize; 2],
    held: usize,
    /// What it held when most was held.
    at_most: usize,
}

impl Sites {
    fn add(&mut self, place: usize, size: usize) {
        let name = caller();
        let index = *self.indices.entry(name.clone()).or_insert(self.sites.len());
        if index == self.sites.len() {
            self.sites.push(Site { name, ..Site::default() });
        }
        self.held.insert(place, (index, size));
        let site = &mut self.sites[index];
        site.asked = [site.asked[0] + 1, site.asked[1] + size];
        site.held += size;
        self.bytes += size;
        if self.bytes > self.most_bytes {
            self.most_bytes = self.bytes;
            self.sites.iter_mut().for_each(|site| site.at_most = site.held);
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some((index, size)) = self.held.remove(&place) {
            self.sites[index].held -= size;
            self.bytes -= size;
        }
    }

    /// Begins to count anew.
    fn restart(&mut self) {
        self.most_bytes = self.bytes;
        self.sites.iter_mut().for_each(|site| (site.asked, site.at_most) = ([0; 2], site.held));
    }

    fn print(&self, most: usize) {
        let mut sites: Vec<&Site> = self.sites.iter().filter(|site| site.asked[0] > 0).collect();
        sites.sort_by_key(|site| std::cmp::Reverse(site.asked[1]));
        println!("  where large allocations come from:");
        for Site { name, asked: [count, bytes], .. } in sites.into_iter().take(most) {
            println!("  {count:6} x, together {:8.2} MiB  {name}", mib(*bytes as u64));
        }
        let mut sites: Vec<&Site> = self.sites.iter().collect();
        sites.sort_by_key(|site| std::cmp::Reverse(site.at_most));
        println!("  what is held when most is, {:.0} MiB:", mib(self.most_bytes as u64));
        for Site { name, at_most, .. } in sites.into_iter().take(most) {
            println!("  {:8.1} MiB  {name}", mib(*at_most as u64));
        }
    }
}

/// The innermost functions that are not the allocator's or the standard library's.
fn caller() -> String {
    const PASSED: [&str; 11] = [
        "std::",
        "core::",
        "alloc::",
        "<alloc::",
        "<core::",
        "__rust",
        "allocations::",
        "<allocations::",
        "rayon",
        "<rayon",
        "<T as",
    ];
    let trace = Backtrace::force_capture().to_string();
    let functions = trace.lines().filter_map(|line| line.trim_start().split_once(": ")).map(|(_, name)| name);
    let own = functions.filter(|name| !PASSED.iter().any(|prefix| name.starts_with(prefix)));
    own.take(6).collect::<Vec<_>>().join(" < ")
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Prints what the last step asked for.
struct LastStep {
    before: ([u64; 4], MemoryUse),
    sites: Option<usize>,
}

fn counts() -> ([u64; 4], MemoryUse) {
    (COUNTS.each_ref().map(|count| count.load(Relaxed)), memory_use())
}

impl<M> Observer<M> for LastStep {
    fn step(&mut self, record: &StepRecord, _: &Run<M>, _: &M) -> Result<Control, TrainError> {
        let (after, before) = (counts(), std::mem::replace(&mut self.before, counts()));
        if record.step + 2 == STEPS && self.sites.is_some() {
            noting(Sites::restart);
        }
        if record.step + 1 == STEPS {
            let [all, bytes, large, large_bytes] = [0, 1, 2, 3].map(|index| after.0[index] - before.0[index]);
            println!(
                "  {all} allocations, {:.1} MiB; of 64 KiB or more: {large}, {:.1} MiB",
                mib(bytes),
                mib(large_bytes)
            );
            let (asked, again) = (after.1.asked - before.1.asked, after.1.again - before.1.again);
            println!("  the kernels asked for {asked} large buffers, of which {again} were used again");
            let MemoryUse { used, waiting, most_used, .. } = after.1;
            let [used, waiting, most_used] = [used, waiting, most_used].map(|bytes| mib(bytes as u64));
            println!(
                "  kernels' memory: {used:.0} MiB in use, {waiting:.0} MiB waiting, {most_used:.0} MiB used at most"
            );
            if let Some(most) = self.sites {
                noting(|sites| sites.print(most));
            }
        }
        self.before = counts();
        Ok(Control::GoOn)
    }
}

fn main() {
    let sites = std::env::var("SIDEBURN_SITES").ok().map(|most| most.parse().expect("a number"));
    RECORDING.store(sites.is_some(), Relaxed);
    let base = flan_t5_small(&Device::flex().autodiff());
    let batch = batch_of(ROWS, SOURCE, TARGET);
    let measure = |name: &str, mut model: T5| {
        println!("{name}, FLAN-T5-small architecture, {ROWS} x {SOURCE} + {TARGET} tokens, a steady step:");
        release_memory();
        let trainer = Trainer::new(TrainConfig { learning_rate: 1e-4, ..TrainConfig::new(STEPS) }).expect("valid");
        let trainer = trainer.observe(LastStep { before: counts(), sites });
        trainer.train(&mut model, |_| Ok::<_, Infallible>(batch.clone()), T5::token_losses).expect("a finite loss");
    };
    measure("LoRA of rank 32 on q and v", factored(&base, 0.1));
    measure("full fine-tuning", base.unfreeze());
}
