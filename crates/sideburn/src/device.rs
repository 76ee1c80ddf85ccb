//! Devices: by name, what there is, and whether it computes.

#[cfg(feature = "flex")]
mod self_test;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, DeviceConfig, FloatDType};

#[cfg(feature = "flex")]
pub use self_test::{DeviceInfo, SelfTest, inspect};

/// Why a name is no device, or a device cannot be used as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A name that no backend has.
    #[error("{name:?} is no device; expected flex, wgpu, vulkan, metal or cuda, and :INDEX behind a GPU's")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A backend that this program was built without.
    #[error(
        "this program was built without the `{backend}` backend; build it with `--features {backend}` (it has: {})",
        built_in().join(", ")
    )]
    NotBuiltIn {
        /// The backend.
        backend: &'static str,
    },
    /// A backend that finds no GPU: there is none, or no driver for it.
    #[error("`{backend}` finds no GPU here; {}", driver_of(backend))]
    NoGpu {
        /// The backend.
        backend: &'static str,
    },
    /// A number that no GPU has.
    #[error("there is no {backend}:{index}; {}", numbers(backend, *count))]
    NoSuchIndex {
        /// The backend.
        backend: &'static str,
        /// The number.
        index: usize,
        /// How many GPUs can be named by a number.
        count: usize,
    },
    /// A GPU that its driver cannot open.
    #[error("{name} cannot be opened: {reason}; its driver may be too old, or the GPU lost")]
    CannotOpen {
        /// The name.
        name: String,
        /// What the driver says.
        reason: String,
    },
    /// A dtype that the device has not got.
    #[error("{name} has no {dtype}; it has {}", supported.join(", "))]
    NoDtype {
        /// The name.
        name: String,
        /// The dtype.
        dtype: &'static str,
        /// Those that it has.
        supported: Vec<&'static str>,
    },
    /// A dtype that comes too late.
    #[error(
        "{name} has been used in this process, so that its dtype is settled; ask for {dtype} before the first tensor"
    )]
    Settled {
        /// The name.
        name: String,
        /// The dtype.
        dtype: &'static str,
    },
}

fn driver_of(backend: &str) -> &'static str {
    match backend {
        "cuda" => {
            "`nvidia-smi` lists those that NVIDIA's driver has: install the driver, or hand the GPU on to the \
             container (`--gpus all`)"
        }
        "metal" => "it is for macOS",
        _ => {
            "`vulkaninfo --summary` lists those that Vulkan has: install the GPU's driver and Vulkan's loader (Debian: \
             libvulkan1, and mesa-vulkan-drivers, which has one in software)"
        }
    }
}

fn numbers(backend: &str, count: usize) -> String {
    match count {
        0 => format!("no GPU of its own memory is there to be numbered: `{backend}` alone takes the one there is"),
        1 => format!("the only one is {backend}:0"),
        _ => format!("the last one is {backend}:{}", count - 1),
    }
}

/// The backends that this program was built with.
pub fn built_in() -> Vec<&'static str> {
    [
        ("flex", cfg!(feature = "flex")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .into_iter()
    .filter_map(|(backend, built_in)| built_in.then_some(backend))
    .collect()
}

/// The device called `name`: `flex` for the CPU, or a GPU's backend, `wgpu`, `vulkan`, `metal` or `cuda`, with an
/// optional index as in `cuda:1`.
///
/// Kernels are compiled when they are first needed. Those for CUDA are kept in `sideburn` in the user's cache folder, so
/// that the next process need not compile them again: `$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches` on macOS,
/// `%LOCALAPPDATA%` on Windows. The folder may be deleted at any time. Without such a folder, or with a configuration of
/// CubeCL (`cubecl.toml`, or the section `cubecl` of `burn.toml`, in the working directory or above), or where a program
/// has configured CubeCL or used a GPU before, what CubeCL does by itself stays.
///
/// # Errors
/// If there is no such backend, this program was built without it, or it finds no such GPU.
///
/// ```
/// use sideburn::device::parse_device;
///
/// assert_eq!(parse_device("flex")?, burn::tensor::Device::flex());
/// assert!(parse_device("tpu").is_err());
/// # Ok::<(), sideburn::device::DeviceError>(())
/// ```
pub fn parse_device(name: &str) -> Result<Device, DeviceError> {
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    match (backend, index) {
        ("flex", None) => flex(),
        ("wgpu", index) => wgpu(index),
        ("vulkan", index) => vulkan(index),
        ("metal", index) => metal(index),
        ("cuda", index) => cuda(index),
        _ => Err(unknown()),
    }
}

/// The same device, on which tensors are made in `dtype` from now on: a model that is loaded there computes in it. A device
/// takes one dtype in a process, before its first tensor.
///
/// On the CPU in 16 bits, a model holds its matrices in them, and what its layers give each other is in `f32`. In `bf16`, products of
/// more than 16 rows with frozen weights round both sides to `bf16` and sum in `f32`, where the processor has AVX-512 BF16; without
/// it, and in `f16`, weights are widened, which is exact.
///
/// # Errors
/// As [`parse_device`]; and if the device has no such dtype, or has been used before.
///
/// ```
/// use burn::tensor::FloatDType;
/// use sideburn::device::parse_device_in;
///
/// let device = parse_device_in("flex", FloatDType::BF16)?;
/// assert_eq!(device.settings().float_dtype, FloatDType::BF16);
/// # Ok::<(), sideburn::device::DeviceError>(())
/// ```
pub fn parse_device_in(name: &str, dtype: FloatDType) -> Result<Device, DeviceError> {
    let mut device = parse_device(name)?;
    let has = |dtype: FloatDType| opened(name, || device.supports_dtype(dtype));
    if !has(dtype)? {
        let mut supported = Vec::new();
        for dtype in DTYPES {
            if has(dtype)? {
                supported.push(dtype_name(dtype));
            }
        }
        return Err(DeviceError::NoDtype { name: name.to_owned(), dtype: dtype_name(dtype), supported });
    }
    let settled = |_| DeviceError::Settled { name: name.to_owned(), dtype: dtype_name(dtype) };
    device.configure(DeviceConfig::default().float_dtype(dtype)).map_err(settled)?;
    Ok(device)
}

/// The dtypes that models come in.
const DTYPES: [FloatDType; 3] = [FloatDType::F32, FloatDType::F16, FloatDType::BF16];

fn dtype_name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::F64 => "f64",
        FloatDType::F32 => "f32",
        FloatDType::Flex32 => "flex32",
        FloatDType::F16 => "f16",
        FloatDType::BF16 => "bf16",
    }
}

