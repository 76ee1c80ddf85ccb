//! What a device is, and whether it computes what the CPU computes.

use std::time::Instant;

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use sideburn_kernels::{
    CpuInstructions, Key, cpu_instructions, gelu_gate, is_cpu, linear_cross_entropy, matmul, rms_norm,
};

use super::{DTYPES, DeviceError, dtype_name, opened, parse_device};

/// What is known of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its name, as [`parse_device`] takes it.
    pub name: String,
    /// What the GPU calls itself; `None` for the CPU.
    pub card: Option<String>,
    /// The instructions that products on the CPU use; `None` for a GPU.
    pub instructions: Option<CpuInstructions>,
    /// Its memory in bytes, where the backend says: `cuda` and `metal` do, `vulkan` says how much it may take.
    pub memory: Option<u64>,
    /// The dtypes that a model can be in there, of `f32`, `f16` and `bf16`.
    pub dtypes: Vec<&'static str>,
    /// What came of the same work there and on the CPU, in each of these dtypes.
    pub tests: Vec<SelfTest>,
}

/// The work of a self-test on a device, held against the CPU's in `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTest {
    /// The dtype.
    pub dtype: &'static str,
    /// The largest difference, of numbers up to about 5.
    pub difference: f64,
    /// The difference that passes.
    pub tolerance: f64,
    /// Seconds of the first time, compiling included.
    pub first_seconds: f64,
    /// Seconds of the second time.
    pub seconds: f64,
}

impl SelfTest {
    /// Whether the device computes as it should.
    pub fn passed(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Opens a device and has it compute something. That takes about a second, and on a GPU the time of compiling some kernels.
///
/// # Errors
/// If there is no such device, or it cannot be opened or fails.
///
/// ```
/// let info = sideburn::device::inspect("flex")?;
/// assert!(info.dtypes.contains(&"f32") && info.tests.iter().all(|test| test.passed()));
/// # Ok::<(), sideburn::device::DeviceError>(())
/// ```
pub fn inspect(name: &str) -> Result<DeviceInfo, DeviceError> {
    let device = parse_device(name)?;
    opened(name, || {
        let dtypes: Vec<FloatDType> = DTYPES.into_iter().filter(|dtype| device.supports_dtype(*dtype)).collect();
        DeviceInfo {
            name: name.to_owned(),
            card: card(&device),
            instructions: is_cpu(&device).then(cpu_instructions),
            memory: memory(&device),
            tests: dtypes.iter().map(|dtype| self_test(&device, *dtype)).collect(),
            dtypes: dtypes.into_iter().map(dtype_name).collect(),
        }
    })
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
fn card(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda")))]
fn card(_: &Device) -> Option<String> {
    None
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda"))]
fn memory(device: &Device) -> Option<u64> {
    sideburn_kernels::device_memory(device)
}

#[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "cuda")))]
fn memory(_: &Device) -> Option<u64> {
    None
}

fn self_test(device: &Device, dtype: FloatDType) -> SelfTest {
    let expected = work(&Device::flex(), FloatDType::F32);
    let timed = || {
        let start = Instant::now();
        (work(device, dtype), start.elapsed().as_secs_f64())
    };
    let (found, first_seconds) = timed();
    let (_, seconds) = timed();
    let difference = |(found, expected): (&f32, &f32)| f64::from((found - expected).abs());
    // What is not a number is the largest of all.
    let worse = |most: f64, next: f64| if next > most || next.is_nan() { next } else { most };
    let tolerance = match dtype {
        FloatDType::BF16 => 0.2,
        FloatDType::F16 => 0.02,
        _ => 1e-4,
    };
    SelfTest {
        dtype: dtype_name(dtype),
        difference: found.iter().zip(&expected).map(difference).fold(0.0, worse),
        tolerance,
        first_seconds,
        seconds,
    }
}

/// Losses of a small network over numbers that are the same everywhere.
fn work(device: &Device, dtype: FloatDType) -> Vec<f32> {
    const ROWS: usize = 96;
    const WIDTH: usize = 80;
    const CLASSES: usize = 50;
    let numbers = |stream: u64, shape: [usize; 2]| {
        let key = Key::from_seed(stream);
        let numbers: Vec<f32> = (0..(shape[0] * shape[1]) as u64).map(|index| key.normal(index) as f32).collect();
        Tensor::<2>::from_data(TensorData::new(numbers, shape), device).cast(dtype)
    };
    let [x, inner, head] = [(1, [ROWS, WIDTH]), (2, [WIDTH, 2 * WIDTH]), (3, [CLASSES, WIDTH])]
        .map(|(stream, shape)| numbers(stream, shape));
    let scale = Tensor::<1>::ones([WIDTH], device).cast(dtype);
    let gated = gelu_gate(matmul(rms_norm(x, scale.clone(), 1e-6), inner).mul_scalar(0.1), None);
    let labels: Vec<i32> = (0..ROWS as i32).map(|row| row % CLASSES as i32).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [ROWS]), device);
    let losses = linear_cross_entropy(rms_norm(gated, scale, 1e-6).mul_scalar(0.1), head, labels, 0.0);
    losses.cast(DType::F32).into_data().iter::<f32>().collect()
}
