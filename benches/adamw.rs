//! Clipping and AdamW over the 77 million parameters of FLAN-T5-small: norm and update in one pass each, against Burn's,
//! which is composed of elementwise operations and is given a scaled copy of each gradient.
//!
//! Burn's product leaves the gradient of a linear layer's weight transposed, ours does not; both layouts are measured.
//! The two optimisers are run in turn.

use std::time::Instant;

use burn::optim::{AdamWConfig, Optimizer};
use burn::tensor::{Device, Distribution, Tensor};
use sideburn::kernels::{AdamWStep, AdamWUpdate, AnyRank, adamw_steps, norm};

const REPETITIONS: u32 = 9;

/// The shapes of the weights, and how many there are of each.
const SHAPES: [([usize; 2], usize); 4] = [([32128, 512], 2), ([384, 512], 72), ([512, 384], 24), ([1024, 512], 48)];

fn main() {
    for transposed in [true, false] {
        measure(transposed);
    }
}

fn measure(transposed: bool) {
    let device = Device::flex();
    let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.1), &device);
    let shapes: Vec<[usize; 2]> = SHAPES.into_iter().flat_map(|(shape, count)| vec![shape; count]).collect();
    let gradient = |[out, input]: [usize; 2]| {
        if transposed { random([input, out]).transpose() } else { random([out, input]) }
    };
    let gradients: Vec<_> = shapes.iter().copied().map(gradient).collect();
    let elements: usize = shapes.iter().map(|[out, input]| out * input).sum();

    let weights: Vec<Tensor<2>> = shapes.iter().map(|shape| random(*shape)).collect();
    let mut theirs: Vec<_> = weights.iter().map(|weight| (weight.clone() + 0.0, None)).collect();
    let mut ours: Vec<[AnyRank; 3]> = weights
        .into_iter()
        .map(|weight| [weight.zeros_like(), weight.zeros_like(), weight].map(AnyRank::from))
        .map(|[first, second, weight]| [weight, first, second])
        .collect();
    let burn = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).build();
    let mut seconds = [Vec::new(), Vec::new()];
    for time in 1..=REPETITIONS {
        let started = Instant::now();
        let norm = norm(gradients.iter().cloned().map(AnyRank::from));
        let scale = norm.recip();
        let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
        let step = AdamWStep { learning_rate: 1e-4, weight_decay: 0.01, beta1, beta2, epsilon, time };
        let updates = ours.into_iter().zip(&gradients).map(|([parameter, first, second], gradient)| {
            let gradient = gradient.clone().into();
            AdamWUpdate { parameter, gradient, moments: [first, second], step }
        });
        ours = adamw_steps(updates.collect(), scale);
        seconds[0].push(started.elapsed().as_secs_f64());

        let started = Instant::now();
        let squares = Tensor::cat(gradients.iter().map(|gradient| gradient.clone().square().sum()).collect(), 0);
        let scale = 1.0 / squares.sum().sqrt().into_scalar::<f32>();
        theirs = theirs
            .into_iter()
            .zip(&gradients)
            .map(|((weight, state), gradient)| burn.step(1e-4, weight, gradient.clone().mul_scalar(scale), state))
            .collect();
        seconds[1].push(started.elapsed().as_secs_f64());
    }
    for (([ours, ..], (theirs, _)), gradient) in ours.into_iter().zip(theirs).zip(gradients) {
        let difference = (ours.into_tensor::<2>() - theirs).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-6, "updates differ by {difference:e} for {:?}", gradient.dims());
    }
    let layout = if transposed { "transposed" } else { "row-major" };
    println!("norm, clipping and AdamW over {elements} parameters, {layout} gradients");
    for (name, mut seconds) in ["one pass each", "Burn's"].into_iter().zip(seconds) {
        seconds.remove(0); // begins the moments
        seconds.sort_by(f64::total_cmp);
        // An update reads four numbers for each parameter and writes three; the norm reads one.
        let rate = (elements * 32) as f64 / seconds[0] / 1e9;
        println!(
            "{name:16}{:8.3} s (least {:.3}, {rate:.1} GB/s of what one pass each needs)",
            seconds[seconds.len() / 2],
            seconds[0]
        );
    }
}
