//! What the kernel reports: samples of tracepoints, from a ring for each processor.
//!
//! Everything is asked for of the whole machine, since a change of an address space may be made by any task. The rings
//! are read without anybody being waited for; what finds one full is lost, and the kernel counts it.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use anyhow::{Context, Result};
use perf_event::events::Tracepoint as Event;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::tracefs::{Field, Tracefs};

/// The rings of all processors together take no more than this, in bytes.
const MOST: usize = 256 << 20;
/// A ring for invalidations; a sample takes about 250 bytes.
const LARGE: usize = 32 << 20;
/// A ring for what tasks do.
const SMALL: usize = 256 << 10;
/// Frames of a call chain.
const DEEPEST: u16 = 40;

/// `PERF_REG_X86_IP`, as a bit.
const REGISTER_IP: u64 = 1 << 8;
const RECORD_LOST: u32 = 2;
const RECORD_THROTTLE: u32 = 5;
const RECORD_SAMPLE: u32 = 9;

/// Something that a task did, or that was done in its context.
#[derive(Debug)]
pub struct Happening {
    /// Nanoseconds of `CLOCK_MONOTONIC_RAW`.
    pub time: u64,
    /// The process, in this process's pid namespace.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// The kernel told KVM to forget a range.
    Invalidated(Invalidated),
    /// The task has made another one.
    NewTask {
        /// Its thread id.
        child: u32,
        /// The flags of its `clone`.
        flags: u64,
    },
    /// The task has become another program.
    Exec {
        /// Its thread id before: that of its process, unless another thread than the first did it.
        before: u32,
    },
    /// The task is at its end.
    Exit,
}

/// A range that the kernel told KVM to forget.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Where the kernel was, innermost first.
    pub chain: Box<[u64]>,
    /// Where the thread was in user space; 0: a task of the kernel.
    pub user: u64,
    /// Another watched process than the task's has something mapped there. Found out if it matters: if the task is none
    /// of the program's, or changes a file in all that map it.
    pub elsewhere: bool,
}

/// The rings.
pub struct Kernel {
    points: Points,
    rings: Vec<Sampler>,
    lost: u64,
}

/// The tracepoints and their fields.
#[derive(Debug)]
struct Points {
    unmap: u64,
    start: Field,
    end: Field,
    new_task: u64,
    child: Field,
    flags: Field,
    exec: u64,
    before: Field,
    exit: u64,
}

impl Kernel {
    /// Begins to listen.
    pub fn listen(tracefs: &Tracefs) -> Result<Kernel> {
        let unmap = tracefs.tracepoint("kvm/kvm_unmap_hva_range")?;
        let new_task = tracefs.tracepoint("task/task_newtask")?;
        let exec = tracefs.tracepoint("sched/sched_process_exec")?;
        let exit = tracefs.tracepoint("sched/sched_process_exit")?;
        let points = Points {
            unmap: unmap.id,
            start: unmap.field("start")?,
            end: unmap.field("end")?,
            new_task: new_task.id,
            child: new_task.field("pid")?,
            flags: new_task.field("clone_flags")?,
            exec: exec.id,
            before: exec.field("old_pid")?,
            exit: exit.id,
        };
        let cpus = online()?;
        let large = LARGE.min(MOST / cpus.len().max(1)).max(1 << 20);
        let mut rings = Vec::new();
        // Tasks first: who they are must be known before what they do.
        for (id, bytes) in [(new_task.id, SMALL), (exec.id, SMALL), (exit.id, SMALL), (unmap.id, large)] {
            for &cpu in &cpus {
                rings.push(ring(id, cpu, bytes).map_err(explain)?);
            }
        }
        Ok(Kernel { points, rings, lost: 0 })
    }

