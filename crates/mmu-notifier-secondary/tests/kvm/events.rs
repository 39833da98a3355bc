//! What the kernel's own MMU notifier tells KVM, as the tracepoint `kvm:kvm_unmap_hva_range` reports it.

// UNSAFETY: system calls for which there is no crate: a file system of trace events that is mounted nowhere, and a filter.
#![expect(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use mmu_notifier::Range;
use perf_event::data::Record;
use perf_event::events::Tracepoint;
use perf_event::{Builder, SampleFlag, Sampler};

/// The kernel tells KVM that a range is about to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmapped {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub(crate) time: u64,
    /// The thread in which that happens.
    pub(crate) thread: i32,
    pub(crate) range: Range,
}

/// All such events that hit a range, whoever makes them.
pub(crate) struct Events {
    /// One for each processor of this machine.
    rings: Vec<Sampler>,
}

impl Events {
    /// Begins to listen; `None`: skipped, and said so.
    pub(crate) fn new(test: &str, hit: Range) -> Option<Events> {
        match Events::open(hit) {
            Ok(events) => Some(events),
            Err(error) => {
                eprintln!("SKIPPED: {test}: the tracepoint kvm:kvm_unmap_hva_range: {error}");
                None
            }
        }
    }

    fn open(hit: Range) -> io::Result<Events> {
        let id = tracepoint_id(c"events/kvm/kvm_unmap_hva_range/id")?;
        let filter = CString::new(format!("start < {:#x} && end > {:#x}", hit.end(), hit.start()))?;
        let mut rings = Vec::new();
        for cpu in online_cpus()? {
            let mut builder = Builder::new(Tracepoint::with_id(id));
            builder.any_pid().one_cpu(cpu).include_kernel().sample_period(1);
            builder.sample(SampleFlag::TID | SampleFlag::TIME | SampleFlag::RAW);
            builder.clockid(perf_event::Clock::MONOTONIC);
            let counter = builder.build()?;
            const PERF_EVENT_IOC_SET_FILTER: u64 = 0x4008_2406;
            // SAFETY: the filter is a string that ends.
            let result =
                unsafe { libc::ioctl(counter.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER, filter.as_ptr()) };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut ring = counter.sampled(1 << 18)?;
            ring.enable()?;
            rings.push(ring);
        }
        Ok(Events { rings })
    }

    /// What has come since the last call, in order.
    pub(crate) fn take(&mut self) -> Vec<Unmapped> {
        let mut events = Vec::new();
        for ring in &mut self.rings {
            while let Some(record) = ring.next_record() {
                match record.parse_record().expect("a record") {
                    Record::Sample(sample) => events.push(Unmapped {
                        time: sample.time().expect("a time"),
                        thread: sample.tid().expect("a thread") as i32,
                        range: range_of(sample.raw().expect("the event's fields")),
                    }),
                    Record::Lost(lost) => panic!("{lost:?}: the ring is too small"),
                    Record::LostSamples(lost) => panic!("{lost:?}: the ring is too small"),
                    _ => {}
                }
            }
        }
        events.sort_by_key(|event| event.time);
        events
    }
}

/// Behind eight bytes that all events have: start and end.
fn range_of(fields: &[u8]) -> Range {
    let at = |at: usize| usize::from_ne_bytes(fields[at..at + 8].try_into().expect("eight bytes"));
    Range::new(at(8), at(16)).expect("a range")
}

/// The number of the event, from a trace file system that is mounted nowhere but here.
fn tracepoint_id(path: &std::ffi::CStr) -> io::Result<u64> {
    let fs = descriptor(
        // SAFETY: the name is a string.
        unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), 1) },
    )?;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    let none = std::ptr::null::<u8>();
    // SAFETY: this command has no arguments.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    let root = descriptor(
        // SAFETY: has no pointers.
        unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, 0) },
    )?;
    let file = descriptor(
        // SAFETY: the path is a string.
        i64::from(unsafe { libc::openat(root.as_raw_fd(), path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }),
    )?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text)?;
    text.trim().parse().map_err(io::Error::other)
}

fn descriptor(result: i64) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody has.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn online_cpus() -> io::Result<Vec<usize>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

/// The calling thread, as the events have it.
pub(crate) fn this_thread() -> i32 {
    // SAFETY: has no arguments.
    unsafe { libc::gettid() }
}
