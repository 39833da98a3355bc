//! The signal that [strict mode](crate::strict) lives by, kept from the program: SIGSYS is never blocked and always ours.
//!
//! The kernel ends a process that is trapped while it blocks SIGSYS. So the bit is taken out of every mask that the program
//! hands to the kernel - on a copy, as the program's may be read-only - and what it does with the signal itself is only
//! remembered: who asks gets it back, and a SIGSYS that is no trap of ours goes there.

// UNSAFETY: changes the program's arguments, and the mask in a frame of its signal handler.
#![expect(unsafe_code)]

use core::mem::offset_of;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::entry::{Frame, Site};
use crate::gate::{self, safe};
use crate::hook::Way;
use crate::primary::Primary;
use crate::strict;
use crate::strict::Context;

pub(crate) const SIGSYS: usize = 31;
/// In a mask of signals.
const BIT: usize = 1 << (SIGSYS - 1);
/// Bytes of a mask of signals.
pub(crate) const MASK: usize = 8;

pub(crate) const RT_SIGACTION: usize = 13;
pub(crate) const RT_SIGPROCMASK: usize = 14;
pub(crate) const RT_SIGRETURN: usize = 15;
const RT_SIGSUSPEND: usize = 130;
pub(crate) const PRCTL: usize = 157;
const SECCOMP: usize = 317;
const PSELECT6: usize = 270;
const PPOLL: usize = 271;
const EPOLL_PWAIT: usize = 281;
const IO_PGETEVENTS: usize = 333;
const IO_URING_ENTER: usize = 426;
const EPOLL_PWAIT2: usize = 441;

pub(crate) const SIG_UNBLOCK: usize = 1;
const EINVAL: isize = 22;
const EFAULT: isize = 14;

/// The kernel's `struct sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: usize,
    pub(crate) restorer: usize,
    pub(crate) mask: usize,
}

/// What the program wants to be done with SIGSYS. A handler that comes while another thread changes it may see half of
/// each; so it would of two calls.
static PROGRAM: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

pub(crate) fn programs_action() -> Action {
    let [handler, flags, restorer, mask] = PROGRAM.each_ref().map(|word| word.load(Ordering::Relaxed));
    Action { handler, flags, restorer, mask }
}

pub(crate) fn set_programs_action(action: &Action) {
    let words = [action.handler, action.flags, action.restorer, action.mask];
    for (place, word) in PROGRAM.iter().zip(words) {
        place.store(word, Ordering::Relaxed);
    }
}

/// Where a call has a mask of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// At the address in this argument.
    Argument(usize),
    /// In this argument is the address of an address and a size.
    Behind(usize),
    /// `io_uring_enter`: one of the two, by its flags.
    Uring,
    /// In a `struct sigaction`.
    Action,
    /// In the frame that a signal handler returns to.
    Frame,
    /// Nowhere: a `prctl`, which may want to have its own traps, or a filter that sends the signal; `seccomp`, which may, too.
    Nowhere,
}

fn place(number: usize) -> Option<Where> {
    Some(match number {
        RT_SIGACTION => Where::Action,
        RT_SIGPROCMASK => Where::Argument(1),
        RT_SIGRETURN => Where::Frame,
        RT_SIGSUSPEND => Where::Argument(0),
        PRCTL | SECCOMP => Where::Nowhere,
        PSELECT6 | IO_PGETEVENTS => Where::Behind(5),
        PPOLL => Where::Argument(3),
        EPOLL_PWAIT | EPOLL_PWAIT2 => Where::Argument(4),
        IO_URING_ENTER => Where::Uring,
        _ => return None,
    })
}

/// Whether a call can touch the signal.
#[inline(always)]
pub(crate) const fn concern(number: usize) -> bool {
    matches!(
        number,
        RT_SIGACTION
            | RT_SIGPROCMASK
            | RT_SIGRETURN
            | RT_SIGSUSPEND
            | PRCTL
            | SECCOMP
            | PSELECT6
            | PPOLL
            | EPOLL_PWAIT
            | IO_PGETEVENTS
            | IO_URING_ENTER
            | EPOLL_PWAIT2
    )
}

