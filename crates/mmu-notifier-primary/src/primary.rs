//! This process as the primary MMU: its parts, and how they come together.

// UNSAFETY: maps the session, forks the address space, and ends what a thread has left.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::ffi::CStr;
use std::fmt;
use std::sync::OnceLock;

use mmu_notifier::{Abandoned, AddressSpace, Caller, Change, OpenChange, Range, Subscriber, WouldBlock};

use crate::Syscall;
use crate::batch::Batch;
use crate::check::Check;
use crate::children::Preload;
use crate::context::Contexts;
use crate::copy::{self, Place};
use crate::entry;
use crate::facts::Memory;
use crate::fed::{self, Fed};
use crate::feed::Feeds;
use crate::files::Files;
use crate::flow::Flow;
use crate::gate::{self, safe};
use crate::hook;
use crate::hot;
use crate::log::{Log, put_path, ticks};
use crate::mode::Mode;
use crate::oracle;
use crate::patch::Stubs;
use crate::quarantine::Quarantine;
use crate::rewrite::Patching;
use crate::session::{self, Header, StrictState};
use crate::strict::{self, Strict};
use crate::thread::Threads;
use crate::valgrind;
use crate::worker::Worker;
use crate::written;

/// This Linux process as the primary MMU: every memory system call is announced to its
/// [`space`](Primary::space) before it is made and after it is done.
///
/// There is one in a process. It stays, but can be [switched off](Primary::uninstall) and on again.
#[derive(Debug)]
// What every call needs lies in the first cache line.
#[repr(C, align(64))]
pub struct Primary {
    pub(crate) space: AddressSpace,
    pub(crate) threads: Threads,
    pub(crate) mode: Mode,
    pub(crate) log: Log,
    pub(crate) memory: Memory,
    pub(crate) files: Files,
    pub(crate) preload: Option<Preload>,
    pub(crate) contexts: Contexts,
    pub(crate) quarantine: Quarantine,
    pub(crate) worker: Worker,
    /// Where calls are on record while this is switched off. Nobody subscribes there, but to wait for them.
    quiet: OnceLock<AddressSpace>,
    /// Of registrations, if somebody wants it.
    pub(crate) check: Option<Check>,
    pid: AtomicU32,
    pub(crate) patching: Patching,
    pub(crate) said_anonymous: AtomicBool,
    pub(crate) strict: Strict,
    /// There is a call site that should be rewritten and cannot be.
    pub(crate) out_of_reach: AtomicBool,
    /// Somebody else may run in this memory: it was shared, or could have been by a call that is not seen.
    lent: AtomicBool,
    after_fork: fn(&Primary),
    /// Other copies of this library that are told by this one.
    pub(crate) feeds: Feeds,
    /// The copy that tells this one, if it came first: then nothing is rewritten here.
    pub(crate) fed: Option<Fed>,
}

/// How to [install](Primary::install).
#[derive(Debug)]
pub struct Options<'a> {
    /// The session to count and record in (see [`session`](crate::session)): its file. `None`: only for this process.
    pub session: Option<&'a CStr>,
    /// Follow programs that are exec'ed: the path of the preload object to put into their environment, with the
    /// session's path as `MMUN_SESSION`.
    pub follow: Option<&'a CStr>,
    /// Whether to catch system calls of code that cannot be rewritten. With a session, what that says.
    pub strict: Strict,
    /// Called once, before the first call is intercepted.
    pub before: fn(&Primary),
    /// Called in every forked child, whose address space is empty: the place to subscribe again. The C library's
    /// allocator may be locked.
    pub after_fork: fn(&Primary),
}

impl Default for Options<'_> {
    /// For this process alone: no session, nobody followed, strict where needed, nothing to do before or after.
    fn default() -> Self {
        Options { session: None, follow: None, strict: Strict::default(), before: |_| {}, after_fork: |_| {} }
    }
}