    /// Appends what has come. Returns how full the fullest ring was, from 0 to 1.
    pub fn read(&mut self, to: &mut Vec<Happening>) -> f64 {
        let mut fullest: f64 = 0.0;
        for ring in &mut self.rings {
            let mut bytes = 0;
            while let Some(record) = ring.next_record() {
                let data = record.to_contiguous();
                bytes += data.len() + 8;
                match record.ty() {
                    RECORD_SAMPLE => match self.points.sample(&data) {
                        Some(happening) => to.push(happening),
                        None => self.lost += 1,
                    },
                    // The id, then how many.
                    RECORD_LOST => self.lost += word(&data, 8).unwrap_or(1).max(1),
                    RECORD_THROTTLE => self.lost += 1,
                    _ => {}
                }
                // More comes while we read: the next round is for that.
                if bytes > LARGE {
                    break;
                }
            }
            fullest = fullest.max(bytes as f64 / LARGE as f64);
        }
        fullest
    }

    /// Samples that were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

impl Points {
    /// A sample: pid and tid, time, the call chain, the tracepoint's fields, the registers.
    fn sample(&self, data: &[u8]) -> Option<Happening> {
        let [pid, tid] = [0, 4].map(|at| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?)));
        let time = word(data, 8)?;
        let frames = word(data, 16)? as usize;
        let raw_at = 24 + frames.checked_mul(8)?;
        let chain = data.get(24..raw_at)?;
        let raw_len = u32::from_ne_bytes(data.get(raw_at..raw_at + 4)?.try_into().ok()?) as usize;
        let raw = data.get(raw_at + 4..raw_at + 4 + raw_len)?;
        let id = u64::from(u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?));
        let what = if id == self.unmap {
            let registers_at = raw_at + 4 + raw_len;
            let has_registers = word(data, registers_at)? != 0;
            let user = if has_registers { word(data, registers_at + 8)? } else { 0 };
            // Words that are no addresses say whose frames follow.
            let is_address = |frame: &u64| *frame < 0xffff_ffff_ffff_f000;
            let chain = (0..frames).filter_map(|n| word(chain, 8 * n)).filter(is_address).collect();
            let (start, end) = (self.start.read(raw)?, self.end.read(raw)?);
            What::Invalidated(Invalidated { start, end, chain, user, elsewhere: false })
        } else if id == self.new_task {
            What::NewTask { child: self.child.read(raw)? as u32, flags: self.flags.read(raw)? }
        } else if id == self.exec {
            What::Exec { before: self.before.read(raw)? as u32 }
        } else if id == self.exit {
            What::Exit
        } else {
            return None;
        };
        Some(Happening { time, pid: pid?, tid: tid?, what })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn ring(id: u64, cpu: usize, bytes: usize) -> io::Result<Sampler> {
    let mut builder = Builder::new(Event::with_id(id));
    builder
        .any_pid()
        .one_cpu(cpu)
        .include_kernel()
        .sample_period(1)
        .sample(
            SampleFlag::TID
                | SampleFlag::TIME
                | SampleFlag::CALLCHAIN
                | SampleFlag::RAW
                | SampleFlag::REGS_USER,
        )
        .sample_regs_user(REGISTER_IP)
        .exclude_callchain_user(true)
        .sample_max_stack(DEEPEST)
        .clockid(Clock::MONOTONIC_RAW)
        // Nobody waits for it, and waking somebody costs more than the sample.
        .wakeup_watermark(bytes)
        .enabled(true);
    builder.build()?.sampled(bytes)
}

fn explain(error: io::Error) -> anyhow::Error {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let paranoid = paranoid.trim();
    let remedy = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => format!(
            "the audit listens to the whole machine: run it as root (CAP_PERFMON), or with sysctl \
             kernel.perf_event_paranoid=-1 (it is {paranoid})"
        ),
        Some(libc::ENOSYS | libc::ENOENT) => "this kernel has no perf events (CONFIG_PERF_EVENTS)".to_owned(),
        Some(libc::ENOMEM) => "no memory for its rings".to_owned(),
        Some(libc::EMFILE) => "too many open files (ulimit -n)".to_owned(),
        _ => "perf_event_open".to_owned(),
    };
    anyhow::Error::new(error).context(format!("cannot listen to the kernel's tracepoints: {remedy}"))
}

/// The processors that run.
fn online() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    cpus(text.trim()).with_context(|| format!("{path} says {text:?}"))
}

/// Reads a list like `0-3,8`.
fn cpus(list: &str) -> Option<Vec<usize>> {
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(cpus("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpus("0"), Some(vec![0]));
        assert_eq!(cpus("x"), None);
    }
}
