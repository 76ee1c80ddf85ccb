//! A linear layer with a packed weight of 4096 x 4096, for 1 to 512 rows: against the same weight as floats, and against
//! unpacking it first and multiplying then, forward alone and with the gradient of the input.
//!
//! "elem/s" is floating-point operations per second.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sideburn::kernels::{Matrix, PackedMatrix, linear, on_workers};
use sideburn::quant::{Packed, Quantization};

const SIZE: usize = 4096;

fn packed_linear(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let weight = Tensor::<2>::random([SIZE, SIZE], Distribution::Normal(0.0, 0.02), &device);
    let values: Vec<f32> = weight.to_data().try_into_vec().unwrap();
    let pack = |quantization| {
        let packed = Packed::quantize("weight", &values, [SIZE, SIZE], quantization).unwrap();
        PackedMatrix::new(packed, 6.0, &device)
    };
    let (nf4, int8) = (pack(Quantization::NF4), pack(Quantization::INT8));
    let weights: [(&str, Matrix); 4] = [
        ("f32", weight.into()),
        ("nf4", nf4.into()),
        ("int8", int8.clone().with_float_inputs().into()),
        ("llm.int8", int8.into()),
    ];
    let mut group = criterion.benchmark_group("packed_linear");
    group.sample_size(10);
    for rows in [1, 4, 16, 64, 512] {
        let x = Tensor::<2>::random([rows, SIZE], Distribution::Normal(0.0, 1.0), &device);
        let plain = x.clone().inner();
        let tracked = x.require_grad();
        let both = |weight: Matrix| linear(tracked.clone(), weight).sum().backward();
        for (name, weight) in &weights {
            let flops = 2 * rows * SIZE * SIZE;
            group.throughput(Throughput::Elements(flops as u64));
            let forward = || on_workers(&device, || black_box(linear(plain.clone(), weight.clone())));
            group.bench_function(format!("{rows}/{name}/forward"), |bencher| bencher.iter(forward));
            group.throughput(Throughput::Elements(2 * flops as u64));
            let both_ways = || on_workers(&device, || black_box(both(weight.clone())));
            group.bench_function(format!("{rows}/{name}/forward and backward"), |bencher| bencher.iter(both_ways));
            if *name == "nf4" || *name == "int8" {
                let dense_first = || on_workers(&device, || black_box(both(weight.dense().into())));
                let name = format!("{rows}/{name} unpacked first/forward and backward");
                group.bench_function(name, |bencher| bencher.iter(dense_first));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, packed_linear);
criterion_main!(benches);
