//! The thread that waits for pressure.
//!
//! It allocates nothing and touches no memory that is not there already: whoever waits for it may be in the middle of being
//! given a page, and there are none. So its stack is made present and locked before the first wait.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mmu_notifier::Range;

use super::locked::lock;
use super::{Shared, StartError, Walk};
use crate::gate::safe::{self, POLLIN, POLLPRI, Poll};
use crate::maps;

/// The thread's stack, in bytes, and what of it is locked below the frame that locks it: subscribers run there.
pub(super) const STACK: usize = 256 << 10;
const LOCKED: usize = 192 << 10;
/// The same above: the frames of who has started the thread, and its thread-local storage.
const ABOVE: usize = 32 << 10;

/// What becomes ready when there is pressure.
#[derive(Debug)]
pub(super) enum Alarm {
    /// A counter of ours, which the kernel counts up.
    Counter(safe::File),
    /// A file whose change the kernel tells, until it is read again.
    Notified(File),
    /// A trigger of pressure stall information.
    Pressure(File),
    /// Somebody else's.
    Given(OwnedFd),
}

/// How to learn of pressure.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) alarm: Option<Alarm>,
    /// A file with the bytes in use, and from how many on there is pressure.
    pub(super) usage: Option<(File, u64)>,
    /// The killer of the group, which is to be stopped.
    pub(super) killer: Option<Killer>,
    /// How often to look.
    pub(super) every: Option<Duration>,
}

impl Watch {
    pub(super) fn level(&self) -> Option<u64> {
        self.usage.as_ref().map(|(_, level)| *level)
    }

    /// Bytes in use, if that is known.
    pub(super) fn usage(&self) -> Option<u64> {
        let mut text = [0; 32];
        number(read(&self.usage.as_ref()?.0, &mut text)?)
    }

    /// Whether there is pressure now; `None` if that cannot be known.
    pub(super) fn is_pressed(&self) -> Option<bool> {
        if let Some(killer) = &self.killer {
            return has_line(&killer.control, b"under_oom 1");
        }
        Some(self.usage()? >= self.level()?)
    }

    /// Lets the killer of the group go on, if it was stopped here; whether it was.
    pub(super) fn let_the_killer_go(&self) -> bool {
        self.killer.as_ref().is_some_and(Killer::let_go)
    }

    /// What to wait for.
    fn poll(&self) -> Poll {
        let (descriptor, events) = match &self.alarm {
            None => (-1, 0),
            Some(Alarm::Counter(counter)) => (counter.descriptor() as i32, POLLIN),
            Some(Alarm::Notified(file) | Alarm::Pressure(file)) => (file.as_raw_fd(), POLLPRI),
            Some(Alarm::Given(descriptor)) => (descriptor.as_raw_fd(), POLLIN),
        };
        Poll { descriptor, events, came: 0 }
    }

    /// A file that was never read counts as changed.
    fn forget_the_past(&self) {
        if let Some(Alarm::Notified(_)) = &self.alarm {
            self.hear();
        }
    }

    /// Takes what has come, so that the next one is heard. False: nothing will come any more.
    fn hear(&self) -> bool {
        let mut bytes = [0; 512];
        match &self.alarm {
            None => false,
            Some(Alarm::Counter(counter)) => counter.read(&mut bytes[..8]).is_ok(),
            Some(Alarm::Notified(file)) => read(file, &mut bytes).is_some(),
            Some(Alarm::Pressure(_)) => true,
            Some(Alarm::Given(descriptor)) => {
                const AGAIN: i32 = 11;
                let file = safe::File::borrowed(descriptor.as_raw_fd() as usize);
                match file.read(&mut bytes) {
                    Ok(read) => read > 0,
                    Err(error) => error.0 == AGAIN,
                }
            }
        }
    }
}

/// The OOM killer of a control group. Goes on when this is dropped, if it was stopped here.
#[derive(Debug)]
pub(super) struct Killer {
    /// `memory.oom_control`.
    control: File,
    has_stopped: AtomicBool,
    /// The process that it is for.
    pid: u32,
}

impl Killer {
    /// Stops it: who meets the limit waits. If it was stopped already, it is left at that.
    pub(super) fn stop(control: File) -> std::io::Result<Killer> {
        let is_stopped = has_line(&control, b"oom_kill_disable 1").unwrap_or(false);
        if !is_stopped {
            control.write_all_at(b"1", 0)?;
        }
        Ok(Killer { control, has_stopped: AtomicBool::new(!is_stopped), pid: safe::getpid() })
    }

    fn let_go(&self) -> bool {
        self.has_stopped.swap(false, Ordering::Relaxed) && self.control.write_all_at(b"0", 0).is_ok()
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        // A forked child leaves the group as it is.
        if safe::getpid() == self.pid {
            self.let_go();
        }
    }
}

