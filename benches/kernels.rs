//! Each operation of `sideburn-kernels` at the sizes of a FLAN-T5-small step of 8 x 256 + 64 tokens, by its kernel and
//! composed of Burn's primitives: time, arithmetic and memory traffic per second.
//!
//! The last group is the roofline: what the machine does at its best in products (the `gemm` crate, on memory that is
//! already there) and in reading. "elem/s" is floating-point operations per second, and bytes are what must be read and
//! written at least. An operation with a backward pass counts both directions.

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Int, Tensor};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use sideburn::kernels::{
    Dropout, KernelMode, Key, LinearOp, LowRank, Projections, RowLayout, Visibility, adapted_linear, adapted_linears,
    add_dropout, embedding, gelu_gate, linear, linear_cross_entropy, on_workers, rms_norm, self_attention,
    set_kernel_mode,
};

const KEY: Key = Key::from_seed(1);

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.1), &Device::flex().autodiff())
}

/// An operation: how many floating-point operations and bytes it is forward, and backward.
struct Work {
    flops: [usize; 2],
    floats: [usize; 2],
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Times `op` over `inputs`, forward alone and with the backward pass to the tracked ones.
fn time(
    group: &mut Group<'_>,
    name: &str,
    work: &Work,
    inputs: &[Tensor<2>],
    op: impl Fn(&[Tensor<2>]) -> Tensor<2> + Sync,
) {
    let untracked: Vec<Tensor<2>> = inputs.iter().map(|x| x.clone().inner()).collect();
    for (mode, label) in [(KernelMode::Fused, "kernel"), (KernelMode::Composed, "composed")] {
        set_kernel_mode(mode);
        let throughput = |flops: usize, floats: usize| Throughput::ElementsAndBytes {
            elements: flops as u64,
            bytes: 4 * floats as u64,
        };
        let run = |inputs: &[Tensor<2>]| on_workers(&inputs[0].device(), || black_box(op(inputs)));
        group.throughput(throughput(work.flops[0], work.floats[0]));
        group.bench_function(format!("{name}/forward/{label}"), |bencher| bencher.iter(|| run(&untracked)));
        group.throughput(throughput(work.flops.iter().sum(), work.floats.iter().sum()));
        let both = || on_workers(&inputs[0].device(), || black_box(op(inputs).sum().backward()));
        group.bench_function(format!("{name}/forward and backward/{label}"), |bencher| bencher.iter(both));
    }
    set_kernel_mode(KernelMode::Fused);
}

fn operations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(10);
    let drop = Dropout::new(0.1, KEY);
    let (n, d, inner, ff, heads, r) = (2048, 512, 384, 1024, 6, 32);

    let product = 2 * n * d * inner;
    let x = random([n, d]).require_grad();
    let weight = random([inner, d]);
    let work = Work { flops: [product, product], floats: [n * (d + inner) + d * inner, n * (d + inner) + d * inner] };
    time(&mut group, "linear 2048x512x384", &work, &[x.clone(), weight.clone()], |x| {
        linear(x[0].clone(), x[1].clone())
    });

    let branch = 2 * n * r * (d + inner);
    let work = Work { flops: [product + branch, product + 2 * branch], ..work };
    let factors = [random([r, d]).require_grad(), random([inner, r]).require_grad()];
    for (name, dropout) in [("", None), (" and dropout", drop)] {
        let inputs = [x.clone(), weight.clone(), factors[0].clone(), factors[1].clone()];
        time(&mut group, &format!("linear with rank 32{name}"), &work, &inputs, |x| {
            let branch = LowRank { a: x[2].clone(), b: x[3].clone(), scale: 1.0, dropout, rows: None };
            adapted_linear(x[0].clone(), x[1].clone(), branch)
        });
    }

    // Queries, keys and values with branches at two of them, one by one and in one operation.
    let (weights, factors) = ([0, 1, 2].map(|_| random([inner, d])), [0, 1].map(|_| factors.clone()));
    let product = 3 * product;
    let work = Work {
        flops: [product + 2 * branch, product + 4 * branch],
        floats: [n * (d + 3 * inner) + 3 * d * inner, n * (d + 3 * inner) + 3 * d * inner],
    };
    let inputs: Vec<_> = [x.clone()].into_iter().chain(weights).chain(factors.into_iter().flatten()).collect();
    let sites = |x: &[Tensor<2>]| {
        let branch = |first: usize| LowRank {
            a: x[first].clone(),
            b: x[first + 1].clone(),
            scale: 1.0,
            dropout: drop,
            rows: None,
        };
        [vec![branch(4)], vec![], vec![branch(6)]]
            .into_iter()
            .zip(&x[1..4])
            .map(|(branches, weight)| LinearOp { weight: Some(weight.clone().into()), branches })
            .collect::<Vec<_>>()
    };
    time(&mut group, "queries, keys, values one by one", &work, &inputs, |x| {
        Tensor::cat(sites(x).into_iter().map(|site| adapted_linears(x[0].clone(), vec![site])).collect(), 1)
    });
    time(&mut group, "queries, keys, values together", &work, &inputs, |x| adapted_linears(x[0].clone(), sites(x)));

    for rows in [1, 8] {
        let (vocabulary, work) = (32_128, Work { flops: [2 * rows * d * 32_128, 0], floats: [32_128 * d, 0] });
        let inputs = [random([rows, d]), random([vocabulary, d]).require_grad()];
        set_kernel_mode(KernelMode::Fused);
        group.throughput(Throughput::ElementsAndBytes {
            elements: work.flops[0] as u64,
            bytes: 4 * work.floats[0] as u64,
        });
        let [x, weight] = inputs.map(Tensor::inner);
        let run = || on_workers(&x.device(), || black_box(linear(x.clone(), weight.clone())));
        group.bench_function(format!("linear {rows}x512x32128/forward/kernel"), |bencher| bencher.iter(run));
    }

