//! The functions of `include/mmu_notifier.h`, which documents them.

// UNSAFETY: C calls in with pointers, and is called back through pointers.
#![expect(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use mmu_notifier::{
    AddressSpace, Blocking, Change, Event, Range, Refuser, Subscriber, Subscription, WouldBlock,
};
use mmu_notifier_primary::{InstallError, Options, Primary};

use crate::heap::HEAP;
use crate::loader;

const EAGAIN: c_int = 11;
const ENOMEM: c_int = 12;
const EACCES: c_int = 13;
const EBUSY: c_int = 16;
const ENODEV: c_int = 19;
const EINVAL: c_int = 22;
const EOPNOTSUPP: c_int = 95;

/// `struct mmu_notifier_change`.
#[repr(C)]
struct CChange {
    start: usize,
    end: usize,
    event: c_int,
    blocking: c_int,
}

impl CChange {
    fn new(change: &Change) -> CChange {
        CChange {
            start: change.range().start(),
            end: change.range().end(),
            event: change.event() as c_int,
            blocking: (change.blocking() == Blocking::Allowed).into(),
        }
    }
}

type Told = unsafe extern "C" fn(*const CChange, *mut c_void);
type Asked = unsafe extern "C" fn(*const CChange, *mut c_void) -> c_int;
type Released = unsafe extern "C" fn(*mut c_void);

/// `struct mmu_notifier_ops`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ops {
    start: Option<Told>,
    end: Option<Told>,
    release: Option<Released>,
}

/// `struct mmu_notifier_refuser_ops`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RefuserOps {
    start: Option<Told>,
    try_start: Option<Asked>,
    release: Option<Released>,
}

/// A pointer of the program's that only goes back to the program.
struct Context(*mut c_void);

// SAFETY: never dereferenced here; the header says that callbacks come from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

struct Paired {
    start: Told,
    end: Told,
    release: Option<Released>,
    context: Context,
}

impl Subscriber for Paired {
    fn start(&self, change: &Change) {
        // SAFETY: a callback that the program has subscribed, with its context.
        unsafe { (self.start)(&CChange::new(change), self.context.0) };
    }

    fn end(&self, change: &Change) {
        // SAFETY: as above.
        unsafe { (self.end)(&CChange::new(change), self.context.0) };
    }

    fn release(&self) {
        if let Some(release) = self.release {
            // SAFETY: as above.
            unsafe { release(self.context.0) };
        }
    }
}

struct Refusing {
    start: Told,
    try_start: Asked,
    release: Option<Released>,
    context: Context,
}

impl Refuser for Refusing {
    fn start(&self, change: &Change) {
        // SAFETY: as in `Paired`.
        unsafe { (self.start)(&CChange::new(change), self.context.0) };
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        // SAFETY: as in `Paired`.
        let answer = unsafe { (self.try_start)(&CChange::new(change), self.context.0) };
        if answer == -EAGAIN { Err(WouldBlock) } else { Ok(()) }
    }

    fn release(&self) {
        if let Some(release) = self.release {
            // SAFETY: as in `Paired`.
            unsafe { release(self.context.0) };
        }
    }
}

fn space() -> Result<AddressSpace, c_int> {
    Primary::get().map(|primary| primary.space().clone()).ok_or(-ENODEV)
}

/// See the header.
///
/// # Safety
///
/// `bytes` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_quarantined(bytes: *mut usize) -> usize {
    let (ranges, size) = Primary::get().map_or((0, 0), Primary::quarantined);
    if let Some(bytes) = NonNull::new(bytes) {
        // SAFETY: not null, and writable by the caller's promise.
        unsafe { bytes.write(size) };
    }
    ranges
}

