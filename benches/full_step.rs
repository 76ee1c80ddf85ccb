//! Peak memory and time of full fine-tuning steps of FLAN-T5-small's architecture, 77 million parameters: on batches of
//! the usual size, and on one of a few tokens, where little is left but gradients and the optimiser.
//!
//! Memory is what the allocator handed out at most in a run, beyond the weights, and what the kernels held at most, which
//! is beside the allocator's: activations, gradients, moments, and copies of weights.

use std::convert::Infallible;

use burn::module::Module;
use burn::tensor::Device;
use peak_alloc::PeakAlloc;
use sideburn::kernels::{memory_use, release_memory};
use sideburn::prelude::{LanguageModel, ParameterReport, T5, TrainConfig, Trainer};
use sideburn_benches::{ROWS, SOURCE, TARGET, batch_of, flan_t5_small};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Steps of a run. The first begins the moments, and is left out of the times.
const STEPS: u64 = 6;

fn main() {
    let mut model = flan_t5_small(&Device::flex().autodiff()).unfreeze();
    println!("full fine-tuning, FLAN-T5-small architecture, {}", ParameterReport::of(&model));
    for (rows, source, target) in [(1, 4, 4), (ROWS, SOURCE, TARGET)] {
        measure(&mut model, rows, source, target);
    }
}

fn measure(model: &mut T5, rows: usize, source: usize, target: usize) {
    let batch = batch_of(rows, source, target);
    let run = |model: &mut T5, steps: u64| {
        let trainer = Trainer::new(TrainConfig { learning_rate: 1e-4, ..TrainConfig::new(steps) }).expect("valid");
        trainer.train(model, |_| Ok::<_, Infallible>(batch.clone()), T5::token_losses).expect("the loss is finite")
    };
    // Weights are drawn when they are first needed: not in what is measured.
    run(model, 1);
    release_memory();
    let (resting, held) = (ALLOCATOR.current_usage(), memory_use().used);
    ALLOCATOR.reset_peak_usage();
    let report = run(model, STEPS);
    let peak = ALLOCATOR.peak_usage() - resting + memory_use().most_used - held;
    let peak = peak as f64 / f64::from(1 << 20);
    let mut seconds: Vec<f64> = report.steps.iter().skip(1).map(|record| record.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let (median, least) = (seconds[seconds.len() / 2], seconds[0]);
    println!("{rows} x {source} + {target} tokens: {median:.3} s a step (least {least:.3}), peak {peak:.0} MiB");
}
