//! What makes a call more than an ordinary one, in one word: every call looks at it.

use core::sync::atomic::{AtomicU32, Ordering};

/// Somebody reads what is counted. Never changes.
const WATCHED: u32 = 1;
/// Uninstalled: nobody is told.
const OFF: u32 = 2;
/// Something is, or may be, in quarantine.
const QUARANTINE: u32 = 4;
/// Switched on again, and calls may be under way that began before.
const SETTLING: u32 = 8;
/// Code was rewritten while it ran, or is being: who changes memory looks whether it is there.
const HOT: u32 = 16;

/// See the module documentation.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Mode(AtomicU32);

impl Mode {
    pub(crate) fn new(watched: bool) -> Mode {
        Mode(AtomicU32::new(if watched { WATCHED } else { 0 }))
    }

    /// Whether nothing is to be done but to look who is subscribed.
    #[inline(always)]
    pub(crate) fn is_ordinary(&self) -> bool {
        // Relaxed: who has been told by the program that memory is free, or that the hook is installed, sees it.
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether there is more to do than to tell and to count.
    #[inline(always)]
    pub(crate) fn is_special(&self) -> bool {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed) & !(WATCHED | HOT) != 0
    }

    /// Whether some code was, or is being, rewritten while it ran ([`crate::hot`]).
    #[inline(always)]
    pub(crate) fn is_hot(&self) -> bool {
        // SeqCst: behind the claim of a slot; the partner is `hot`, and then the look at the record, in `crate::hot`.
        self.0.load(Ordering::SeqCst) & HOT != 0
    }

    /// SeqCst: see `is_hot`. By one thread at a time.
    pub(crate) fn hot(&self, on: bool) {
        self.set(HOT, on);
    }

    pub(crate) fn has_quarantine(&self) -> bool {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed) & QUARANTINE != 0
    }

    pub(crate) fn is_off(&self) -> bool {
        // SeqCst: behind the claim of a slot, see `Primary::start_quietly`.
        self.0.load(Ordering::SeqCst) & OFF != 0
    }

    /// SeqCst, both, with the count of what is in quarantine: who takes the last out and then clears this looks at the count
    /// again; who puts one in counts first, and then sets this. So it is set while there is one.
    pub(crate) fn quarantine(&self, on: bool) {
        self.set(QUARANTINE, on);
    }

    /// Whether it was on.
    pub(crate) fn switch_off(&self) -> bool {
        self.set(OFF, true) & OFF == 0
    }

    /// Whether it was off. Then who has switched it on says when it is [settled](Mode::settled).
    pub(crate) fn switch_on(&self) -> bool {
        self.set(SETTLING, true);
        let was_off = self.set(OFF, false) & OFF != 0;
        if !was_off {
            self.set(SETTLING, false);
        }
        was_off
    }

    pub(crate) fn settled(&self) {
        self.set(SETTLING, false);
    }

    fn set(&self, bit: u32, on: bool) -> u32 {
        if on { self.0.fetch_or(bit, Ordering::SeqCst) } else { self.0.fetch_and(!bit, Ordering::SeqCst) }
    }
}
