//! Rewriting: which files are searched, when, and what becomes of what is found.
//!
//! At [install](Primary::install) everything that is mapped; after that each new mapping of code, from the hook behind the call that
//! made it, and so without memory of its own: room to work in is made beforehand ([`Patching`]). What a file has is found once
//! in a session and remembered ([`crate::sites`]).

// UNSAFETY: maps the files it searches, reads code, and hands code to be rewritten to `patch`.
#![expect(unsafe_code)]

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use mmu_notifier::{PAGE_SIZE, Range};

use crate::Syscall;
use crate::batch::{Batch, Waiting};
use crate::context::Survey;
use crate::flow::Flow;
use crate::gate::{
    self,
    safe::{self, FileId},
};
use crate::log::ticks;
use crate::maps;
use crate::patch::{Live, Patched, Stubs, Writer};
use crate::primary::{Primary, own_program};
use crate::search::{Calls, Found, Image, Shape, Unfit, Wanted, candidates, search};
use crate::session::{self, StrictState, UnseenReason};
use crate::sites::{self, Draft};
use crate::strict::{self, Strict};
use crate::tails;
use crate::trapped;
use crate::written;

/// What is needed to rewrite code, one thread at a time.
pub(crate) struct Patching {
    busy: AtomicBool,
    state: UnsafeCell<PatchState>,
}

#[derive(Debug)]
pub(crate) struct PatchState {
    stubs: Stubs,
    batch: Batch,
    flow: Flow,
}

// SAFETY: `state` is reached only through `Patching::with`, by one thread at a time.
unsafe impl Sync for Patching {}

impl Patching {
    pub(crate) fn new(stubs: Stubs) -> Patching {
        let state = PatchState { stubs, batch: Batch::new(), flow: Flow::new() };
        Patching { busy: AtomicBool::new(false), state: UnsafeCell::new(state) }
    }

