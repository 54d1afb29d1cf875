//! The memory limit of the control group that this process runs in: beyond it the kernel kills, it does not refuse.

use std::fs::read_to_string;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A limit read this long ago still serves: publishers may be made by the hundred, and each reading takes a dozen system calls.
const FRESH: Duration = Duration::from_secs(1);

/// The smallest memory limit in bytes that applies to this process, as it was within the last second.
pub(crate) fn memory_limit() -> Option<u64> {
    static LAST: Mutex<Option<(Instant, Option<u64>)>> = Mutex::new(None);
    // Another thread reads it just now. In a forked child nobody may give the lock back.
    let Ok(mut last) = LAST.try_lock() else { return read_limit() };
    if let Some((at, limit)) = *last
        && at.elapsed() < FRESH
    {
        return limit;
    }
    let limit = read_limit();
    *last = Some((Instant::now(), limit));
    limit
}

/// Of version 2 or version 1 of control groups.
fn read_limit() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(limit_of).min()
}

/// The limit of one line `hierarchy:controllers:path` of `/proc/self/cgroup`.
fn limit_of(line: &str) -> Option<u64> {
    let (root, file, path) = parse(line)?;
    // A limit of any group above applies as well.
    let groups =
        Path::new(path).ancestors().map(|group| Path::new(root).join(group.strip_prefix("/").unwrap_or(group)));
    groups.filter_map(|group| read_to_string(group.join(file)).ok()?.trim().parse().ok()).min()
}

fn parse(line: &str) -> Option<(&'static str, &'static str, &str)> {
    let mut fields = line.splitn(3, ':');
    match (fields.next()?, fields.next()?, fields.next()?) {
        ("0", "", path) => Some(("/sys/fs/cgroup", "memory.max", path)),
        (_, controllers, path) if controllers.split(',').any(|name| name == "memory") => {
            Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_versions() {
        assert_eq!(parse("0::/user.slice/a:b"), Some(("/sys/fs/cgroup", "memory.max", "/user.slice/a:b")));
        assert_eq!(parse("4:memory:/jobs"), Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "/jobs")));
        assert_eq!(parse("2:cpu,cpuacct:/"), None);
        assert_eq!(parse("nonsense"), None);
    }
}
