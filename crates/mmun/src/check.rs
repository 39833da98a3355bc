//! Findings of `mmun run --check`: read from the session while the program runs, told apart by their call stacks.

use std::sync::atomic::Ordering;

use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::session::PROCESSES;
use mmu_notifier_primary::session::check::{self, Registered, Stack, Verdict};

use crate::clock::{Clock, Scale};
use crate::session::Session;
use crate::summary::{At, Caller, Check, Finding};
use crate::symbols::Symbols;
use crate::unwind::Unwinder;

/// Different findings of a run; more are counted as lost.
const MOST: usize = 1000;

/// What was found so far.
#[derive(Debug, Default)]
pub struct Collector {
    unwinder: Unwinder,
    findings: Vec<Finding>,
    lost: u64,
}

impl Collector {
    /// Reads what processes have found, and makes room; how much there was. To be called before their entries are freed.
    pub fn collect(&mut self, session: &Session, symbols: &mut Symbols, clock: &Clock) -> usize {
        let Some(area) = session.check() else { return 0 };
        let mut read = 0;
        for (state, finding) in area.states.iter().zip(&area.findings) {
            // Acquire pairs with the Release of who has written it.
            if state.load(Ordering::Acquire) != 2 {
                continue;
            }
            if let Some(found) = self.read(session, symbols, &clock.scale(), finding) {
                self.add(found);
            }
            // Release pairs with the Acquire of who writes the next one here.
            state.store(0, Ordering::Release);
            read += 1;
        }
        read
    }

    fn add(&mut self, found: Finding) {
        let same = |known: &&mut Finding| {
            (known.verdict, known.kind, known.taken_back, &known.registered.stack, &known.changed_by.stack)
                == (
                    found.verdict,
                    found.kind,
                    found.taken_back,
                    &found.registered.stack,
                    &found.changed_by.stack,
                )
                && known.changed_by.call.split('(').next() == found.changed_by.call.split('(').next()
        };
        if let Some(known) = self.findings.iter_mut().find(same) {
            known.times += found.times;
            known.registrations += found.registrations;
            known.changed += found.changed;
            known.pages += found.pages;
            known.other += found.other;
            known.empty += found.empty;
            known.unmapped += found.unmapped;
        } else if self.findings.len() < MOST {
            self.findings.push(found);
        } else {
            self.lost += 1;
        }
    }

    /// Nothing that a broken program may have written is taken at its word.
    fn read(
        &mut self,
        session: &Session,
        symbols: &mut Symbols,
        scale: &Scale,
        finding: &check::Finding,
    ) -> Option<Finding> {
        let small = |number: &std::sync::atomic::AtomicU32| number.load(Ordering::Relaxed);
        let large = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        let entry = small(&finding.process) as usize;
        let process = (entry < PROCESSES).then(|| session.process(entry))?;
        let mut stack = |stack: &Stack| -> Vec<Caller> {
            let addresses = self.unwinder.addresses(symbols, entry, process, stack);
            let places = addresses.into_iter().map(|address| symbols.caller(entry, process, address));
            let places: Vec<u32> = places.collect();
            places.into_iter().map(|place| symbols.get(place).clone()).collect()
        };
        let descriptor = small(&finding.descriptor).cast_signed();
        Some(Finding {
            verdict: Verdict::from_u32(small(&finding.verdict))?,
            kind: Registered::from_u32(small(&finding.kind))?,
            times: 1,
            registrations: small(&finding.count).into(),
            descriptor: (descriptor >= 0).then_some(descriptor),
            index: large(&finding.index),
            start: large(&finding.start),
            len: large(&finding.len),
            from: large(&finding.from),
            changed: large(&finding.changed),
            pages: large(&finding.pages),
            other: large(&finding.other),
            empty: large(&finding.empty),
            unmapped: large(&finding.unmapped),
            inherited: small(&finding.inherited) != 0,
            taken_back: small(&finding.taken_back) != 0,
            pid: process.pid.load(Ordering::Relaxed),
            registered: At {
                call: call_name(large(&finding.registering)),
                tid: small(&finding.registered_thread),
                time_ns: scale.since_start(large(&finding.registered_time)),
                stack: stack(&finding.registered_at),
            },
            changed_by: At {
                call: call(large(&finding.call), &[0, 1, 2, 3].map(|nth| large(&finding.args[nth]))),
                tid: small(&finding.changed_thread),
                time_ns: scale.since_start(large(&finding.changed_time)),
                stack: stack(&finding.changed_at),
            },
        })
    }

