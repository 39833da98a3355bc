//! Whose memory a range is: the kernel's report does not say, so the mappings of the processes do.

use std::collections::HashMap;
use std::fs;

/// The mappings of processes, as they were when first asked for in a round.
#[derive(Debug, Default)]
pub struct Mappings {
    processes: HashMap<u32, Vec<(u64, u64)>>,
}

impl Mappings {
    /// The first of these processes that has something mapped in the range.
    pub fn owner(&mut self, mut processes: impl Iterator<Item = u32>, start: u64, end: u64) -> Option<u32> {
        processes.find(|&pid| {
            let mappings = self.processes.entry(pid).or_insert_with(|| read(pid));
            let next = mappings.partition_point(|(_, behind)| *behind <= start);
            mappings.get(next).is_some_and(|(first, _)| *first < end)
        })
    }

    /// Forgets them: the next that asks sees them as they are then.
    pub fn forget(&mut self) {
        self.processes.clear();
    }
}

/// What a process shares with others: mappings of which a change may come from elsewhere.
pub fn shared(pid: u32) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let is_shared = |line: &&str| line.split(' ').nth(1).is_some_and(|rights| rights.ends_with('s'));
    text.lines().filter(is_shared).filter_map(range).collect()
}

fn read(pid: u32) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    text.lines().filter_map(range).collect()
}

fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_owners() {
        let mut mappings = Mappings::default();
        mappings.processes.insert(1, vec![(0x1000, 0x3000), (0x5000, 0x6000)]);
        mappings.processes.insert(2, vec![(0x4000, 0x5000)]);
        let mut owner = |start, end| mappings.owner([1, 2].into_iter(), start, end);
        assert_eq!(owner(0x2000, 0x3000), Some(1));
        assert_eq!(owner(0x3000, 0x4000), None);
        assert_eq!(owner(0x3000, 0x5000), Some(2));
        assert_eq!(owner(0x4fff, 0x5001), Some(1), "the first of two");
        assert_eq!(owner(0x6000, 0x7000), None);
    }

    #[test]
    fn this_process_owns_its_memory() {
        let here = Box::new(5);
        let at = &raw const *here as u64;
        let me = std::process::id();
        assert_eq!(Mappings::default().owner([me].into_iter(), at, at + 1), Some(me));
    }
}
