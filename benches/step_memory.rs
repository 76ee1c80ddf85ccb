//! Peak memory and time of a LoRA step, here and with Burn's built-in `apply_lora`, on the same model and batch.
//!
//! Memory is what the allocator handed out at most during a step, beyond what was held before it: activations, gradients
//! and the optimiser's state. LoRA dropout is off, because Burn's adapter has none; the model's own is on in both.

use std::time::Instant;

use burn::tensor::Device;
use peak_alloc::PeakAlloc;
use sideburn::prelude::{ParameterReport, T5};
use sideburn_benches::{ROWS, SOURCE, TARGET, dense, factored, flan_t5_small, step};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const REPETITIONS: usize = 5;

fn main() {
    let base = flan_t5_small(&Device::flex().autodiff());
    let (factored, dense) = (factored(&base, 0.0), dense(&base));
    assert_eq!(ParameterReport::of(&factored), ParameterReport::of(&dense), "both train the same number of parameters");

    // Weights are drawn when they are first needed: not in what is measured.
    measure(&factored);
    measure(&dense);
    let mut measured = [(&factored, Vec::new()), (&dense, Vec::new())];
    for _ in 0..REPETITIONS {
        for (model, steps) in &mut measured {
            steps.push(measure(model));
        }
    }
    println!("LoRA step, FLAN-T5-small architecture, {ROWS} x {SOURCE} + {TARGET} tokens, r 32 on q and v");
    let [ours, theirs] = measured.map(|(_, steps)| {
        [median(steps.iter().map(|(peak, _)| *peak)), median(steps.iter().map(|(_, seconds)| *seconds))]
    });
    for (name, [peak, seconds]) in [("factored", ours), ("Burn's apply_lora", theirs)] {
        println!("{name:20}{:8.0} MiB {seconds:8.2} s", peak / f64::from(1 << 20));
    }
    println!("{:20}{:8.2}     {:8.2}", "theirs / ours", theirs[0] / ours[0], theirs[1] / ours[1]);
}

/// The peak in bytes, and the time in seconds, of a step that leaves `model` as it is.
fn measure(model: &T5) -> (f64, f64) {
    let mut model = model.clone();
    let resting = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let started = Instant::now();
    step(&mut model);
    ((ALLOCATOR.peak_usage() - resting) as f64, started.elapsed().as_secs_f64())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
