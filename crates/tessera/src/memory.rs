//! The machine's memory, and what this process used of it, where the system tells.

/// The most memory that this process has had resident, mapped files included.
pub fn peak() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// All that the machine has.
pub fn total() -> Option<u64> {
    field("/proc/meminfo", "MemTotal:")
}

/// Bytes, from a line such as `MemTotal: 16 kB`.
fn field(file: &str, name: &str) -> Option<u64> {
    let lines = std::fs::read_to_string(file).ok()?;
    let line = lines.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
