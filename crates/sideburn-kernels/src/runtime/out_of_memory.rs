//! What a device says when its memory is used up.

use std::fmt::{self, Display};

use burn::tensor::Device;

/// A device that has no memory for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The bytes that were asked for, in one piece.
    pub asked: u64,
    /// The bytes that this process has taken, where the backend says.
    pub taken: Option<u64>,
    /// The bytes that the device has, where the backend says.
    pub total: Option<u64>,
}

/// What CubeCL writes before the number of bytes that it could not have.
const ASKED: [&str; 4] =
    ["allocate buffer of size: ", "out of device memory allocating ", "deferred allocation of ", "Can't allocate "];

impl OutOfMemory {
    /// What is known of it, if `reason`, with which work on the device has failed, is that its memory is used up.
    pub fn of(reason: &str, device: &Device) -> Option<Self> {
        let asked = ASKED.iter().find_map(|before| {
            let (_, rest) = reason.split_once(before)?;
            rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
        })?;
        let taken = device.memory_pool_usage().map(|usage| usage.bytes_reserved);
        Some(Self { asked, taken, total: total(device) })
    }
}

#[cfg(feature = "gpu")]
fn total(device: &Device) -> Option<u64> {
    super::launches::device_memory(device)
}

#[cfg(not(feature = "gpu"))]
fn total(_: &Device) -> Option<u64> {
    None
}

impl Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1048576.0;
        write!(f, "{:.1} MiB were asked for in one piece", mib(self.asked))?;
        match (self.taken, self.total) {
            (Some(taken), Some(total)) => {
                write!(f, ", and this process has {:.1} of {:.1} MiB already", mib(taken), mib(total))
            }
            (Some(taken), None) => write!(f, ", and this process has {:.1} MiB already", mib(taken)),
            (None, Some(total)) => write!(f, ", of {:.1} MiB", mib(total)),
            (None, None) => Ok(()),
        }
    }
}