/// What has become of a call's arguments until it is done; lies in the frame of the entry code.
#[derive(Debug)]
pub(crate) struct Changed {
    /// Which argument is not the program's, and what that was.
    argument: usize,
    original: usize,
    /// What the kernel is given instead.
    copy: [usize; 4],
}

impl Changed {
    pub(crate) const NOTHING: Changed = Changed { argument: 0, original: 0, copy: [0; 4] };
}

/// Before such a call: takes the signal out of its mask.
pub(crate) fn before(primary: &Primary, frame: &mut Frame, site: &Site, changed: &mut Changed) -> Way {
    // Nothing is in the way, unless found out otherwise.
    frame.go = site.plain;
    let Some(place) = place(frame.rax) else { return Way::Out };
    let args = frame.args();
    let (argument, copy, address) = match place {
        Where::Argument(argument) => {
            if frame.rax == RT_SIGPROCMASK && args[0] == SIG_UNBLOCK {
                return Way::Out;
            }
            let Some(mask) = with_signal(args[argument]) else { return Way::Out };
            (argument, [mask, 0, 0, 0], 0)
        }
        Where::Behind(argument) => match behind(args[argument], 2) {
            Some(copy) => (argument, copy, 2),
            None => return Way::Out,
        },
        Where::Uring => {
            const EXT_ARG: usize = 1 << 3;
            if args[3] & EXT_ARG == 0 {
                let Some(mask) = with_signal(args[4]) else { return Way::Out };
                (4, [mask, 0, 0, 0], 0)
            } else {
                // struct io_uring_getevents_arg: address and size of the mask, and the address of a time.
                match behind(args[4], 3) {
                    Some(copy) => (4, copy, 3),
                    None => return Way::Out,
                }
            }
        }
        Where::Action if args[0] == SIGSYS => {
            frame.go = site.back;
            frame.rax = own_action(primary, &args) as usize;
            return Way::Out;
        }
        Where::Action => {
            let Some(action) = read::<4>(args[1]) else { return Way::Out };
            if action[3] & BIT == 0 {
                return Way::Out;
            }
            (1, [action[0], action[1], action[2], action[3] & !BIT], 0)
        }
        Where::Frame => {
            unblock_in_frame(frame.stack());
            return Way::Out;
        }
        Where::Nowhere => {
            const PR_SET_SECCOMP: usize = 22;
            if frame.rax == SECCOMP || args[0] == PR_SET_SECCOMP {
                strict::confined();
            } else if args[0] == strict::SET_SYSCALL_USER_DISPATCH {
                // As a kernel that does not have it.
                frame.go = site.back;
                frame.rax = -EINVAL as usize;
            }
            return Way::Out;
        }
    };
    *changed = Changed { argument, original: args[argument], copy };
    // Of a mask behind something, the copy begins with that.
    if address != 0 {
        changed.copy[0] = changed.copy.as_ptr() as usize + 3 * 8;
    }
    *frame.argument(argument) = changed.copy.as_ptr() as usize;
    frame.go = site.back;
    Way::Call
}

/// Behind it: the registers are the program's again.
pub(crate) fn after(frame: &mut Frame, changed: &Changed) {
    *frame.argument(changed.argument) = changed.original;
}

/// The program's mask at an address without the signal, if it has it.
fn with_signal(address: usize) -> Option<usize> {
    let [mask] = read(address)?;
    (mask & BIT != 0).then_some(mask & !BIT)
}

/// What is at an address, beginning with the address of a mask: `words` of it, and the mask last.
fn behind(address: usize, words: usize) -> Option<[usize; 4]> {
    let mut copy = [0; 4];
    if words == 2 {
        copy[..2].copy_from_slice(&read::<2>(address)?);
    } else {
        copy[..3].copy_from_slice(&read::<3>(address)?);
    }
    copy[3] = with_signal(copy[0])?;
    Some(copy)
}

/// Words of the program's; `None` if they are not there: the kernel will say so.
fn read<const WORDS: usize>(address: usize) -> Option<[usize; WORDS]> {
    if address == 0 {
        return None;
    }
    let mut words = [[0; 8]; WORDS];
    match safe::read_memory(address, words.as_flattened_mut()) {
        Ok(read) if read == WORDS * 8 => Some(words.map(usize::from_ne_bytes)),
        _ => None,
    }
}

