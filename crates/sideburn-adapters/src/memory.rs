//! How many bytes of memory there are, and how many loading takes.

use std::path::Path;

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
