//! This process as the primary MMU: its parts, and how they come together.

// UNSAFETY: maps the session and the files it searches, and hands code to be rewritten to `patch`.
#![expect(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::fmt;

use mmu_notifier::{AddressSpace, Caller, PAGE_SIZE, Range};

use crate::Syscall;
use crate::batch::{Batch, Waiting};
use crate::children::Preload;
use crate::entry;
use crate::facts::Memory;
use crate::flow::Flow;
use crate::gate::{
    self,
    safe::{self, FileId},
};
use crate::hook;
use crate::log::{Log, put_path, ticks};
use crate::maps;
use crate::oracle;
use crate::patch::{Live, Patched, Stubs, Writer};
use crate::search::{Found, Image, Shape, Unfit, candidates, search};
use crate::session::{self, Header, UnseenReason};
use crate::sites::{self, Draft};
use crate::thread::Threads;

/// This Linux process as the primary MMU: every memory system call is announced to its
/// [`space`](Primary::space) before it is made and after it is done.
///
/// There is one in a process. It is installed once and stays.
#[derive(Debug)]
// What every call needs lies in the first cache line.
#[repr(C, align(64))]
pub struct Primary {
    pub(crate) space: AddressSpace,
    pub(crate) threads: Threads,
    pub(crate) log: Log,
    pub(crate) memory: Memory,
    pub(crate) preload: Option<Preload>,
    pid: AtomicU32,
    patching: Patching,
    said_anonymous: AtomicBool,
    after_fork: fn(&Primary),
}

/// How to [install](Primary::install).
#[derive(Debug)]
pub struct Options<'a> {
    /// The session to count and record in (see [`session`](crate::session)): its file. `None`: only for this process.
    pub session: Option<&'a CStr>,
    /// Follow programs that are exec'ed: the path of the preload object to put into their environment, with the
    /// session's path as `MMUN_SESSION`.
    pub follow: Option<&'a CStr>,
    /// Called once, before the first call is intercepted.
    pub before: fn(&Primary),
    /// Called in every forked child, whose address space is empty: the place to subscribe again. The C library's
    /// allocator may be locked.
    pub after_fork: fn(&Primary),
}

impl Default for Options<'_> {
    /// For this process alone: no session, nobody followed, nothing to do before or after.
    fn default() -> Self {
        Options { session: None, follow: None, before: |_| {}, after_fork: |_| {} }
    }
}

/// Why the hook could not be installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is one in this process already.
    #[error("this process has a primary MMU already")]
    Twice,
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
    /// The mappings of the process cannot be read.
    #[error("cannot read /proc/self/maps: error {errno}; is /proc mounted?")]
    Maps {
        /// The error number.
        errno: i32,
    },
}

/// What is needed to rewrite code, one thread at a time.
struct Patching {
    busy: AtomicBool,
    state: UnsafeCell<PatchState>,
}

#[derive(Debug)]
struct PatchState {
    stubs: Stubs,
    batch: Batch,
    flow: Flow,
}

// SAFETY: `state` is reached only through `Patching::with`, by one thread at a time.
unsafe impl Sync for Patching {}

