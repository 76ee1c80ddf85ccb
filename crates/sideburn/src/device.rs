//! Devices by name.

use burn::tensor::Device;

/// Why a name is no device.
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
/// Whether a GPU is really there shows when it is first used.
///
/// Kernels are compiled when they are first needed. Those for CUDA are kept in `sideburn` in the user's cache folder, so
/// that the next process need not compile them again: `$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches` on macOS,
/// `%LOCALAPPDATA%` on Windows. The folder may be deleted at any time. Without such a folder, or with a configuration of
/// CubeCL (`cubecl.toml`, or the section `cubecl` of `burn.toml`, in the working directory or above), or where a program
/// has configured CubeCL or used a GPU before, what CubeCL does by itself stays.
///
/// # Errors
/// If there is no such backend, or this program was built without it.
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

/// A function that makes the device, or names the feature that is missing.
macro_rules! backend {
    ($name:ident, $feature:literal, |$index:ident: $index_type:ty| $device:expr) => {
        #[cfg(feature = $feature)]
        fn $name($index: $index_type) -> Result<Device, DeviceError> {
            sideburn_kernels::keep_kernels();
            Ok($device)
        }

        #[cfg(not(feature = $feature))]
        fn $name(_: $index_type) -> Result<Device, DeviceError> {
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

backend!(wgpu, "wgpu", |index: Option<usize>| Device::wgpu(gpu(index)));
backend!(vulkan, "vulkan", |index: Option<usize>| Device::vulkan(gpu(index)));
backend!(metal, "metal", |index: Option<usize>| Device::metal(gpu(index)));
backend!(cuda, "cuda", |index: Option<usize>| Device::cuda(index.unwrap_or(0)));

/// The discrete GPU of that index, or the best device of any kind.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
fn gpu(index: Option<usize>) -> burn::tensor::DeviceKind {
    use burn::tensor::DeviceKind;
    index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_device() {
        for name in ["", "cpu", "cuda:", "cuda:x", "cuda:-1", "flex:0", "gpu"] {
            assert_eq!(parse_device(name), Err(DeviceError::Unknown { name: name.into() }));
        }
    }

    #[cfg(not(feature = "metal"))]
    #[test]
    fn a_backend_that_is_not_built_in_names_its_feature() {
        let error = parse_device("metal").unwrap_err().to_string();
        assert!(error.contains("`--features metal`") && error.contains("flex"), "{error}");
    }
}
