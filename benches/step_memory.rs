//! Peak memory and time of a LoRA step, here and with Burn's built-in `apply_lora`, on the same model and batch. Burn's
//! adapter runs with Burn's optimiser and Burn's own operations, and once more with the kernels that ours has.
//!
//! Memory is what the allocator handed out at most during a step, beyond what was held before it, and what the kernels
//! held at most, which is beside the allocator's: activations, gradients and the optimiser's state. LoRA dropout is off, because Burn's adapter has none; the model's own is on in both.

use std::time::Instant;

use burn::tensor::Device;
use peak_alloc::PeakAlloc;
use sideburn::kernels::{KernelMode, memory_use, release_memory, set_kernel_mode};
use sideburn::prelude::T5;
use sideburn_benches::{ROWS, SOURCE, TARGET, burn_step, dense, factored, flan_t5_small, step};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const REPETITIONS: usize = 5;

fn main() {
    let base = flan_t5_small(&Device::flex().autodiff());
    let (factored, dense) = (factored(&base, 0.0), dense(&base));

    let variants = [
        ("LoRA here", &factored, KernelMode::Fused, step as fn(&mut T5)),
        ("apply_lora, Burn's operations", &dense, KernelMode::Composed, burn_step),
        ("apply_lora, our kernels", &dense, KernelMode::Fused, burn_step),
    ];
    // Weights are drawn when they are first needed: not in what is measured.
    for (_, model, mode, step) in variants {
        measure(model, mode, step);
    }
    let mut measured = variants.map(|_| Vec::new());
    for _ in 0..REPETITIONS {
        for (steps, (_, model, mode, step)) in measured.iter_mut().zip(variants) {
            steps.push(measure(model, mode, step));
        }
    }
    println!("LoRA step, FLAN-T5-small architecture, {ROWS} x {SOURCE} + {TARGET} tokens, r 32 on q and v");
    println!("{:32}{:>12}{:>10}{:>20}", "", "peak", "time", "ratios to ours");
    let medians = measured
        .map(|steps| [median(steps.iter().map(|(peak, _)| *peak)), median(steps.iter().map(|(_, seconds)| *seconds))]);
    for ((name, ..), [peak, seconds]) in variants.iter().zip(medians) {
        let [of_peak, of_time] = [peak / medians[0][0], seconds / medians[0][1]];
        println!("{name:32}{:8.0} MiB{seconds:8.2} s{of_peak:10.2}{of_time:10.2}", peak / f64::from(1 << 20));
    }
}

/// The peak in bytes, and the time in seconds, of a step that leaves `model` as it is.
fn measure(model: &T5, mode: KernelMode, step: fn(&mut T5)) -> (f64, f64) {
    let mut model = model.clone();
    set_kernel_mode(mode);
    // Buffers that wait for the next step count as memory of the step that needs them.
    release_memory();
    let (resting, held) = (ALLOCATOR.current_usage(), memory_use().used);
    ALLOCATOR.reset_peak_usage();
    let started = Instant::now();
    step(&mut model);
    let seconds = started.elapsed().as_secs_f64();
    ((ALLOCATOR.peak_usage() - resting + memory_use().most_used - held) as f64, seconds)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
