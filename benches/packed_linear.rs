//! A linear layer with a packed weight of 4096 x 4096, for 1 to 512 rows, forward and the gradient of the input: beside unpacking
//! the weight first and multiplying then, and beside the same weight in `f32`. The three run in turns; of each the fewest
//! milliseconds are printed, on the wall and of processor time, and how many times as long the others take.

// A table is what it is for.
#![allow(clippy::print_stdout)]

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use sideburn::kernels::{Matrix, PackedMatrix, linear, on_workers};
use sideburn::quant::{Packed, Quantization};
use sideburn_benches::clock::{Seconds, fewest_in_turns};

const SIZE: usize = 4096;

fn main() {
    let device = Device::flex().autodiff();
    let weight = Tensor::<2>::random([SIZE, SIZE], Distribution::Normal(0.0, 0.02), &device);
    let values: Vec<f32> = weight.to_data().try_into_vec().unwrap();
    let pack = |quantization| {
        let packed = Packed::quantize("weight", &values, [SIZE, SIZE], quantization).unwrap();
        Matrix::from(PackedMatrix::new(packed, 6.0, &device).with_float_inputs())
    };
    let packed = [("nf4", pack(Quantization::NF4)), ("int8", pack(Quantization::INT8))];
    let floats = Matrix::from(weight);
    println!("rows  weight   packed, ms (processor)   unpacked first   f32, times   of processor time");
    for rows in [1, 4, 16, 64, 256, 512] {
        let x = Tensor::<2>::random([rows, SIZE], Distribution::Normal(0.0, 1.0), &device).require_grad();
        let both = |weight: Matrix| {
            on_workers(&device, || drop(black_box(linear(x.clone(), weight).sum().backward())));
        };
        for (name, weight) in &packed {
            let rounds = if rows < 64 { 15 } else { 7 };
            let [packed, first, floats] = fewest_in_turns(
                rounds,
                [
                    Box::new(|| both(weight.clone())),
                    Box::new(|| both(weight.dense().into())),
                    Box::new(|| both(floats.clone())),
                ],
            );
            let times = |other: Seconds| (other.wall / packed.wall, other.processor / packed.processor);
            let ((first, of_first), (floats, of_floats)) = (times(first), times(floats));
            println!(
                "{rows:4}  {name:6} {:8.1} ({:.1}) {first:12.2} {floats:10.2} {of_first:14.2} {of_floats:6.2}",
                1e3 * packed.wall,
                1e3 * packed.processor
            );
        }
    }
}
