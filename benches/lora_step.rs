//! A LoRA training step of FLAN-T5-small's architecture: forward, backward, clipping, AdamW. Factored as here, and with
//! Burn's built-in adapter and optimiser on the same model and batch.

use burn::tensor::Device;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sideburn::prelude::T5;
use sideburn_benches::{ROWS, SOURCE, TARGET, burn_step, dense, factored, flan_t5_small, step};

fn bench(criterion: &mut Criterion) {
    let base = flan_t5_small(&Device::flex().autodiff());
    let models = [
        ("factored", factored(&base, 0.0), step as fn(&mut T5)),
        ("factored, LoRA dropout 0.05", factored(&base, 0.05), step),
        ("Burn's apply_lora", dense(&base), burn_step),
    ];
    let mut group = criterion.benchmark_group(format!("LoRA step, {ROWS} x {SOURCE} + {TARGET} tokens"));
    group.throughput(Throughput::Elements((ROWS * (SOURCE + TARGET)) as u64)).sample_size(10);
    for (name, model, step) in &models {
        group.bench_function(*name, |bencher| {
            bencher.iter_batched_ref(|| model.clone(), *step, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