    /// Everything, if registrations were checked.
    pub fn summary(self, session: &Session) -> Option<Check> {
        let area = session.check()?;
        let get = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        let registered = Registered::ALL
            .into_iter()
            .map(|kind| (kind, get(&area.registered[kind as usize]), get(&area.bytes[kind as usize])))
            .filter(|(_, count, _)| *count > 0)
            .collect();
        let mut findings = self.findings;
        findings.sort_by_key(|finding| (finding.taken_back, finding.verdict, finding.changed_by.time_ns));
        Some(Check {
            registered,
            changes: get(&area.changes),
            compared: get(&area.compared),
            untracked: get(&area.untracked),
            missed: get(&area.missed),
            lost: get(&area.lost) + self.lost,
            unchecked: get(&area.unchecked),
            blind: get(&area.blind),
            findings,
        })
    }
}

/// A system call by its number: those that change memory, and those that register it.
pub fn call_name(number: u64) -> String {
    match number {
        16 => "ioctl".to_owned(),
        149 => "mlock".to_owned(),
        150 => "munlock".to_owned(),
        151 => "mlockall".to_owned(),
        152 => "munlockall".to_owned(),
        325 => "mlock2".to_owned(),
        426 => "io_uring_enter".to_owned(),
        427 => "io_uring_register".to_owned(),
        _ => match usize::try_from(number).ok().and_then(Syscall::from_number) {
            Some(call) => call.name().to_owned(),
            None => format!("system call {number}"),
        },
    }
}

/// The same with what its arguments say.
fn call(number: u64, args: &[u64; 4]) -> String {
    const MAP_FIXED: u64 = 0x10;
    let call = usize::try_from(number).ok().and_then(Syscall::from_number);
    let name = call_name(number);
    match call {
        Some(Syscall::Madvise) => format!("{name}({})", advice(args[2] as u32)),
        Some(Syscall::ProcessMadvise) => format!("{name}({})", advice(args[3] as u32)),
        Some(Syscall::Mprotect | Syscall::PkeyMprotect) => format!("{name}({})", protection(args[2])),
        Some(Syscall::Mmap) if args[3] & MAP_FIXED != 0 => format!("{name}(MAP_FIXED)"),
        Some(Syscall::Mremap) if args[3] & 4 != 0 => format!("{name}(MREMAP_DONTUNMAP)"),
        Some(Syscall::Mremap) if args[3] & 2 != 0 => format!("{name}(MREMAP_FIXED)"),
        Some(Syscall::Fallocate) => format!("{name}({:#x})", args[1]),
        _ => name,
    }
}

fn protection(bits: u64) -> String {
    let names = [(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
    let set: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "PROT_NONE".to_owned() } else { set.join("|") }
}

fn advice(number: u32) -> String {
    let name = match number {
        4 => "MADV_DONTNEED",
        8 => "MADV_FREE",
        9 => "MADV_REMOVE",
        13 => "MADV_UNMERGEABLE",
        21 => "MADV_PAGEOUT",
        24 => "MADV_DONTNEED_LOCKED",
        25 => "MADV_COLLAPSE",
        100 => "MADV_HWPOISON",
        102 => "MADV_GUARD_INSTALL",
        _ => return format!("advice {number}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_say_what_matters() {
        assert_eq!(call(11, &[0; 4]), "munmap");
        assert_eq!(call(9, &[0, 0, 3, 0x32]), "mmap(MAP_FIXED)");
        assert_eq!(call(28, &[0, 0, 4, 0]), "madvise(MADV_DONTNEED)");
        assert_eq!(call(28, &[0, 0, 77, 0]), "madvise(advice 77)");
        assert_eq!(call(10, &[0, 0, 1, 0]), "mprotect(PROT_READ)");
        assert_eq!(call(10, &[0, 0, 0, 0]), "mprotect(PROT_NONE)");
        assert_eq!(call(25, &[0, 0, 0, 3]), "mremap(MREMAP_FIXED)");
        assert_eq!(call_name(999), "system call 999");
    }
}
