//! What happens when this object is preloaded by `mmun run`.
//!
//! Before `main`: look for the session in the environment, take ourselves out of the environment (the program
//! must see its own), subscribe, rewrite. Without a session nothing happens.

// UNSAFETY: runs as an initialiser of the object and edits the environment of the C library.
#![expect(unsafe_code)]

use core::ffi::{CStr, c_char, c_int};
use core::mem::forget;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use mmu_notifier::{AddressSpace, Change, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::session::{Process, SHARDS, Shard};
use mmu_notifier_primary::{Options, Primary};

use crate::heap::HEAP;

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn(c_int, *const *const c_char, *mut *mut c_char) = start;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

extern "C" fn start(_: c_int, _: *const *const c_char, _: *mut *mut c_char) {
    // SAFETY: before `main` nobody else uses the environment.
    if let Some((session, object)) = unsafe { take_environment(environ) } {
        install(session, object);
    }
}

/// Begins to watch this process for the session, and has the object put into programs that it execs.
pub(crate) fn install(session: &CStr, object: &CStr) {
    let options = Options {
        session: Some(session),
        follow: Some(object),
        before: |primary| {
            let mut path = [0; 4096];
            primary.set_program(own_program(&mut path));
            subscribe(primary);
        },
        after_fork: |primary| {
            HEAP.forked();
            subscribe(primary);
        },
        ..Options::default()
    };
    // A program that cannot be watched runs all the same; whoever watches sees that it did not report.
    WATCHED.store(Primary::install(&options).is_ok(), Ordering::Relaxed);
}

/// Whether `mmun` has installed the hook: then it stays on.
static WATCHED: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_watched() -> bool {
    // Relaxed: written before `main`.
    WATCHED.load(Ordering::Relaxed)
}

/// The path of the running program.
fn own_program(buffer: &mut [u8; 4096]) -> &[u8] {
    mmu_notifier_primary::own_program(buffer)
}

/// Takes what `mmun` put into the environment out of it: the session, and the path of this object.
///
/// # Safety
///
/// `environment` is a zero-ended array of zero-ended strings, or null; nobody else uses it meanwhile.
unsafe fn take_environment(environment: *mut *mut c_char) -> Option<(&'static CStr, &'static CStr)> {
    const SESSION: &[u8] = b"MMUN_SESSION=";
    const PRELOAD: &[u8] = b"LD_PRELOAD=";
    /// What the object's file name begins with.
    const NAME: &[u8] = b"libmmu_notifier_capi";
    if environment.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise, as below.
    if !unsafe { variables(environment) }.any(|variable| variable.to_bytes().starts_with(SESSION)) {
        // Not preloaded by `mmun` but linked: what stands in `LD_PRELOAD` is none of ours.
        return None;
    }
    let mut session = None;
    let mut object = None;
    let mut from = environment;
    let mut to = environment;
    loop {
        // SAFETY: not beyond the final null, by the caller's promise.
        let variable = unsafe { *from };
        // SAFETY: `to` never overtakes `from`.
        unsafe { *to = variable };
        if variable.is_null() {
            break;
        }
        // SAFETY: by the caller's promise a zero-ended string; the environment lives as long as the process.
        let text: &'static CStr = unsafe { CStr::from_ptr(variable) };
        // SAFETY: the array goes on to its final null.
        from = unsafe { from.add(1) };
        let bytes = text.to_bytes();
        if bytes.starts_with(SESSION) {
            // SAFETY: inside the string.
            session = Some(unsafe { CStr::from_ptr(variable.add(SESSION.len())) });
            continue;
        }
        if bytes.starts_with(PRELOAD) {
            // Ours is the first, but where a tool has put its own before it (valgrind); behind it may be the program's.
            let list = &bytes[PRELOAD.len()..];
            let mut entries = list.split(|byte| *byte == b':' || *byte == b' ');
            let is_ours = |entry: &&[u8]| {
                entry.rsplit(|byte| *byte == b'/').next().is_some_and(|file| file.starts_with(NAME))
            };
            let ours = entries.clone().find(is_ours).or_else(|| entries.next())?;
            let own: Box<[u8]> = [ours, b"\0"].concat().into();
            object = CStr::from_bytes_with_nul(Box::leak(own)).ok();
            let start = ours.as_ptr().addr() - list.as_ptr().addr();
            let before = list[..start].strip_suffix(b":").unwrap_or(&list[..start]);
            let after = list.get(start + ours.len() + 1..).unwrap_or_default();
            if !before.is_empty() || !after.is_empty() {
                // LD_PRELOAD=ours:theirs becomes LD_PRELOAD=theirs.
                let between: &[u8] = if before.is_empty() || after.is_empty() { b"" } else { b":" };
                let theirs: Box<[u8]> = [PRELOAD, before, between, after, b"\0"].concat().into();
                // SAFETY: the place of the entry that is being replaced.
                unsafe { *to = Box::leak(theirs).as_mut_ptr().cast() };
                // SAFETY: one entry was kept.
                to = unsafe { to.add(1) };
            }
            continue;
        }
        // SAFETY: one entry was kept.
        to = unsafe { to.add(1) };
    }
    session.zip(object)
}

/// The variables of an environment.
///
/// # Safety
///
/// As for [`take_environment`], as long as the iterator lives.
unsafe fn variables(mut at: *mut *mut c_char) -> impl Iterator<Item = &'static CStr> {
    core::iter::from_fn(move || {
        // SAFETY: not beyond the final null, by the caller's promise.
        let variable = unsafe { *at };
        if variable.is_null() {
            return None;
        }
        // SAFETY: the array goes on to its final null.
        at = unsafe { at.add(1) };
        // SAFETY: by the caller's promise a zero-ended string.
        Some(unsafe { CStr::from_ptr(variable) })
    })
}

/// Subscribes the two that a watched process always or on request has. They are never unsubscribed.
fn subscribe(primary: &Primary) {
    // SAFETY: a session's entries are never unmapped.
    let process = primary.process().map(|process| unsafe { &*core::ptr::from_ref::<Process>(process) });
    if let Some(process) = process {
        forget(primary.space().subscribe(Balance { process, space: primary.space().clone() }));
    }
    let every = primary.session().refuse_every.load(Ordering::Relaxed);
    if every > 0 {
        forget(primary.space().subscribe_refuser(RefuseEvery { every, asked: AtomicU32::new(0) }));
    }
}

/// Counts starts and ends: what KVM does, and what goes wrong when an end is missing.
struct Balance {
    process: &'static Process,
    /// To find out who is calling: threads count in different cache lines.
    space: AddressSpace,
}

impl Balance {
    fn shard(&self) -> &Shard {
        &self.process.shards[self.space.caller().home() % SHARDS]
    }
}

impl Subscriber for Balance {
    fn start(&self, _: &Change) {
        self.shard().balance_starts.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, _: &Change) {
        self.shard().balance_ends.fetch_add(1, Ordering::Relaxed);
    }
}

/// Refuses every n-th change that must not wait, as if it were busy.
struct RefuseEvery {
    every: u32,
    asked: AtomicU32,
}

impl Refuser for RefuseEvery {
    fn start(&self, _: &Change) {}

    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if asked.is_multiple_of(self.every) { Err(WouldBlock) } else { Ok(()) }
    }
}
