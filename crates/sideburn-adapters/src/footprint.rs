//! How many bytes a base takes in memory, and how many there are.

use std::path::Path;

use sideburn_quant::QuantizationConfig;

use crate::base::quantized_sites;
use crate::model::{AdaptedModel, Weight};

/// Bytes of the base weights of a model, which need not be there yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseBytes {
    /// Of linear layers that are packed, or are to be.
    pub packed: u64,
    /// Of all that is floats: norms, embeddings, and linear layers that are not packed.
    pub floats: u64,
    /// The most that is held while the model is loaded: what is there already, the weight that is put in its place, as `f32`, and
    /// the next one.
    pub loading: u64,
}

impl BaseBytes {
    /// Of the whole base.
    pub fn total(self) -> u64 {
        self.packed + self.floats
    }
}

/// [`Adapters::base_bytes`](crate::Adapters::base_bytes).
pub(crate) fn base_bytes(model: &dyn AdaptedModel, config: Option<&QuantizationConfig>) -> BaseBytes {
    let sites = config.map(|config| quantized_sites(model, config)).unwrap_or_default();
    let (mut bytes, mut sizes) = (BaseBytes::default(), Vec::new());
    for (name, weight) in model.weights() {
        let is_linear = matches!(weight, Weight::Linear(_));
        for (index, (_, held)) in weight.tensors(&name).enumerate() {
            let shape = held.dims();
            let asked = config.filter(|_| is_linear && index == 0 && sites.contains(&name));
            let quantization =
                held.packed().map(|packed| packed.quantization()).or(asked.map(|config| config.quantization));
            let own = match quantization {
                Some(quantization) => quantization.bytes(shape),
                None => shape[0] * shape[1] * held.dtype().size(),
            } as u64;
            *if quantization.is_some() { &mut bytes.packed } else { &mut bytes.floats } += own;
            sizes.push((own, (shape[0] * shape[1] * size_of::<f32>()) as u64));
        }
    }
    BaseBytes { loading: loading(&sizes), ..bytes }
}

/// The most that is held while weights are loaded one after the other, given of each what it takes at last, and as it is read: of
/// one that is packed both are there for a moment, and of the next what is read.
pub(crate) fn loading(sizes: &[(u64, u64)]) -> u64 {
    let mut there = 0;
    let at = |(index, (own, read)): (usize, &(u64, u64))| {
        there += own;
        there + if own == read { 0 } else { *read } + sizes.get(index + 1).map_or(0, |(_, next)| *next)
    };
    sizes.iter().enumerate().map(at).max().unwrap_or(0)
}

/// How many bytes of main memory this process can still have: what the system has left, without what it can give up, and no
/// more than the limits of the process's control group. `None` where the system does not say, as elsewhere than on Linux.
pub fn available_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 = field(&meminfo, "MemAvailable:")?;
    Some((kibibytes << 10).min(left_in_group().unwrap_or(u64::MAX)))
}

/// The number behind a name, each on a line of its own.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// What is left of the limits (`memory.max`, of cgroup v2) of the group and those that it is in.
fn left_in_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(own);
    let left = |group: &Path| -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let limit: u64 = read("memory.max")?.trim().parse().ok()?;
        let used: u64 = read("memory.current")?.trim().parse().ok()?;
        // Pages of files are given up before anything fails.
        let stat = read("memory.stat")?;
        let pages: u64 = ["inactive_file ", "active_file "].iter().filter_map(|name| field(&stat, name)).sum();
        Some(limit.saturating_sub(used.saturating_sub(pages)))
    };
    own.ancestors().take_while(|group| group.starts_with(root)).filter_map(left).min()
}