    /// Runs `work` with the state; `None` if this thread is at it already (a signal handler loads a library), or
    /// another one is for too long.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut PatchState) -> R) -> Option<R> {
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
    pub(crate) fn forked(&self) {
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
    /// What is looked for in files.
    fn wanted(&self) -> Wanted {
        if self.strict == Strict::Always || strict::is_armed() {
            Wanted::All
        } else {
            Wanted::Only(self.calls())
        }
    }

    fn calls(&self) -> Calls {
        if self.check.is_some() { Calls::AlsoRegistrations } else { Calls::Memory }
    }

    /// Catches from now on what cannot be rewritten, if there is something.
    pub(crate) fn arm_if_needed(&self) {
        if self.strict != Strict::WhereNeeded || !self.out_of_reach.load(Ordering::Relaxed) {
            return;
        }
        if strict::is_armed() {
            return;
        }
        // What is rewritten is not trapped.
        let mut writer = Writer::new(if one_thread() { Live::No } else { Live::Yes });
        let _ = maps::for_each(|mapping| {
            let of_file = mapping.inode != 0 && !mapping.path.starts_with(b"[");
            if !(mapping.executable && mapping.readable && of_file) {
                return;
            }
            let Some(path) = path_to_c(mapping.path) else { return };
            let Ok(file) = safe::File::open(&path, 0) else { return };
            let Ok(id) = safe::fstat(file.descriptor()) else { return };
            let (range, offset) = (mapping.range, mapping.offset);
            self.search_mapping(
                &mut writer,
                Wanted::Rest(self.calls()),
                &id,
                || Some(file),
                range,
                offset,
                mapping.path,
            );
        });
        // Whoever counts begins when this process is ready.
        if let Some(process) = self.log.process()
            && process.ready.load(Ordering::Relaxed) != 0
        {
            process.own_calls.fetch_add(writer.own_calls, Ordering::Relaxed);
        }
        self.arm(StrictState::Needed);
    }

    pub(crate) fn arm(&self, state: StrictState) {
        let armed = strict::arm();
        self.strict_is(if armed.is_ok() { state } else { StrictState::Refused });
        if armed.is_ok_and(|deaf| deaf > 0) {
            let mut path = [0; 256];
            self.note_unseen(UnseenReason::Deaf, None, 0, own_program(&mut path));
        }
    }

    pub(crate) fn strict_is(&self, state: StrictState) {
        if let Some(process) = self.log.process() {
            process.strict.store(state as u32, Ordering::Relaxed);
        }
    }

    /// Something cannot be seen: it may be a call that lends this memory.
    fn note_unseen(&self, reason: UnseenReason, call: Option<usize>, address: usize, path: &[u8]) {
        self.lend();
        self.log.unseen(reason, call, address, path);
    }

    pub(crate) fn search_everything(&'static self) -> Result<(), safe::Errno> {
        let began = ticks();
        let live = if one_thread() { Live::No } else { Live::Yes };
        let mut writer = Writer::new(live);
        // The pools that are mapped meanwhile would change the list: first all, then one by one. The kernel writes it
        // anew each time, so it is read once for all who want to know.
        let mut found = Vec::new();
        let mut mapped = Vec::new();
        let mut survey = Survey::new();
        maps::for_each(|mapping| {
            self.memory.look_at(mapping);
            survey.look_at(mapping);
            mapped.push(mapping.range);
            if mapping.executable && mapping.readable {
                found.push((mapping.range, mapping.offset, mapping.inode, mapping.path.to_vec()));
            }
        })?;
        self.contexts.learn(&survey);
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
                Some(id) => self.search_mapping(&mut writer, self.wanted(), &id, open, *range, *offset, path),
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
            self.note_unseen(UnseenReason::NoFile, None, range.start(), path);
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
    #[expect(clippy::too_many_arguments, reason = "a mapping is a file, a place and a path")]
    fn search_mapping(
        &self,
        writer: &mut Writer,
        wanted: Wanted,
        id: &FileId,
        open: impl FnOnce() -> Option<safe::File>,
        range: Range,
        offset: usize,
        path: &[u8],
    ) {
        // What is remembered is what all processes of the session look for.
        let is_rest = matches!(wanted, Wanted::Rest(_));
        let remembered = (wanted == Wanted::All) == (self.strict == Strict::Always) && !is_rest;
        let done = self.patching.with(|state| {
            // What is left of it is searched in addition.
            if !is_rest {
                written::forget(&range);
            }
            if remembered && let Some(known) = sites::known(&self.log, id, offset, range.len()) {
                let base = range.start().wrapping_sub(offset);
                sites::for_each(known, |site, code| {
                    if site.shape == Err(Unfit::SmallStacks) {
                        trapped::stacks_are_small(range);
                    }
                    self.patch(state, writer, base, &site, code, path);
                });
                self.write_batch(state, writer, path);
                return true;
            }
            let draft = || if remembered { Draft::new(&self.log, id, offset, range) } else { Draft::none() };
            if candidates(readable_code(range)).next().is_none() {
                draft().complete();
                return true;
            }
            // What has this name by now may be another file.
            let file = open().filter(|file| safe::fstat(file.descriptor()).as_ref() == Ok(id));
            let Some(file) = file else { return false };
            let mut draft = draft();
            self.search_file(state, writer, wanted, &file, range, offset, path, &mut draft);
            self.write_batch(state, writer, path);
            draft.complete();
            true
        });
        match done {
            Some(true) => self.searched(),
            Some(false) => self.no_file(range, path),
            None => {
                self.note_unseen(UnseenReason::TableFull, None, range.start(), path);
                self.searched();
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a mapping is a file, a place and a path")]
    fn search_file(
        &self,
        state: &mut PatchState,
        writer: &mut Writer,
        wanted: Wanted,
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
            if image.is_go() {
                trapped::stacks_are_small(range);
            }
            let mut flow = core::mem::take(&mut state.flow);
            for part in without_own_stubs(range) {
                let offset = part.start().wrapping_sub(base);
                search(image, readable_code(part), offset, wanted, &mut flow, |site| {
                    if let Some(code) = bytes.bytes.get(site.from..site.offset + 2) {
                        draft.add(&site, code);
                        self.patch(state, writer, base, &site, code, path);
                    }
                });
            }
            state.flow = flow;
        } else {
            self.note_unseen(UnseenReason::NoFile, None, range.start(), path);
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
        // Ours may have been found in another copy of this library from the same file.
        if state.stubs.pool_around(address) || tails::calls().contains(&address) {
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
                self.not_rewritten(UnseenReason::UnknownNumber, None, address, path);
            }
            Err(reason) => self.not_rewritten(reason, number, address, path),
        }
    }

    /// Says that a site was not rewritten, if it is one that should be.
    fn not_rewritten(&self, reason: UnseenReason, number: Option<usize>, address: usize, path: &[u8]) {
        if number.is_none_or(|number| Syscall::from_number(number).is_some()) {
            self.out_of_reach.store(true, Ordering::Relaxed);
            self.note_unseen(reason, number, address, path);
        }
    }

    /// Rewrites the sites that are waiting for it, all of them in the file `path`.
    fn write_batch(&self, state: &mut PatchState, writer: &mut Writer, path: &[u8]) {
        let outcome = |site: &Waiting, written| match written {
            Ok(()) => self.patched(site.shape),
            Err(reason) => {
                if let Ok(here) = Range::with_len(site.address, 1) {
                    written::forget(&here);
                }
                self.not_rewritten(reason, site.number, site.address, path);
            }
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

    /// What stands at the start of each pool of stubs, if it can be looked at now.
    pub(crate) fn pool_header(&self) -> Option<[u8; 16]> {
        self.patching.with(|state| state.stubs.header())
    }

    /// Executable memory without a file: there is nothing that says where its functions are.
    fn anonymous_code(&self, range: Range) {
        // Said once: programs that make code make a lot of it.
        if !self.said_anonymous.swap(true, Ordering::Relaxed) {
            self.note_unseen(UnseenReason::Anonymous, None, range.start(), b"");
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
        let Ok(id) = safe::fstat(descriptor) else {
            return self.note_unseen(UnseenReason::NoFile, None, range.start(), b"");
        };
        let behind = (id.size as usize).saturating_sub(offset).next_multiple_of(PAGE_SIZE);
        let Ok(range) = Range::with_len(range.start(), range.len().min(behind)) else { return };
        let mut path = [0; session::PATH];
        let path = safe::descriptor_path(descriptor, &mut path);
        self.log.module(range, offset, path);
        let mut writer = Writer::new(Live::No);
        let open = || Some(safe::File::borrowed(descriptor));
        self.search_mapping(&mut writer, self.wanted(), &id, open, range, offset, path);
        self.arm_if_needed();
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
}

/// What lies in `range` before and behind what we have written there: by now it may have hundreds of calls.
fn without_own_stubs(range: Range) -> impl Iterator<Item = Range> {
    let stubs = tails::stubs();
    let before = Range::new(range.start(), range.end().min(stubs.start));
    let behind = Range::new(range.start().max(stubs.end), range.end());
    [before, behind].into_iter().flatten()
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