/// Why the hook could not be installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is one in this process already.
    #[error("this process has a primary MMU already")]
    Twice,
    /// Another copy of this library rewrote the call sites before, and cannot tell this one of changes.
    #[error(
        "another copy of this library is at work in this process, and this one cannot be told by it: {why}"
    )]
    Copy {
        /// Why not.
        why: &'static str,
    },
    /// Valgrind runs this process: the code that is executed is not the code that is mapped.
    #[error("valgrind runs this process, whose code cannot be rewritten under it; run one or the other")]
    Valgrind,
    /// The session cannot be opened or mapped.
    #[error("cannot map the session {path}: error {errno}; has `mmun` ended, or may this user not read it?")]
    Session {
        /// Its path.
        path: String,
        /// The error number.
        errno: i32,
    },
    /// The session is none, of another version, or closed.
    #[error("{path} is no open session of this version")]
    NoSession {
        /// Its path.
        path: String,
    },
    /// The kernel cannot do what [`Strict::Always`] takes.
    #[error("no Syscall User Dispatch: error {errno}; that takes Linux 5.11, and a sandbox may forbid it")]
    NoDispatch {
        /// The error number.
        errno: i32,
    },
    /// The mappings of the process cannot be read.
    #[error("cannot read /proc/self/maps: error {errno}; is /proc mounted?")]
    Maps {
        /// The error number.
        errno: i32,
    },
}