/// `rt_sigaction` of the signal itself: it stays ours.
fn own_action(primary: &Primary, args: &[usize; 6]) -> isize {
    let new = if args[1] == 0 {
        None
    } else {
        match read::<4>(args[1]) {
            Some([handler, flags, restorer, mask]) => Some(Action { handler, flags, restorer, mask }),
            None => return -EFAULT,
        }
    };
    // The kernel judges the other arguments, and whether the old action can be written.
    // SAFETY: changes nothing but the old action, as the program wants.
    let answer = unsafe { gate::call(RT_SIGACTION, &[SIGSYS, 0, args[2], args[3], 0, 0]) };
    if answer != 0 {
        return answer;
    }
    if args[2] != 0 {
        // SAFETY: the kernel has just written it.
        unsafe { (args[2] as *mut Action).write_unaligned(programs_action()) };
    }
    // A vforked child has signal handlers of its own, and our memory.
    if let Some(new) = new
        && safe::getpid() == primary.pid()
    {
        set_programs_action(&new);
    }
    0
}

/// Makes the signal ours: out of this thread's mask and of those of all handlers that are there already.
pub(crate) fn take_over() {
    const SIGNALS: usize = 64;
    let mut action = Action::default();
    let at = &raw mut action as usize;
    for signal in 1..=SIGNALS {
        // SAFETY: writes to `action` only.
        let answer = unsafe { gate::call(RT_SIGACTION, &[signal, 0, at, MASK, 0, 0]) };
        if answer != 0 {
            continue;
        }
        if signal == SIGSYS {
            set_programs_action(&action);
        } else if action.handler > 1 && action.mask & BIT != 0 {
            action.mask &= !BIT;
            // SAFETY: the handler that is there, with one signal less blocked.
            unsafe { gate::call(RT_SIGACTION, &[signal, at, 0, MASK, 0, 0]) };
        }
    }
    unblock();
}

/// Takes the signal out of the mask that a return from a signal handler, with this stack pointer, puts in force.
pub(crate) fn unblock_in_frame(stack: usize) {
    let mask = (stack + offset_of!(Context, mask)) as *mut usize;
    // SAFETY: where the kernel reads the mask from next.
    unsafe { mask.write_unaligned(mask.read_unaligned() & !BIT) };
}

/// Keeps every other signal from the calling thread.
pub(crate) fn block_all_but_ours() {
    set(!BIT);
}

/// The mask of the calling thread.
pub(crate) fn get() -> usize {
    let mut mask = 0;
    // SAFETY: writes to `mask` only.
    unsafe { gate::call(RT_SIGPROCMASK, &[0, 0, &raw mut mask as usize, MASK, 0, 0]) };
    mask
}

/// Makes this the mask of the calling thread, but for the signal.
pub(crate) fn set(mask: usize) {
    const SIG_SETMASK: usize = 2;
    let mask = mask & !BIT;
    // SAFETY: reads the mask only.
    unsafe { gate::call(RT_SIGPROCMASK, &[SIG_SETMASK, &raw const mask as usize, 0, MASK, 0, 0]) };
}

/// Takes the signal out of this thread's mask.
pub(crate) fn unblock() {
    let mask = BIT;
    // SAFETY: reads the mask only.
    unsafe { gate::call(RT_SIGPROCMASK, &[SIG_UNBLOCK, &raw const mask as usize, 0, MASK, 0, 0]) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_name_the_same_calls() {
        for number in 0..512 {
            assert_eq!(place(number).is_some(), concern(number), "{number}");
        }
    }

    #[test]
    fn only_masks_with_the_signal_are_copied() {
        let (with, without) = ([BIT | 1], [1usize]);
        assert_eq!(with_signal(with.as_ptr() as usize), Some(1));
        assert_eq!(with_signal(without.as_ptr() as usize), None);
        assert_eq!(with_signal(0), None);
        assert_eq!(with_signal(8), None, "not mapped: the kernel will say so");
        let pair = [with.as_ptr() as usize, 8, 77];
        let copy = behind(pair.as_ptr() as usize, 3).unwrap();
        assert_eq!(copy, [pair[0], 8, 77, 1]);
    }
}
