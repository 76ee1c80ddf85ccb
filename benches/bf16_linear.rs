//! Products of a linear layer whose weight is in `bf16`, on a CPU in `bf16`: `x W^T` and, for the gradient of the input, `dY W`, beside
//! the same weight in `f32`; and beside PyTorch's product of two matrices in `bf16` (oneDNN) if `SIDEBURN_PEER_PYTHON` names a Python
//! that has torch. All run in turns; of each the fewest milliseconds on the wall are printed.
//!
//! `cargo bench --bench bf16_linear -- 2048 512 1024` measures one size: rows, columns of `x`, columns of the product.

// A table is what it is for.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use sideburn::device::parse_device_in;
use sideburn::kernels::{cpu_instructions, linear, on_workers};

const SIZES: [[usize; 3]; 6] =
    [[2048, 512, 1024], [2048, 512, 384], [2048, 1024, 512], [512, 512, 1024], [128, 512, 512], [2048, 768, 2048]];

const ROUNDS: usize = 15;

fn main() {
    let device = parse_device_in("flex", FloatDType::BF16).expect("the CPU").autodiff();
    let sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match sizes.as_slice() {
        [n, input, out] => vec![[*n, *input, *out]],
        _ => SIZES.to_vec(),
    };
    let mut torch = std::env::var("SIDEBURN_PEER_PYTHON").ok().map(|python| Torch::start(&python));
    println!("{:?}; GFLOP/s of the fastest of {ROUNDS}", cpu_instructions());
    println!("rows x in x out        bf16   torch bf16   ours / torch     f32   bf16 / f32   with dX: bf16     f32");
    for size in sizes {
        print_size(size, &device, torch.as_mut());
    }
}

fn print_size([n, input, out]: [usize; 3], device: &Device, mut torch: Option<&mut Torch>) {
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.1), (device, DType::F32));
    let (x, wide) = (random([n, input]), random([out, input]));
    let narrow = wide.clone().cast(DType::BF16);
    let tracked = x.clone().require_grad();
    let seconds = |task: &(dyn Fn() + Sync)| {
        on_workers(device, || {
            let start = Instant::now();
            task();
            start.elapsed().as_secs_f64()
        })
    };
    let forward = |weight: &Tensor<2>| drop(black_box(linear(x.clone().inner(), weight.clone().inner())));
    let both = |weight: &Tensor<2>| drop(black_box(linear(tracked.clone(), weight.clone()).sum().backward()));
    let mut fewest = [f64::INFINITY; 5];
    for _ in 0..ROUNDS {
        let taken = [
            seconds(&|| forward(&narrow)),
            torch.as_mut().map_or(f64::INFINITY, |torch| torch.seconds([n, input, out])),
            seconds(&|| forward(&wide)),
            seconds(&|| both(&narrow)),
            seconds(&|| both(&wide)),
        ];
        fewest.iter_mut().zip(taken).for_each(|(fewest, taken)| *fewest = fewest.min(taken));
    }
    let flops = 2e-9 * (n * input * out) as f64;
    let [narrow, theirs, wide] = [0, 1, 2].map(|index| flops / fewest[index]);
    let [both_narrow, both_wide] = [3, 4].map(|index| 2.0 * flops / fewest[index]);
    println!(
        "{:20} {narrow:6.0} {theirs:12.0} {:14.2} {wide:7.0} {:12.2} {both_narrow:15.0} {both_wide:7.0}",
        format!("{n} x {input} x {out}"),
        narrow / theirs,
        narrow / wide
    );
}

/// A process that multiplies in PyTorch.
struct Torch {
    process: Child,
    sizes: ChildStdin,
    times: BufReader<ChildStdout>,
}

impl Torch {
    fn start(python: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bf16_linear.py");
        let mut process = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("SIDEBURN_PEER_PYTHON names a program");
        let sizes = process.stdin.take().expect("a pipe");
        let times = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, sizes, times }
    }

    /// What a product takes there.
    fn seconds(&mut self, [n, input, out]: [usize; 3]) -> f64 {
        writeln!(self.sizes, "{n} {input} {out}").expect("the process reads");
        let mut line = String::new();
        self.times.read_line(&mut line).expect("the process writes");
        line.trim().parse().expect("seconds")
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