impl Primary {
    /// Rewrites the memory system calls of everything that is mapped, and of what will be.
    ///
    /// Only one copy of this library can do that in a process. If another one has - the object that `mmun run` preloads, a C
    /// library's, a plugin's - this one rewrites nothing, and is told by it: its address space is told of the same changes, its
    /// subscribers may refuse them, and only the options [`before`](Options::before) and [`after_fork`](Options::after_fork)
    /// matter.
    ///
    /// To be called when nobody else is in a memory system call that has to be announced: at start-up. Other
    /// threads may run. Allocates; takes a millisecond or so.
    ///
    /// If it was switched off by [`uninstall`](Primary::uninstall), it is switched on again, whatever the options: every change
    /// that begins when this has returned is announced, and so is none that began before (it waits for these, and so not
    /// inside a callback or a signal handler).
    ///
    /// # Errors
    ///
    /// [`InstallError`]; nothing has been changed then.
    pub fn install(options: &Options<'_>) -> Result<&'static Primary, InstallError> {
        if let Some(primary) = hook::primary() {
            let switched = match &primary.fed {
                Some(fed) => fed.begin_again(primary)?,
                None => primary.want(true),
            };
            return if switched { Ok(primary) } else { Err(InstallError::Twice) };
        }
        if valgrind::is_here() {
            return Err(InstallError::Valgrind);
        }
        let claim = match copy::place()? {
            Place::First(claim) => claim,
            Place::Fed(_) if options.session.is_some() => {
                return Err(InstallError::Copy { why: "this one is to watch it for `mmun`" });
            }
            Place::Fed(first) => return Primary::install_fed(options, Fed::new(first)),
        };
        // The object that is preloaded with a session stays, and where it is alone there is no loader.
        if options.session.is_none() {
            copy::stay();
        }
        let log = open_log(options.session)?;
        let asked = match options.session {
            Some(_) => Strict::from_u32(log.header().strict.load(Ordering::Relaxed)),
            None => options.strict,
        };
        let possible = strict::is_possible();
        if let (Strict::Always, None, Err(error)) = (asked, options.session, possible) {
            return Err(InstallError::NoDispatch { errno: error.0 });
        }
        log.begin();
        let preload = match (options.follow, options.session) {
            (Some(object), Some(session)) => Some(Preload {
                preload: [b"LD_PRELOAD=", object.to_bytes_with_nul()].concat().into(),
                session: [b"MMUN_SESSION=", session.to_bytes_with_nul()].concat().into(),
            }),
            _ => None,
        };
        entry::prepare(&log.header().vectors);
        let stubs = Stubs::new();
        let strict = if possible.is_ok() { asked } else { Strict::Never };
        let primary: &'static Primary = Box::leak(Box::new(Primary {
            preload,
            strict,
            ..Primary::new(log, stubs, hook::caller, options.after_fork)
        }));
        // SAFETY: `brk(0)` only asks.
        let program_break = unsafe { gate::call(Syscall::Brk.number(), &[0; 6]) };
        primary.memory.break_is(program_break as usize);
        if !hook::set_primary(primary) {
            return Err(InstallError::Twice);
        }
        (options.before)(primary);
        primary.search_everything().map_err(|errno| InstallError::Maps { errno: errno.0 })?;
        // A program that is watched pays for a worker only if there will be somebody who refuses.
        if options.session.is_none() || primary.session().refuse_every.load(Ordering::Relaxed) != 0 {
            primary.worker.prepare();
        }
        if possible.is_err() && asked == Strict::Always {
            primary.strict_is(StrictState::Refused);
        } else if primary.strict == Strict::Always {
            primary.arm(StrictState::Asked);
        } else {
            primary.arm_if_needed();
        }
        oracle::set_up(&primary.log);
        primary.ready();
        if let Some(claim) = claim {
            claim.keep();
        }
        Ok(primary)
    }

    /// The same for a copy that another one tells.
    fn install_fed(options: &Options<'_>, fed: Fed) -> Result<&'static Primary, InstallError> {
        copy::stay();
        let log = open_log(None)?;
        log.begin();
        let primary = Primary::new(log, Stubs::new(), fed::caller, options.after_fork);
        let primary: &'static Primary =
            Box::leak(Box::new(Primary { strict: Strict::Never, fed: Some(fed), ..primary }));
        if !hook::set_primary(primary) {
            return Err(InstallError::Twice);
        }
        (options.before)(primary);
        if let Some(fed) = &primary.fed {
            fed.begin(primary)?;
        }
        Ok(primary)
    }

    fn new(log: Log, stubs: Stubs, caller: fn() -> Caller, after_fork: fn(&Primary)) -> Primary {
        Primary {
            space: AddressSpace::with(mmu_notifier::Options {
                caller: Some(caller),
                on_stall: Box::new(say_stall),
                ..mmu_notifier::Options::default()
            }),
            threads: Threads::new(rdfsbase_works()),
            mode: Mode::new(log.is_watched()),
            memory: Memory::new(),
            files: Files::new(),
            check: Check::new(&log),
            log,
            preload: None,
            contexts: Contexts::new(),
            quarantine: Quarantine::new(),
            worker: Worker::new(),
            quiet: OnceLock::new(),
            pid: AtomicU32::new(safe::getpid()),
            patching: Patching::new(stubs),
            said_anonymous: AtomicBool::new(false),
            strict: Strict::default(),
            out_of_reach: AtomicBool::new(false),
            lent: AtomicBool::new(false),
            after_fork,
            feeds: Feeds::new(),
            fed: None,
        }
    }

    /// Switches the hook off: no change that begins when this has returned is announced, until [`install`](Primary::install)
    /// switches it on again. False if it was off.
    ///
    /// Subscriptions stay, and are told nothing. Waits for changes that have been announced and are not done yet, so not inside
    /// a callback, and not while holding a lock that a callback takes. A call that had just begun may still be announced, and
    /// ended, a moment later; who must be sure that nobody is called unsubscribes. What is in quarantine is still announced, as it was
    /// asked for before.
    ///
    /// The call sites stay rewritten, and each call comes by to see that there is nothing to do. They cannot be given back: threads
    /// sleep inside the hook, somebody else may have moved our jump elsewhere, and as they are rewritten one by one, whoever
    /// installed again would miss changes for a while.
    ///
    /// ```no_run
    /// use mmu_notifier_primary::{Options, Primary};
    ///
    /// let primary = Primary::install(&Options::default())?;
    /// assert!(primary.uninstall());
    /// assert!(!primary.uninstall(), "it is off");
    /// let again = Primary::install(&Options::default())?;
    /// assert!(std::ptr::eq(primary, again));
    /// # Ok::<(), mmu_notifier_primary::InstallError>(())
    /// ```
    ///
    /// Each copy of this library is switched off for itself. The one that has rewritten the call sites goes on, also for its own
    /// subscribers, as long as another one is told by it.
    pub fn uninstall(&self) -> bool {
        match &self.fed {
            Some(fed) => fed.stop(self),
            None => self.want(false),
        }
    }

    pub(crate) fn switch_off(&self) {
        // What is made meanwhile is not seen.
        self.lend();
        let caller = Some(hook::caller as fn() -> Caller);
        self.quiet.get_or_init(|| AddressSpace::with(mmu_notifier::Options { caller, ..Default::default() }));
        if self.mode.switch_off() {
            wait_for_changes(&self.space);
        }
    }

    pub(crate) fn switch_on(&self) {
        if self.mode.switch_on() {
            if let Some(quiet) = self.quiet.get() {
                wait_for_changes(quiet);
            }
            // Those of files may have nothing open.
            self.files.wait_for_changes(&hook::caller(), safe::yield_processor);
            self.mode.settled();
        }
    }

    /// Whether nobody is told.
    pub(crate) fn is_off(&self) -> bool {
        self.fed.as_ref().map_or_else(|| self.mode.is_off(), |fed| fed.is_off(self))
    }

    /// Announces a change that the program makes itself to the subscribers of all copies of this library in the process, makes
    /// it, and announces that it is done. (What is announced to a [`space`](Primary::space), only those there are told of.)
    ///
    /// If `make` unwinds or jumps away, the end comes with the thread's next change.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if the change must not wait and somebody refuses, or too many are open: then `make` is not called.
    ///
    /// ```
    /// use mmu_notifier::{Blocking, Change, Event, Range};
    /// use mmu_notifier_primary::{Options, Primary};
    ///
    /// let primary = Primary::install(&Options::default())?;
    /// let change = Change::new(Range::new(0x1000, 0x2000)?, Event::Unmap, Blocking::Allowed);
    /// assert_eq!(primary.announce(change, || primary.space().is_changing()), Ok(true));
    /// assert!(!primary.space().is_changing());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn announce<R>(&self, change: Change, make: impl FnOnce() -> R) -> Result<R, WouldBlock> {
        if let Some(fed) = &self.fed {
            return fed.announce(change, make);
        }
        // Everything that `make` calls lies deeper on the stack than this. Says what is nested in this change and what comes
        // after it was jumped out of.
        let here = 0u8;
        let caller = self.space.caller().with_stack((&raw const here).addr());
        let open = self.space.start(&caller, change)?;
        let result = make();
        self.space.end(&caller, open);
        Ok(result)
    }

    /// Puts a call on record that nobody is told of; `None`: the hook is on.
    #[cold]
    #[inline(never)]
    pub(crate) fn start_quietly(&self, caller: &Caller, change: Change) -> Option<OpenChange> {
        let quiet = self.quiet.get()?;
        // With too many at a time it goes unrecorded; then the next to install may miss its rest.
        let open = quiet.start(caller, change).ok()?;
        // Behind the claim, which is a full fence: either this sees that the hook was switched on, or who has done that
        // waits for this.
        if self.mode.is_off() {
            return Some(open);
        }
        quiet.end(caller, open);
        None
    }

    /// Whether some thread is changing `range`, or may be.
    pub(crate) fn may_be_changing(&self, range: Range) -> bool {
        self.space.may_be_changing(range)
            || self.quiet.get().is_some_and(|quiet| quiet.may_be_changing(range))
    }

    pub(crate) fn end_quietly(&self, caller: &Caller, open: OpenChange) {
        if let Some(quiet) = self.quiet.get() {
            quiet.end(caller, open);
        }
    }

    /// Ranges and bytes that are in quarantine now: an `munmap` that somebody has refused, where nobody could wait, was told that
    /// it is done, and will be made soon.
    ///
    /// What was there so far is in the counters of this process ([`session::PutOff`]).
    pub fn quarantined(&self) -> (usize, usize) {
        self.fed.as_ref().map_or_else(|| self.quarantine.held(), Fed::quarantined)
    }

    /// Makes a thread for what has to wait, as far as that can be done outside the hook: for who has got a primary that
    /// somebody else has installed, and subscribes somebody who refuses. Does nothing if that was done before.
    pub fn prepare_to_wait(&self) {
        if self.fed.is_none() {
            self.worker.prepare();
        }
    }

    /// This process's primary MMU, if it is installed.
    pub fn get() -> Option<&'static Primary> {
        hook::primary()
    }

    /// The address space of this process: subscribe here.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The session's header, with what who made it asks for.
    pub fn session(&self) -> &Header {
        self.log.header()
    }

    /// This process's entry in the session, if there was room.
    pub fn process(&self) -> Option<&session::Process> {
        self.log.process()
    }

    /// This process's id when it was started or forked; a `vfork`ed child has another one.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Whether the calling process is this one, not a child that runs in its memory. Asks the kernel only if there may be
    /// such a child: a program that has confined itself to a list of calls need not have `getpid` on it.
    pub(crate) fn is_caller(&self) -> bool {
        // Relaxed: the child was made after the store, by the thread that stored.
        !self.lent.load(Ordering::Relaxed) || safe::getpid() == self.pid()
    }

    /// A process is about to be made that runs in this memory.
    pub(crate) fn lend(&self) {
        self.lent.store(true, Ordering::Relaxed);
    }

    /// Memory that is ours in this process, in bytes.
    pub(crate) fn own_bytes(&self, stubs: &Stubs) -> usize {
        stubs.bytes()
            + size_of::<Primary>()
            + Threads::bytes()
            + Quarantine::BYTES
            + Flow::bytes()
            + Batch::bytes()
            + written::bytes()
            + AddressSpace::BYTES
    }

    /// In a forked child, by its only thread.
    pub(crate) fn forked(&self) {
        strict::forked();
        self.pid.store(safe::getpid(), Ordering::Relaxed);
        self.threads.forked();
        self.files.forked();
        self.patching.forked();
        hot::forked(self);
        self.worker.forked();
        // Nobody is subscribed here yet.
        self.quarantine.forked(|range| self.unmap(range));
        self.mode.quarantine(false);
        self.mode.settled();
        // SAFETY: by this function's promise; the hook has come back from the call, so this is no callback.
        unsafe { self.space.forked() };
        if let Some(quiet) = self.quiet.get() {
            // SAFETY: as above.
            unsafe { quiet.forked() };
        }
        self.feeds.forked();
        self.log.forked();
        if let Some(check) = &self.check {
            check.forked(&self.log);
        }
        // From here on there may be changes: who is subscribed, is so in this child.
        self.after_fork();
        self.feeds.after_fork();
        oracle::set_up(&self.log);
    }

    /// The same for a copy that another one tells.
    pub(crate) fn forked_elsewhere(&self) {
        self.pid.store(safe::getpid(), Ordering::Relaxed);
        // SAFETY: the copy that tells this one is in its `forked`.
        unsafe { self.space.forked() };
        self.log.forked();
    }

    /// In a forked child, behind that: the program may subscribe again.
    pub(crate) fn after_fork(&self) {
        (self.after_fork)(self);
    }

    /// Ends what this thread has left open.
    #[inline]
    pub(crate) fn end_abandoned(&self, caller: &Caller) {
        let quiet =
            self.mode.is_special() && self.quiet.get().is_some_and(|quiet| quiet.may_have_open(caller));
        if self.space.may_have_open(caller) || quiet || self.files.is_changing() {
            self.end_what_is_gone(caller);
        }
    }

    /// The same, and takes off the record which files this thread was mapping.
    #[inline]
    pub(crate) fn end_abandoned_of_files(&self, caller: &Caller) {
        if self.files.may_have_left(caller) {
            self.end_what_is_gone(caller);
        } else {
            self.end_abandoned(caller);
        }
    }

    #[inline(never)]
    fn end_what_is_gone(&self, caller: &Caller) {
        let mut signal_stack = None;
        let mut gone = |stack| {
            // Asked only if this thread has something open.
            let signal_stack = signal_stack.get_or_insert_with(safe::on_signal_stack);
            let gone = match signal_stack {
                // On the signal stack: an outer change on the ordinary stack is interrupted, not gone.
                Some(here) if !here.contains(&stack) => false,
                // The same stack: deeper frames have lower addresses, so one below us is gone.
                _ => stack <= caller.stack(),
            };
            if gone && self.log.is_audited() {
                self.log.closed(caller, stack, ticks());
            }
            gone
        };
        self.files.leave_gone(caller, &mut gone);
        // SAFETY: a frame below the stack pointer of the thread that runs has been left for good.
        let ended = unsafe { self.end_those(caller, gone) };
        self.feeds.abandoned(caller);
        if ended.changes > 0
            && let Some(process) = self.log.process()
        {
            process.abandoned.fetch_add(ended.changes as u64, Ordering::Relaxed);
            process.unfinished.fetch_add(ended.callbacks as u64, Ordering::Relaxed);
        }
    }

    /// Ends the calling thread's changes of which `gone` says so, also those that nobody was told of.
    ///
    /// # Safety
    ///
    /// As for [`AddressSpace::end_abandoned`].
    pub(crate) unsafe fn end_those(&self, caller: &Caller, mut gone: impl FnMut(usize) -> bool) -> Abandoned {
        if let Some(quiet) = self.quiet.get() {
            // SAFETY: by the caller's promise.
            unsafe { quiet.end_abandoned(caller, &mut gone) };
        }
        // SAFETY: by the caller's promise.
        unsafe { self.space.end_abandoned(caller, gone) }
    }

    /// Tells whoever watches that everything from now on is counted, and marks the place in a trace of system
    /// calls: an `munmap` of nothing at an address that nobody uses.
    fn ready(&self) {
        const MARK: usize = 0x6d6d_756e_0000;
        self.log.ready();
        // SAFETY: a length of 0 is refused.
        unsafe { gate::call(Syscall::Munmap.number(), &[MARK, 0, 0, 0, 0, 0]) };
    }
}

