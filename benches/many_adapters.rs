//! What adapters cost that are attached and not active: layers with one LoRA adapter and with 35, one of them active, and
//! attaching one more. The second must cost what the first does; attaching, a time that grows with the sites.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sideburn::adapters::{Adapters, TargetModules};
use sideburn::prelude::{Key, LoraConfig, Pass};
use sideburn_benches::Layers;

const SITES: usize = 24;
const WIDTH: usize = 256;
const MANY: usize = 35;

fn add(model: &mut Layers, name: &str) {
    let config = LoraConfig::new(TargetModules::all_linear());
    model.attach(name, config, Key::from_seed(1)).expect("a new name");
}

/// With this many adapters, the first of which is active.
fn with_adapters(sites: usize, adapters: usize, device: &Device) -> Layers {
    let mut model = Layers::random(sites, [WIDTH, WIDTH], device);
    (0..adapters).for_each(|index| add(&mut model, &index.to_string()));
    model.set_active(if adapters == 0 { &[] } else { &["0"] }).expect("it is there");
    model
}

fn forward(criterion: &mut Criterion) {
    let device = Device::flex();
    // Few tokens, so that what is done for each slot would show.
    for tokens in [1, 64] {
        let x = Tensor::<2>::random([tokens, WIDTH], Distribution::Default, &device);
        let mut group = criterion.benchmark_group(format!("{SITES} sites, {tokens} x {WIDTH} -> {WIDTH}, one active"));
        group.throughput(Throughput::Elements(SITES as u64));
        for adapters in [1, MANY] {
            let model = with_adapters(SITES, adapters, &device);
            group.bench_function(format!("{adapters} attached"), |bencher| {
                bencher.iter(|| {
                    for y in model.forward(&x, &mut Pass::evaluate()) {
                        black_box(y);
                    }
                });
            });
        }
        group.finish();
    }
}

fn attaching(criterion: &mut Criterion) {
    let device = Device::flex();
    let mut group = criterion.benchmark_group("attach");
    for (sites, adapters) in [(24, 0), (96, 0), (384, 0), (24, MANY), (96, MANY), (384, MANY)] {
        let model = with_adapters(sites, adapters, &device);
        group.throughput(Throughput::Elements(sites as u64));
        group.bench_function(format!("{sites} sites, beside {adapters}"), |bencher| {
            bencher.iter_batched_ref(|| model.clone(), |model| add(model, "new"), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, forward, attaching);
criterion_main!(benches);