impl Patching {
    /// Runs `work` with the state; `None` if this thread is at it already (a signal handler loads a library), or
    /// another one is for too long.
    fn with<R>(&self, work: impl FnOnce(&mut PatchState) -> R) -> Option<R> {
        let mut tries = 0;
        // Acquire pairs with the Release below.
        while self.busy.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries > 1_000_000 {
                return None;
            }
            core::hint::spin_loop();
        }
        // SAFETY: `busy` keeps everybody else out until the store below.
        let result = work(unsafe { &mut *self.state.get() });
        self.busy.store(false, Ordering::Release);
        Some(result)
    }

    /// In a forked child, by its only thread: who was at it in the parent does not go on here, and what was waiting to
    /// be written may be somewhere else by the next time.
    fn forked(&self) {
        if self.busy.load(Ordering::Relaxed) {
            // SAFETY: there is no other thread.
            unsafe { (*self.state.get()).batch.forget() };
            self.busy.store(false, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Patching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patching")
    }
}

impl Primary {
    /// Rewrites the memory system calls of everything that is mapped, and of what will be.
    ///
    /// To be called when nobody else is in a memory system call that has to be announced: at start-up. Other
    /// threads may run. Allocates; takes a millisecond or so.
    ///
    /// # Errors
    ///
    /// [`InstallError`]; nothing has been changed then.
    pub fn install(options: &Options<'_>) -> Result<&'static Primary, InstallError> {
        if hook::primary().is_some() {
            return Err(InstallError::Twice);
        }
        let log = open_log(options.session)?;
        log.begin();
        let preload = match (options.follow, options.session) {
            (Some(object), Some(session)) => Some(Preload {
                preload: [b"LD_PRELOAD=", object.to_bytes_with_nul()].concat().into(),
                session: [b"MMUN_SESSION=", session.to_bytes_with_nul()].concat().into(),
            }),
            _ => None,
        };
        let stubs = Stubs::new(entry::entries(&log.header().vectors));
        let primary: &'static Primary = Box::leak(Box::new(Primary {
            space: AddressSpace::with(mmu_notifier::Options {
                caller: Some(hook::caller),
                on_stall: Box::new(say_stall),
                ..mmu_notifier::Options::default()
            }),
            threads: Threads::new(rdfsbase_works()),
            memory: Memory::new(),
            log,
            preload,
            pid: AtomicU32::new(safe::getpid()),
            patching: Patching {
                busy: AtomicBool::new(false),
                state: UnsafeCell::new(PatchState { stubs, batch: Batch::new(), flow: Flow::new() }),
            },
            said_anonymous: AtomicBool::new(false),
            after_fork: options.after_fork,
        }));
        // SAFETY: `brk(0)` only asks.
        let program_break = unsafe { gate::call(Syscall::Brk.number(), &[0; 6]) };
        primary.memory.break_is(program_break as usize);
        hook::set_primary(primary);
        (options.before)(primary);
        primary.search_everything().map_err(|errno| InstallError::Maps { errno: errno.0 })?;
        oracle::set_up(&primary.log);
        primary.ready();
        Ok(primary)
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

    fn search_everything(&'static self) -> Result<(), safe::Errno> {
        let began = ticks();
        let live = if one_thread() { Live::No } else { Live::Yes };
        let mut writer = Writer::new(live);
        // The pools that are mapped meanwhile would change the list: first all, then one by one. The kernel writes it
        // anew each time, so it is read once for all who want to know.
        let mut found = Vec::new();
        let mut mapped = Vec::new();
        maps::for_each(|mapping| {
            self.memory.look_at(mapping);
            mapped.push(mapping.range);
            if mapping.executable && mapping.readable {
                found.push((mapping.range, mapping.offset, mapping.inode, mapping.path.to_vec()));
            }
        })?;
        self.patching.with(|state| state.stubs.mapped_are(mapped));
        for (range, offset, inode, path) in &found {
            if path.starts_with(b"[") {
                continue;
            }
            if *inode == 0 {
                self.anonymous_code(*range);
                continue;
            }
            self.log.module(*range, *offset, path);
            let path_to_open = path_to_c(path);
            let id = path_to_open.as_ref().and_then(|path| safe::stat(path.as_ptr() as usize).ok());
            // Opened only if it has to be searched.
            let open = || path_to_open.as_ref().and_then(|path| safe::File::open(path, 0).ok());
            match id {
                Some(id) => self.search_mapping(&mut writer, &id, open, *range, *offset, path),
                None => self.no_file(*range, path),
            }
        }
        self.patching.with(|state| state.stubs.mapped_are(Vec::new()));
        if let Some(process) = self.log.process() {
            process.search_ticks.fetch_add(ticks() - began, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A mapping whose file is not to be had: whether there may be something in it can be seen all the same.
    fn no_file(&self, range: Range, path: &[u8]) {
        if candidates(readable_code(range)).next().is_some() {
            self.log.unseen(UnseenReason::NoFile, None, range.start(), path);
        } else {
            self.searched();
        }
    }

    fn searched(&self) {
        if let Some(process) = self.log.process() {
            process.mappings_searched.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Rewrites the call sites in the mapping `range` of the file `id`, at file offset `offset`.
    fn search_mapping(
        &self,
        writer: &mut Writer,
        id: &FileId,
        open: impl FnOnce() -> Option<safe::File>,
        range: Range,
        offset: usize,
        path: &[u8],
    ) {
        let done = self.patching.with(|state| {
            if let Some(known) = sites::known(&self.log, id, offset, range.len()) {
                let base = range.start().wrapping_sub(offset);
                sites::for_each(known, |site, code| self.patch(state, writer, base, &site, code, path));
                self.write_batch(state, writer, path);
                return true;
            }
            if candidates(readable_code(range)).next().is_none() {
                Draft::new(&self.log, id, offset, range).complete();
                return true;
            }
            // What has this name by now may be another file.
            let file = open().filter(|file| safe::fstat(file.descriptor()).as_ref() == Ok(id));
            let Some(file) = file else { return false };
            let mut draft = Draft::new(&self.log, id, offset, range);
            self.search_file(state, writer, &file, range, offset, path, &mut draft);
            self.write_batch(state, writer, path);
            draft.complete();
            true
        });
        match done {
            Some(true) => self.searched(),
            Some(false) => self.no_file(range, path),
            None => {
                self.log.unseen(UnseenReason::TableFull, None, range.start(), path);
                self.searched();
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a mapping is a file, a place and a path")]
    fn search_file(
        &self,
        state: &mut PatchState,
        writer: &mut Writer,
        file: &safe::File,
        range: Range,
        offset: usize,
        path: &[u8],
        draft: &mut Draft<'_>,
    ) {
        let bytes = FileBytes::map(file, writer);
        let image = bytes.as_ref().and_then(|bytes| Image::parse(bytes.bytes));
        if let (Some(bytes), Some(image)) = (&bytes, &image) {
            let base = range.start().wrapping_sub(offset);
            let mut flow = core::mem::take(&mut state.flow);
            search(image, readable_code(range), offset, &mut flow, |site| {
                if let Some(code) = bytes.bytes.get(site.from..site.offset + 2) {
                    draft.add(&site, code);
                    self.patch(state, writer, base, &site, code, path);
                }
            });
            state.flow = flow;
        } else {
            self.log.unseen(UnseenReason::NoFile, None, range.start(), path);
        }
        if let Some(bytes) = bytes {
            bytes.unmap(writer);
        }
        if let Some(process) = self.log.process() {
            process.own_bytes.store(self.own_bytes(&state.stubs) as u64, Ordering::Relaxed);
        }
    }

    /// Rewrites one site of a file whose first byte is (or would be) at `base`.
    fn patch(
        &self,
        state: &mut PatchState,
        writer: &mut Writer,
        base: usize,
        site: &Found,
        code: &[u8],
        path: &[u8],
    ) {
        let address = base.wrapping_add(site.offset);
        if address == gate::address() || address == entry::address() || state.stubs.pool_around(address) {
            return;
        }
        let number = site.number.known();
        let (start, end) = site.bytes(base);
        if !state.batch.has_room(Stubs::longest()) || state.batch.touches(start, end) {
            self.write_batch(state, writer, path);
        }
        let PatchState { stubs, batch, .. } = state;
        let patched = match site.shape {
            Ok(shape) => {
                // SAFETY: `search` found the instruction in this file, which is mapped here.
                unsafe { stubs.patch(writer, batch, base, site, shape, code) }.map(|when| (when, shape))
            }
            Err(Unfit::NoFunction) => Err(UnseenReason::NoFunction),
            Err(Unfit::Shape) => Err(UnseenReason::Shape),
            Err(Unfit::SmallStacks) => Err(UnseenReason::SmallStacks),
        };
        match patched {
            Ok((Patched::InBatch, _)) => {}
            Ok((Patched::Now, shape)) => self.patched(shape),
            Err(UnseenReason::Shape) if number.is_none() => {
                self.log.unseen(UnseenReason::UnknownNumber, None, address, path);
            }
            Err(reason) => self.log.unseen(reason, number, address, path),
        }
    }

    /// Rewrites the sites that are waiting for it, all of them in the file `path`.
    fn write_batch(&self, state: &mut PatchState, writer: &mut Writer, path: &[u8]) {
        let outcome = |site: &Waiting, written| match written {
            Ok(()) => self.patched(site.shape),
            Err(reason) => self.log.unseen(reason, site.number, site.address, path),
        };
        // SAFETY: only what nobody runs is kept there, and this belongs to the mapping that is being searched.
        unsafe { state.batch.write(writer, outcome) };
    }

    fn patched(&self, shape: Shape) {
        if let Some(process) = self.log.process() {
            let shape = match shape {
                Shape::T1 => 0,
                Shape::T2 => 1,
                Shape::T3 { .. } => 2,
            };
            process.sites[shape].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Memory that is ours in this process, in bytes.
    fn own_bytes(&self, stubs: &Stubs) -> usize {
        stubs.bytes()
            + size_of::<Primary>()
            + Threads::bytes()
            + Flow::bytes()
            + Batch::bytes()
            + AddressSpace::BYTES
    }

    /// Executable memory without a file: there is nothing that says where its functions are.
    fn anonymous_code(&self, range: Range) {
        // Said once: programs that make code make a lot of it.
        if !self.said_anonymous.swap(true, Ordering::Relaxed) {
            self.log.unseen(UnseenReason::Anonymous, None, range.start(), b"");
        }
    }

    /// After a call: if it has made memory executable, what is in there?
    #[inline]
    pub(crate) fn new_code(&self, call: Syscall, args: &[usize; 6], result: usize) {
        const EXECUTE: usize = 4;
        const ANONYMOUS: usize = 0x20;
        let (range, file) = match call {
            Syscall::Mmap if args[2] & EXECUTE != 0 => {
                (Range::with_len(result, args[1]), (args[3] & ANONYMOUS == 0).then_some(args[4]))
            }
            Syscall::Mprotect | Syscall::PkeyMprotect if args[2] & EXECUTE != 0 => {
                (Range::with_len(args[0], args[1]), None)
            }
            _ => return,
        };
        let Ok(range) = range else { return };
        match file {
            Some(descriptor) => self.new_mapping(range.to_pages(), descriptor, args[5]),
            None if call == Syscall::Mmap => self.anonymous_code(range),
            None => self.made_executable(range.to_pages()),
        }
    }

    #[inline(never)]
    fn new_mapping(&self, range: Range, descriptor: usize, offset: usize) {
        let began = ticks();
        // A mapping may reach beyond the end of its file, where reading is a bus error.
        let Ok(id) = safe::fstat(descriptor) else { return };
        let behind = (id.size as usize).saturating_sub(offset).next_multiple_of(PAGE_SIZE);
        let Ok(range) = Range::with_len(range.start(), range.len().min(behind)) else { return };
        let mut path = [0; session::PATH];
        let path = safe::descriptor_path(descriptor, &mut path);
        self.log.module(range, offset, path);
        let mut writer = Writer::new(Live::No);
        let open = || Some(safe::File::borrowed(descriptor));
        self.search_mapping(&mut writer, &id, open, range, offset, path);
        if let Some(process) = self.log.process() {
            process.own_calls.fetch_add(writer.own_calls, Ordering::Relaxed);
            process.search_ticks.fetch_add(ticks() - began, Ordering::Relaxed);
        }
    }

    /// Memory that became executable by `mprotect`: code made at run time, unless a file is mapped there, which
    /// a loader has made readable first and executable then.
    #[inline(never)]
    fn made_executable(&self, range: Range) {
        let mut of_file = false;
        let _ = maps::for_each(|mapping| of_file |= mapping.inode != 0 && mapping.range.overlaps(&range));
        if !of_file {
            self.anonymous_code(range);
        }
    }

    /// In a forked child, by its only thread.
    pub(crate) fn forked(&self) {
        self.pid.store(safe::getpid(), Ordering::Relaxed);
        self.threads.forked();
        self.patching.forked();
        // SAFETY: by this function's promise; the hook has come back from the call, so this is no callback.
        unsafe { self.space.forked() };
        self.log.forked();
        (self.after_fork)(self);
        oracle::set_up(&self.log);
    }

    /// Ends what this thread has left open.
    #[inline]
    pub(crate) fn end_abandoned(&self, caller: &Caller) {
        if self.space.may_have_open(caller) {
            self.end_what_is_gone(caller);
        }
    }

    #[inline(never)]
    fn end_what_is_gone(&self, caller: &Caller) {
        let mut signal_stack = None;
        let gone = |stack| {
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
        // SAFETY: a frame below the stack pointer of the thread that runs has been left for good.
        let ended = unsafe { self.space.end_abandoned(caller, gone) };
        if ended.changes > 0
            && let Some(process) = self.log.process()
        {
            process.abandoned.fetch_add(ended.changes as u64, Ordering::Relaxed);
            process.unfinished.fetch_add(ended.callbacks as u64, Ordering::Relaxed);
        }
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

/// Executable pages that can be read.
fn readable_code(range: Range) -> &'static [u8] {
    // SAFETY: the mapping is readable and backed by its file to the end; what others write to it does not matter
    // to a search for two bytes.
    unsafe { core::slice::from_raw_parts(range.start() as *const u8, range.len()) }
}

/// A path of `/proc/self/maps`, to open it.
fn path_to_c(path: &[u8]) -> Option<std::ffi::CString> {
    if path.ends_with(b" (deleted)") {
        return None;
    }
    std::ffi::CString::new(path).ok()
}

/// A file's bytes, mapped for a while.
struct FileBytes {
    bytes: &'static [u8],
}

impl FileBytes {
    fn map(file: &safe::File, writer: &mut Writer) -> Option<FileBytes> {
        const READ: usize = 1;
        const PRIVATE: usize = 2;
        let len = safe::fstat(file.descriptor()).ok()?.size as usize;
        writer.own_calls += 1;
        let args = [0, len, READ, PRIVATE, file.descriptor(), 0];
        // SAFETY: a new mapping.
        let at = unsafe { gate::call(Syscall::Mmap.number(), &args) };
        if (-4095..0).contains(&at) {
            return None;
        }
        // SAFETY: mapped just now, `len` bytes; `unmap` takes `self`, after which nobody has the slice.
        Some(FileBytes { bytes: unsafe { core::slice::from_raw_parts(at as *const u8, len) } })
    }

    fn unmap(self, writer: &mut Writer) {
        writer.own_calls += 1;
        let args = [self.bytes.as_ptr() as usize, self.bytes.len(), 0, 0, 0, 0];
        // SAFETY: the mapping made in `map`.
        unsafe { gate::call(Syscall::Munmap.number(), &args) };
    }
}

/// Whether this process has only one thread.
fn one_thread() -> bool {
    // Two of every folder, and one for each thread.
    safe::links(c"/proc/self/task") == Ok(3)
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