/// Waits until every change that is under way now is done.
pub(crate) fn wait_for_changes(space: &AddressSpace) {
    struct Nobody;
    impl Subscriber for Nobody {
        fn start(&self, _: &Change) {}
        fn end(&self, _: &Change) {}
    }
    // Who subscribes waits for all that he was not told of.
    drop(space.subscribe(Nobody));
}

/// Reports a wait without progress in one line, as everything here: without libc and without memory.
fn say_stall(stall: &mmu_notifier::Stall) {
    struct Line {
        bytes: [u8; 512],
        len: usize,
    }
    impl fmt::Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = &mut self.bytes[self.len..];
            let fits = text.len().min(room.len());
            room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
            self.len += fits;
            Ok(())
        }
    }
    let mut line = Line { bytes: [0; 512], len: 0 };
    // Does not fail: what is too long is cut.
    let _ = fmt::Write::write_fmt(&mut line, format_args!("mmu-notifier: {stall}\n"));
    safe::write_to_stderr(&line.bytes[..line.len]);
}

/// Whether user space may read the base of the `fs` segment.
fn rdfsbase_works() -> bool {
    const AT_HWCAP2: usize = 26;
    const FSGSBASE: usize = 2;
    unsafe extern "C" {
        safe fn getauxval(kind: usize) -> usize;
    }
    getauxval(AT_HWCAP2) & FSGSBASE != 0
}

