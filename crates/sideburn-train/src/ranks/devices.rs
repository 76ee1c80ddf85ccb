//! Ranks that are GPUs of one machine.

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor};

use super::{RankError, Ranks, ThreadRanks};

/// One of several CUDA devices of this machine, each with a thread, a model and a run of its own. Gradients are summed where
/// they are, by NCCL, through [`burn::tensor::distributed`]; messages go from thread to thread.
///
/// NCCL must be installed (`libnccl.so`), and Burn built for CUDA. This was type-checked and never run on several devices.
#[derive(Debug)]
pub struct DeviceRanks {
    threads: ThreadRanks,
    devices: Vec<Device>,
}

impl DeviceRanks {
    /// A rank for each of `devices`, in their order: give each to a thread that has a model on that device.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(devices: &[Device]) -> Vec<Self> {
        let devices: Vec<Device> = devices.iter().map(|device| device.clone().inner()).collect();
        let ranks = ThreadRanks::of(devices.len()).into_iter();
        ranks.map(|threads| Self { threads, devices: devices.clone() }).collect()
    }

    /// The device of this rank.
    pub fn device(&self) -> &Device {
        &self.devices[self.threads.rank()]
    }
}

impl Ranks for DeviceRanks {
    fn rank(&self) -> usize {
        self.threads.rank()
    }

    fn count(&self) -> usize {
        self.threads.count()
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), RankError> {
        self.threads.sum(values)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        self.threads.gather(bytes)
    }

    fn sum_tensor(&self, tensor: Tensor<1>) -> Result<Tensor<1>, RankError> {
        // NCCL waits for ever for a device whose thread has ended; threads are told of it.
        self.threads.gather(&[])?;
        Ok(all_reduce(tensor, ReduceOperation::Sum, self.devices.clone()).resolve())
    }
}
