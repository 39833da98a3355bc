//! The stack of a call, as it is: unwound later, by somebody who can read the files.

// UNSAFETY: has the kernel copy the program's stack.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::entry::{Frame, Site};
use crate::gate::{self, safe};
use crate::session::check::{STACK_WORDS, Stack};

const PROCESS_VM_READV: usize = 310;

/// The registers that unwinding begins with, and the words from the stack pointer on.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Snapshot {
    ip: usize,
    sp: usize,
    bp: usize,
    bx: usize,
    used: usize,
    words: [u64; STACK_WORDS],
}

impl Snapshot {
    /// Takes the stack of the call at `site`.
    pub(crate) fn take(&mut self, frame: &Frame, site: &Site) {
        (self.ip, self.sp, self.bp, self.bx) = (site.back, frame.stack(), frame.rbp, frame.rbx);
        self.used = copy(self.sp, self.words.as_mut_ptr());
    }

    /// Puts it into a finding.
    pub(crate) fn put(&self, stack: &Stack) {
        put_registers(stack, [self.ip, self.sp, self.bp, self.bx, self.used]);
        for (to, from) in stack.words.iter().zip(&self.words).take(self.used) {
            to.store(*from, Ordering::Relaxed);
        }
    }
}

/// Takes the stack of the call at `site` into a finding.
pub(crate) fn put(frame: &Frame, site: &Site, stack: &Stack) {
    let used = copy(frame.stack(), stack.words.as_ptr().cast_mut().cast());
    put_registers(stack, [site.back, frame.stack(), frame.rbp, frame.rbx, used]);
}

/// A finding without one.
pub(crate) fn put_none(stack: &Stack) {
    put_registers(stack, [0; 5]);
}

fn put_registers(stack: &Stack, registers: [usize; 5]) {
    let places: [&AtomicU64; 5] = [&stack.ip, &stack.sp, &stack.bp, &stack.bx, &stack.used];
    for (place, value) in places.into_iter().zip(registers) {
        place.store(value as u64, Ordering::Relaxed);
    }
}

/// Copies the stack from `sp` on, as much as there is and fits; how many words.
fn copy(sp: usize, to: *mut u64) -> usize {
    let local = [to as usize, STACK_WORDS * size_of::<u64>()];
    let remote = [sp, STACK_WORDS * size_of::<u64>()];
    let own = safe::getpid() as usize;
    let args = [own, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: the kernel writes into the room for the words only, which is ours (of a finding, shared as atomics);
    // it stops where the stack ends.
    let copied = unsafe { gate::call(PROCESS_VM_READV, &args) };
    usize::try_from(copied).unwrap_or(0) / size_of::<u64>()
}