fn open_log(session: Option<&CStr>) -> Result<Log, InstallError> {
    const READ_WRITE: usize = 3;
    const SHARED: usize = 1;
    const PRIVATE_ANONYMOUS_NORESERVE: usize = 0x2 | 0x20 | 0x4000;
    const O_RDWR: usize = 2;
    const OWN_RECORDS: usize = 1024;
    let path = session.map_or("(private)".into(), |path| path.to_string_lossy().into_owned());
    let failed = |errno: i32| InstallError::Session { path: path.clone(), errno };
    let file = session.map(|path| safe::File::open(path, O_RDWR)).transpose().map_err(|e| failed(e.0))?;
    let (bytes, flags, descriptor) = match &file {
        Some(file) => {
            let size = safe::fstat(file.descriptor()).map_err(|errno| failed(errno.0))?.size;
            (size as usize, SHARED, file.descriptor())
        }
        None => (session::session_bytes(1, OWN_RECORDS), PRIVATE_ANONYMOUS_NORESERVE, usize::MAX),
    };
    // SAFETY: a new mapping.
    let at = unsafe { gate::call(Syscall::Mmap.number(), &[0, bytes, READ_WRITE, flags, descriptor, 0]) };
    if (-4095..0).contains(&at) {
        return Err(failed(-at as i32));
    }
    if file.is_none() {
        // SAFETY: mapped just now; long enough for a header, which is all atomics.
        let header = unsafe { &*(at as *const Header) };
        header.rings.store(1, Ordering::Relaxed);
        header.ring_records.store(OWN_RECORDS as u32, Ordering::Relaxed);
        header.version.store(session::VERSION, Ordering::Relaxed);
        header.magic.store(session::MAGIC, Ordering::Release);
    }
    // SAFETY: mapped just now with `bytes` bytes, and never unmapped.
    let log = unsafe { Log::open(at as *mut u8, bytes) };
    if let Some(log) = log {
        return Ok(if session.is_some() { log } else { log.unwatched() });
    }
    // SAFETY: mapped above; nobody has it.
    unsafe { gate::call(Syscall::Munmap.number(), &[at as usize, bytes, 0, 0, 0, 0]) };
    Err(InstallError::NoSession { path })
}

impl Primary {
    /// Notes which program this is.
    pub fn set_program(&self, path: &[u8]) {
        if let Some(process) = self.log.process() {
            put_path(&process.exe, path);
        }
    }
}

/// The path of the running program, as far as it fits in `buffer`; empty if it cannot be found out.
pub fn own_program(buffer: &mut [u8]) -> &[u8] {
    safe::read_link(c"/proc/self/exe", buffer)
}