    for length in [256, 50] {
        let layout = RowLayout::packed(&[length; 8], &Device::flex());
        let visibility = Visibility::bidirectional(heads, &layout);
        let tokens = layout.tokens();
        let scores = 2 * tokens * length * inner;
        let work = Work { flops: [2 * scores, 5 * scores], floats: [4 * tokens * inner, 7 * tokens * inner] };
        let inputs = [random([tokens, 3 * inner]).require_grad(), random([heads, 2 * length - 1])];
        time(&mut group, &format!("attention 8x{length}, 6 heads of 64, dropout"), &work, &inputs, |x| {
            self_attention(x[0].clone(), Projections::of(heads), Some(x[1].clone()), None, &visibility, drop)
        });
    }

    // The heads of Falcon-7B: 71 that look through one, turned.
    let (heads, width) = (71, 64);
    for length in [128, 512] {
        let layout = RowLayout::packed(&[length], &Device::flex());
        let (visibility, inner) = (Visibility::causal(heads, &layout, &layout, 0), heads * width);
        let scores = length * length * inner;
        let read = 2 * length * (inner + width);
        let work = Work { flops: [2 * scores, 5 * scores], floats: [read, 2 * read] };
        let inputs = [random([length, (heads + 2) * width]).require_grad(), random([length, width])];
        let projections = Projections { kv_heads: 1, scale: 0.125, grouped: true };
        time(&mut group, &format!("attention 1x{length}, 71 heads of 64 through one, turned"), &work, &inputs, |x| {
            self_attention(x[0].clone(), projections, None, Some(x[1].clone()), &visibility, None)
        });
    }

    // The gradient of the table is written as a whole, and added to where there are tokens.
    let vocabulary = 32_128;
    let ids: Vec<i32> = (0..n as u64).map(|token| KEY.below(token, vocabulary) as i32).collect();
    let ids = Tensor::<1, Int>::from_ints(&ids[..], &Device::flex().autodiff());
    let vocabulary = vocabulary as usize;
    let work = Work { flops: [0, n * d], floats: [2 * n * d, vocabulary * d + 3 * n * d] };
    time(&mut group, "embedding 2048 of 32128x512", &work, &[random([vocabulary, d]).require_grad()], |x| {
        embedding(x[0].clone(), ids.clone())
    });

    let work = Work { flops: [4 * n * d, 8 * n * d], floats: [2 * n * d, 3 * n * d] };
    let ones = Tensor::ones([1, d], &Device::flex().autodiff());
    time(&mut group, "rms_norm 2048x512", &work, &[x.clone(), ones], |x| {
        rms_norm(x[0].clone(), x[1].clone().reshape([d]), 1e-6)
    });
    let work = Work { flops: [2 * n * d, n * d], floats: [3 * n * d, 2 * n * d] };
    time(&mut group, "add_dropout 2048x512", &work, &[x.clone(), random([n, d]).require_grad()], |x| {
        add_dropout(x[0].clone(), x[1].clone(), drop)
    });
    let work = Work { flops: [20 * n * ff, 30 * n * ff], floats: [3 * n * ff, 5 * n * ff] };
    time(&mut group, "gelu_gate 2048x1024, dropout", &work, &[random([n, 2 * ff]).require_grad()], |x| {
        gelu_gate(x[0].clone(), drop)
    });

    let (rows, classes) = (512, 32_128);
    let labels: Vec<i32> = (0..rows as u64).map(|row| KEY.below(row, classes as u64) as i32).collect();
    let labels = |device: &Device| Tensor::<1, Int>::from_ints(labels.as_slice(), device);
    // The kernel sums the gradient up in the forward pass, if there will be a backward pass.
    let work = Work { flops: [2 * rows * d * classes, 2 * rows * d * classes], floats: [classes * d, classes * d] };
    let inputs = [random([rows, d]).require_grad(), random([classes, d])];
    time(&mut group, "head and cross-entropy 512x512x32128", &work, &inputs, |x| {
        linear_cross_entropy(x[0].clone(), x[1].clone(), labels(&x[0].device()), 0.0).unsqueeze()
    });
    group.finish();
}

fn roofline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("roofline");
    group.sample_size(10);
    for [m, n, k] in [[2048, 384, 512], [2048, 1024, 512], [2048, 512, 1024]] {
        let (a, b, mut c) = (vec![0.5f32; m * k], vec![0.25f32; k * n], vec![0f32; m * n]);
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        group.bench_function(format!("gemm {m}x{k}x{n}"), |bencher| {
            bencher.iter(|| {
                // SAFETY: the three matrices are row-major in slices of their sizes.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        c.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        a.as_ptr(),
                        1,
                        k as isize,
                        b.as_ptr(),
                        1,
                        n as isize,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::Rayon(0),
                    );
                }
                black_box(&mut c);
            });
        });
    }
    let memory = vec![1f32; 64 << 20];
    group.throughput(Throughput::Bytes(4 * memory.len() as u64));
    group.bench_function("reading 256 MiB", |bencher| {
        bencher.iter(|| {
            std::thread::scope(|scope| {
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                for part in memory.chunks(memory.len().div_ceil(threads)) {
                    scope.spawn(move || {
                        let mut sums = [0f32; 64];
                        for block in part.as_chunks::<64>().0 {
                            sums.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
                        }
                        black_box(sums)
                    });
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, operations, roofline);
criterion_main!(benches);
