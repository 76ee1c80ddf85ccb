//! One linear layer of FLAN-T5-small with LoRA of rank 32, forward and backward: factored as `sideburn-adapters` does,
//! with Burn's built-in adapter, which forms the dense update, and merged, which is the frozen product alone.

use std::hint::black_box;

use burn::module::{Lora, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sideburn::adapters::TargetModules;
use sideburn::prelude::{Adapters, Key, LoraConfig, Pass};
use sideburn_benches::Layers;

const TOKENS: usize = 2048;
const INPUT: usize = 512;
const OUTPUT: usize = 384;
const RANK: usize = 32;

/// Forward and backward pass of one layer.
fn backward(layer: &Layers, x: Tensor<2>, mut pass: Pass) {
    let y = layer.forward(&x, &mut pass).next().expect("one layer");
    black_box(y.sum().backward());
}

fn bench(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let x = || Tensor::<2>::random([TOKENS, INPUT], Distribution::Default, &device).require_grad();
    // Multiply-adds of the frozen product forward and of the gradient of its input.
    let flops = (2 * 2 * TOKENS * INPUT * OUTPUT) as u64;
    let mut group = criterion.benchmark_group(format!("linear {TOKENS} x {INPUT} -> {OUTPUT}, r {RANK}"));
    group.throughput(Throughput::Elements(flops)).sample_size(20);

    for dropout in [0.0, 0.05] {
        let mut factored = Layers::random(1, [OUTPUT, INPUT], &device);
        let (lora_dropout, all) = (dropout, TargetModules::all_linear());
        let config = LoraConfig { r: RANK, lora_alpha: 64.0, lora_dropout, ..LoraConfig::new(all) };
        factored.attach("default", config, Key::from_seed(1)).expect("one site");
        group.bench_function(format!("factored, dropout {dropout}"), |bencher| {
            bencher.iter_batched(x, |x| backward(&factored, x, Pass::train(Key::from_seed(2))), BatchSize::LargeInput);
        });
    }

    let dense: Linear = LinearConfig::new(INPUT, OUTPUT).with_bias(false).init(&device);
    let dense = dense.apply_lora(Lora::new(RANK, 64.0));
    group.bench_function("Burn's apply_lora (no dropout)", |bencher| {
        bencher.iter_batched(x, |x| black_box(dense.forward(x).sum().backward()), BatchSize::LargeInput);
    });

    let weight = Tensor::<2>::random([OUTPUT, INPUT], Distribution::Default, &device);
    let mut merged = Layers::random(1, [OUTPUT, INPUT], &device);
    merged.layers[0].weight_mut().replace(weight);
    group.bench_function("merged (no adapter)", |bencher| {
        bencher.iter_batched(x, |x| backward(&merged, x, Pass::evaluate()), BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