fn has_line(file: &File, wanted: &[u8]) -> Option<bool> {
    let mut text = [0; 256];
    Some(read(file, &mut text)?.split(|&byte| byte == b'\n').any(|line| line == wanted))
}

fn read<'a>(file: &File, text: &'a mut [u8]) -> Option<&'a [u8]> {
    let read = file.read_at(text, 0).ok()?;
    Some(&text[..read])
}

fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Locks the memory that the calling thread is going to need: what of its stack it has to unlock again. To be called at the
/// bottom of the stack.
pub(super) fn lock_own_memory() -> Result<Option<Range>, StartError> {
    let stack = std::hint::black_box([0u8; 1]);
    let (here, code) = (stack.as_ptr() as usize, watch as fn(&Shared) as usize);
    let (mut own, mut text) = (None, None);
    let read = maps::for_each(|mapping| {
        let holds = |address| mapping.range.start() <= address && address < mapping.range.end();
        if holds(here) {
            let near = Range::new(here.saturating_sub(LOCKED), here + ABOVE);
            own = near.ok().and_then(|near| near.intersection(&mapping.range));
        }
        if holds(code) {
            text = Some(mapping.range);
        }
    });
    read.map_err(|errno| StartError::Lock { bytes: STACK, errno: errno.0 })?;
    lock(own)?;
    // The code may be more than this user may lock; then it is there now, and no more than that.
    let _ = lock(text);
    Ok(own)
}

/// What the thread does until it is told to stop.
pub(super) fn watch(shared: &Shared) {
    let watch = &shared.watch;
    let mut alarm = watch.poll();
    watch.forget_the_past();
    // What is above the threshold already passes no threshold.
    let mut pressed = watch.is_pressed() == Some(true);
    let mut walk = Walk::Anew;
    // What the last alarm wanted has not been freed, as it is marked.
    let mut is_unmet = false;
    loop {
        if pressed {
            let reaped = shared.walk(walk);
            let is_left = reaped.is_none_or(|it| it.left > 0);
            let freed = reaped.is_none_or(|it| it.discarded > 0);
            is_unmet = shared.table.marked() > 0;
            pressed = watch.is_pressed().unwrap_or(is_left);
            if pressed && !is_left && !freed && watch.let_the_killer_go() {
                shared.counters.given_up.fetch_add(1, Ordering::Relaxed);
            }
        }
        let timeout = if pressed { Some(shared.retry_after) } else { watch.every };
        let wake = Poll { descriptor: shared.wake.descriptor() as i32, events: POLLIN, came: 0 };
        let mut polls = [wake, alarm];
        safe::poll(&mut polls, timeout);
        // Acquire pairs with the Release of who stops it.
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        walk = Walk::Again;
        let [woken, heard] = polls.map(|poll| poll.came != 0);
        if woken {
            let _ = shared.wake.read(&mut [0; 8]);
        }
        if heard {
            shared.counters.alarms.fetch_add(1, Ordering::Relaxed);
            walk = Walk::Anew;
            if !watch.hear() {
                alarm.descriptor = -1;
            }
        }
        pressed = watch.is_pressed().unwrap_or(pressed || heard || woken && is_unmet);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn is_heard(watch: &Watch, patience: Duration) -> bool {
        let mut polls = [watch.poll()];
        safe::poll(&mut polls, Some(patience));
        polls[0].came != 0
    }

    /// With another file of the second version that the kernel tells of in the same way: there may be no memory controller.
    #[test]
    fn a_file_of_a_group_is_heard_of_when_it_changes_and_not_before() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let group = mount
            .map(|mount| PathBuf::from(mount).join(format!("mmu-notifier-watch-{}", std::process::id())));
        let Some(group) = group.filter(|group| std::fs::create_dir(group).is_ok()) else {
            eprintln!(
                "SKIPPED: a_file_of_a_group_is_heard_of: no control groups of version 2, or they cannot be made"
            );
            return;
        };
        let alarm = Alarm::Notified(File::open(group.join("cgroup.events")).unwrap());
        let watch = Watch { alarm: Some(alarm), ..Watch::default() };
        watch.forget_the_past();
        assert!(!is_heard(&watch, Duration::ZERO));
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        std::fs::write(group.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
        assert!(is_heard(&watch, Duration::from_secs(60)));
        assert!(watch.hear());
        assert!(!is_heard(&watch, Duration::ZERO), "heard once");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(is_heard(&watch, Duration::from_secs(60)));
        drop(watch);
        while std::fs::remove_dir(&group).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn numbers_end_where_the_line_ends() {
        assert_eq!(number(b"4096\n"), Some(4096));
        assert_eq!(number(b"max\n"), None);
        assert_eq!(number(b""), None);
    }
}