/// What is first done with a device: a driver that is there, but of no use, is met here, and CubeCL panics.
fn opened<T>(name: &str, first: impl FnOnce() -> T) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(first)).map_err(|panic| {
        let reason = panic.downcast_ref::<String>().cloned();
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let reason = reason.unwrap_or_else(|| "no reason is given".to_owned());
        DeviceError::CannotOpen { name: name.to_owned(), reason }
    })
}

/// A function that makes the device of a GPU's backend, or names the feature that is missing.
macro_rules! backend {
    ($name:ident, $feature:literal, $kind:ident, $default:expr, |$index:ident| $device:expr) => {
        #[cfg(feature = $feature)]
        fn $name(index: Option<usize>) -> Result<Device, DeviceError> {
            sideburn_kernels::keep_kernels();
            let present = opened($feature, || Device::enumerate(burn::tensor::DeviceType::$kind).into_vec())?;
            let numbered = |$index: usize| -> Device { $device };
            match index {
                _ if present.is_empty() => Err(DeviceError::NoGpu { backend: $feature }),
                None => Ok($default),
                Some(index) if present.contains(&numbered(index)) => Ok(numbered(index)),
                Some(index) => {
                    let count = (0..present.len()).filter(|index| present.contains(&numbered(*index))).count();
                    Err(DeviceError::NoSuchIndex { backend: $feature, index, count })
                }
            }
        }

        #[cfg(not(feature = $feature))]
        fn $name(_: Option<usize>) -> Result<Device, DeviceError> {
            Err(DeviceError::NotBuiltIn { backend: $feature })
        }
    };
}

#[cfg(feature = "flex")]
fn flex() -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn flex() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuiltIn { backend: "flex" })
}

#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn::tensor::DeviceKind;

backend!(wgpu, "wgpu", Wgpu, Device::wgpu(DeviceKind::DefaultDevice), |index| {
    Device::wgpu(DeviceKind::DiscreteGpu(index))
});
backend!(vulkan, "vulkan", Vulkan, Device::vulkan(DeviceKind::DefaultDevice), |index| {
    Device::vulkan(DeviceKind::DiscreteGpu(index))
});
backend!(metal, "metal", Metal, Device::metal(DeviceKind::DefaultDevice), |index| {
    Device::metal(DeviceKind::DiscreteGpu(index))
});
backend!(cuda, "cuda", Cuda, Device::cuda(0), |index| Device::cuda(index));

/// The names of all devices that this program can use: each that [`parse_device`] takes without a number, and each with one.
pub fn names() -> Vec<String> {
    let numbered = |backend: &str| {
        let names = (0..).map(|index| format!("{backend}:{index}"));
        names.take_while(|name| parse_device(name).is_ok()).collect::<Vec<_>>()
    };
    let of_backend = |backend: &str| match backend {
        "flex" => vec![backend.to_owned()],
        // Its numbers name them all.
        "cuda" => numbered(backend),
        _ => [backend.to_owned()]
            .into_iter()
            .filter(|name| parse_device(name).is_ok())
            .chain(numbered(backend))
            .collect(),
    };
    built_in().into_iter().flat_map(of_backend).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;

    #[test]
    fn names_that_are_no_device() {
        for name in ["", "cpu", "cuda:", "cuda:x", "cuda:-1", "flex:0", "gpu"] {
            assert_eq!(parse_device(name), Err(DeviceError::Unknown { name: name.into() }));
        }
    }

    #[test]
    fn a_dtype_that_comes_too_late_says_so() {
        let _ = Tensor::<1>::zeros([1], &Device::flex());
        let error = parse_device_in("flex", FloatDType::F16).unwrap_err();
        assert_eq!(error, DeviceError::Settled { name: "flex".into(), dtype: "f16" });
    }

    #[test]
    fn a_driver_that_is_of_no_use_is_an_error_with_its_words() {
        for (panic, words) in [(None, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"), (Some("too old"), "too old")] {
            let error = opened("cuda:0", || match panic {
                Some(words) => std::panic::panic_any(words.to_owned()),
                None => panic!("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
            });
            let text = error.unwrap_err().to_string();
            assert!(text.contains("cuda:0 cannot be opened") && text.contains(words), "{text}");
            assert!(text.contains("driver may be too old"), "{text}");
        }
    }

    #[cfg(not(feature = "metal"))]
    #[test]
    fn a_backend_that_is_not_built_in_names_its_feature() {
        let error = parse_device("metal").unwrap_err().to_string();
        assert!(error.contains("`--features metal`") && error.contains("flex"), "{error}");
    }
}
