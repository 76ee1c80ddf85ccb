//! The cases on the CPU against the composed forms in `f64`, which `against_loops` holds against plain loops: values,
//! and the gradient of every input, in `f32` by the kernels or by what they are composed of, and in `f16`.

use burn::tensor::{DType, Device};

use crate::cases::{Input, Op, run, test_cases};
use crate::loops::assert_near_at_scale;

fn check(what: &str, inputs: &[Input], op: Op<'_>) {
    let run = |dtype| run(inputs, &Device::flex(), dtype, op);
    let expected = run(DType::F64);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-2)] {
        for (index, (found, expected)) in run(dtype).iter().zip(&expected).enumerate() {
            let part = if index == 0 { "value".to_owned() } else { format!("gradient of input {}", index - 1) };
            // Numbers of the size of the inputs may cancel, as in the gradient of a bias that is the same for all keys.
            assert_near_at_scale(&format!("{what} in {dtype:?}: {part}"), found, expected, tolerance, 1.0);
        }
    }
}

test_cases!(check);