/// How often the program has installed and not uninstalled.
static INSTALLED: Mutex<u32> = Mutex::new(0);

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn mmu_notifier_install() -> c_int {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let options = Options { after_fork: |_| HEAP.forked(), ..Options::default() };
    match Primary::install(&options) {
        Ok(_) => {}
        Err(InstallError::Twice) => {
            if let Some(primary) = Primary::get() {
                primary.prepare_to_wait();
            }
        }
        Err(InstallError::Maps { .. }) => return -EACCES,
        Err(InstallError::Valgrind) => return -EOPNOTSUPP,
        Err(InstallError::Copy { .. }) => return -EBUSY,
        Err(_) => return -ENOMEM,
    }
    *installed += 1;
    0
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn mmu_notifier_uninstall() -> c_int {
    let Some(primary) = Primary::get() else { return -ENODEV };
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    match *installed {
        0 => return -ENODEV,
        1 if !crate::preload::is_watched() => {
            primary.uninstall();
        }
        _ => {}
    }
    *installed -= 1;
    0
}

/// See the header.
///
/// # Safety
///
/// Pointers are null or what the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_subscribe(
    ops: *const c_void,
    size: usize,
    context: *mut c_void,
    subscription: *mut *mut Subscription,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        give(subscription, || {
            let Ops { start, end, release } = read::<Ops>(ops, size)?;
            let (Some(start), Some(end)) = (start, end) else { return Err(-EINVAL) };
            let space = space()?;
            loader::keep(start as *const c_void);
            Ok(space.subscribe(Paired { start, end, release, context: Context(context) }))
        })
    }
}

/// See the header.
///
/// # Safety
///
/// Pointers are null or what the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_subscribe_refuser(
    ops: *const c_void,
    size: usize,
    context: *mut c_void,
    subscription: *mut *mut Subscription,
) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        give(subscription, || {
            let RefuserOps { start, try_start, release } = read::<RefuserOps>(ops, size)?;
            let (Some(start), Some(try_start)) = (start, try_start) else { return Err(-EINVAL) };
            let space = space()?;
            loader::keep(start as *const c_void);
            Ok(space.subscribe_refuser(Refusing { start, try_start, release, context: Context(context) }))
        })
    }
}

/// Reads a structure of callbacks.
///
/// # Safety
///
/// `ops` is null or points to `size` bytes.
unsafe fn read<T: Copy>(ops: *const c_void, size: usize) -> Result<T, c_int> {
    if ops.is_null() || size != size_of::<T>() {
        return Err(-EINVAL);
    }
    // SAFETY: not null, and of the right size by the caller's promise.
    Ok(unsafe { ops.cast::<T>().read_unaligned() })
}

/// Hands a subscription to C.
///
/// # Safety
///
/// `out` is null or can be written.
unsafe fn give(out: *mut *mut Subscription, make: impl FnOnce() -> Result<Subscription, c_int>) -> c_int {
    let Some(out) = NonNull::new(out) else { return -EINVAL };
    match make() {
        Ok(subscription) => {
            // SAFETY: not null, and writable by the caller's promise.
            unsafe { out.write(Box::into_raw(Box::new(subscription))) };
            0
        }
        Err(error) => error,
    }
}

/// See the header.
///
/// # Safety
///
/// From `mmu_notifier_subscribe`, once; or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_unsubscribe(subscription: *mut Subscription) {
    if !subscription.is_null() {
        // SAFETY: by the caller's promise made by `Box::into_raw` in `give`, and given back once.
        drop(unsafe { Box::from_raw(subscription) });
    }
}

/// See the header.
///
/// # Safety
///
/// `change` is null or a function that may be called with `argument`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmu_notifier_invalidate(
    start: usize,
    length: usize,
    event: c_int,
    blocking: c_int,
    change: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    argument: *mut c_void,
) -> c_int {
    let event = usize::try_from(event).ok().and_then(|event| Event::ALL.get(event));
    let (Some(change), Some(&event), Ok(range)) = (change, event, Range::with_len(start, length)) else {
        return -EINVAL;
    };
    let blocking = match blocking {
        0 => Blocking::Forbidden,
        1 => Blocking::Allowed,
        _ => return -EINVAL,
    };
    let Some(primary) = Primary::get() else { return -ENODEV };
    // SAFETY: by the caller's promise.
    let made = primary.announce(Change::new(range, event, blocking), || unsafe { change(argument) });
    made.unwrap_or(-EAGAIN)
}
