//! Hot places: code that is trapped again and again is rewritten while it runs.
//!
//! # One byte
//!
//! A `syscall` is two bytes, and nothing is known of the code around: not where its function begins, nor who jumps where. So
//! one byte is changed, and the three that follow are read as part of a jump (instruction punning: Duck, Gao and
//! Roychoudhury, "Binary Rewriting without Control Flow Recovery", PLDI 2020):
//!
//! ```text
//! 0f 05   xx yy zz ..      syscall; and whatever comes then
//! e9 05   xx yy zz ..      jmp window + 5;  window = behind these five bytes + zzyyxx00
//! ```
//!
//! Where the jump leads cannot be chosen. If nothing is mapped there, a page is, and a jump to the place's stub
//! ([`crate::trapped`]) written where the other one arrives. If something is - or would be: the heap and the stack grow -
//! the place stays trapped.
//!
//! * Whoever jumps, or returns, behind the `syscall` finds what was there: no byte of it has changed. So does a thread that
//!   sleeps in the call. One that is made to start its call again (`ERESTARTSYS`) comes by the jump.
//! * There is nothing in between. A store of one byte is seen or not, whatever cache lines the instruction lies on and
//!   whatever bytes a processor has fetched already: it decodes the old instruction, which traps, or the new one, and both
//!   come to the same stub. That is the first of the two steps by which the kernel itself changes code under running
//!   processors (`text_poke_bp`), and its last. When a place is rewritten, or put back, every processor has dropped what
//!   it had decoded before (`membarrier`).
//! * What the jump leads to is never taken away while the place is rewritten, and stays for good: a thread that was
//!   interrupted between the two jumps goes on whenever it likes. The same place gets it again.
//!
//! # Only what does not change
//!
//! Code is rewritten in private mappings that can be executed and not written, all five bytes on one page. Before a call
//! changes such memory in any way, the byte is put back ([`before`]); what the program reads or writes there afterwards
//! is its own. The place is trapped again, and once it is hot again, rewritten.
//!
//! Who rewrites and who changes must see each other:
//!
//! ```text
//! change                                   rewrite
//! ------                                   -------
//! on record  (RMW)                         place := GOING, mode := HOT
//! full fence                               full fence
//! HOT? look for places                     read the record: is a change open there?
//!
//!    [ the change finds the place, and puts it back when it is done; or who rewrites finds the change, and leaves it ]
//! ```
//!
//! Behind that the mappings are read: what was changed before is seen, what will be is announced and waits.
//!
//! # Where it happens
//!
//! In the handler of SIGSYS, in which every signal is blocked: by system calls, on memory that is there. Nobody waits in
//! there: if another thread is at it, the place is rewritten a few traps later. Who puts back does wait, with signals
//! blocked, for a thread that makes a dozen system calls.
//!
//! A filter of seccomp may kill whoever makes one of these. So a process that is about to confine itself puts all places back,
//! and rewrites none from then on ([`confined`]).

// UNSAFETY: writes code, and memory that one thread uses at a time.
#![expect(unsafe_code)]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use mmu_notifier::{Event, PAGE_SIZE, Range};

use crate::Syscall;
use crate::code::Code;
use crate::gate::{self, safe};
use crate::hook;
use crate::maps::{self, Mapping};
use crate::patch::{Live, Writer};
use crate::primary::Primary;
use crate::trapped::{self, Place, is_small};

/// Places that are, or were, rewritten: as many as can be trapped.
const PLACES: usize = 512;
/// Pages for where jumps arrive.
const WINDOWS: usize = 512;
/// The instruction that is written.
const JUMP: usize = 5;
/// The first byte of `syscall`, and of a jump.
const SYSCALL: u8 = 0x0f;
const JMP: u8 = 0xe9;
/// The second byte of `syscall`: the lowest one of the distance.
const LOWEST: u8 = 0x05;
/// Most bytes of what is written where a jump arrives.
const LANDING: usize = 64;
/// What the heap and the stack of the process may need.
const GROWTH: usize = 1 << 30;

/// A place, and where its jump arrives: for good, unless the program takes the page away.
struct Entry {
    /// Of the `syscall` instruction; 0: none.
    address: AtomicUsize,
    /// Where the jump arrives.
    target: AtomicUsize,
    state: AtomicU32,
}

/// As the program has made it.
const OUT: u32 = 0;
/// Rewritten, or about to be: who changes the memory waits for whoever is at it.
const GOING: u32 = 1;
const IN: u32 = 2;

static ENTRIES: [Entry; PLACES] = [const {
    Entry { address: AtomicUsize::new(0), target: AtomicUsize::new(0), state: AtomicU32::new(OUT) }
}; PLACES];
/// Entries that were ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Addresses of pages that are ours; 0: none.
static OURS: [AtomicUsize; WINDOWS] = [const { AtomicUsize::new(0) }; WINDOWS];
/// Changes under way that are not on record ([`crate::bracket::Opened::Later`]).
static UNRECORDED: AtomicU32 = AtomicU32::new(0);
/// The program has confined itself, or is about to.
static CONFINED: AtomicBool = AtomicBool::new(false);
/// Places so far that were rewritten, and that could not be.
static COUNTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Who rewrites or puts back, one thread at a time, with its signals blocked.
static ONE: One = One { busy: AtomicBool::new(false), room: UnsafeCell::new([0; 4096]) };

struct One {
    busy: AtomicBool,
    /// To read mappings: the stack may be a small one.
    room: UnsafeCell<[u8; 4096]>,
}

// SAFETY: `room` is reached only by who has set `busy`.
unsafe impl Sync for One {}

impl One {
    /// Runs `work`, unless another thread is at it.
    fn try_with<R>(&self, work: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        // Acquire pairs with the Release below.
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `busy` keeps everybody else out until the store below.
        let result = work(unsafe { &mut *self.room.get() });
        self.busy.store(false, Ordering::Release);
        Some(result)
    }
}

/// Why a place is not rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Not {
    /// Somebody is at it, or changes the memory.
    Now,
    /// It cannot be.
    Here,
}

impl Entry {
    fn address(&self) -> usize {
        self.address.load(Ordering::Relaxed)
    }

    fn target(&self) -> usize {
        self.target.load(Ordering::Relaxed)
    }

    /// The jump: what is there while the place is rewritten.
    fn jump(&self) -> [u8; JUMP] {
        jump(self.address(), self.target())
    }

    /// Whether it is rewritten, or about to be.
    fn is_on(&self) -> bool {
        // SeqCst: behind the claim of a slot; the partner is the store of GOING, and then the look at the record.
        self.state.load(Ordering::SeqCst) != OUT
    }

    fn forget(&self) {
        self.address.store(0, Ordering::Relaxed);
        self.target.store(0, Ordering::Relaxed);
    }

    /// Whether it is rewritten, and a change of `range` is one of its code or of where its jump arrives.
    fn is_touched_by(&self, range: &Range) -> bool {
        let touches = |start: usize, len: usize| start < range.end() && range.start() < start + len;
        self.is_on() && (touches(self.address(), JUMP) || touches(self.target(), landing_len(self.address())))
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    // Acquire pairs with the Release in `entry_for`. Who is not seen here sees the change that this is asked for.
    ENTRIES[..USED.load(Ordering::Acquire)].iter()
}

/// The jump at `address` to `target`.
fn jump(address: usize, target: usize) -> [u8; JUMP] {
    let distance = (target.wrapping_sub(address + JUMP) as i32).to_le_bytes();
    [JMP, distance[0], distance[1], distance[2], distance[3]]
}

/// Where a jump arrives that consists of this code, but for its first byte.
fn target_of(address: usize, code: &[u8; JUMP]) -> Option<usize> {
    if code[1] != LOWEST {
        return None;
    }
    let distance = i32::from_le_bytes([code[1], code[2], code[3], code[4]]) as isize;
    (address + JUMP).checked_add_signed(distance)
}

/// What is written at `target`, for the place whose `syscall` is at `address`.
///
/// ```text
/// jmp  [stub]
/// ```
///
/// Of code whose stacks are too small for the hook:
///
/// ```text
/// lea  rcx, [trap]
/// jmp  [mmu_notifier_landed]     ; which goes on at one of these two
/// trap:  syscall                 ; is trapped: the call is made in the handler
///        jmp [back]
/// plain: (the address of the tail that makes the call)
/// ```
fn landing(place: Place, address: usize, target: usize) -> Code<LANDING> {
    let mut code = Code::at(target);
    if !is_small(address) {
        code.put_far_jump(place.stub());
        return code;
    }
    let landed: unsafe extern "C" fn() = mmu_notifier_landed;
    code.put_relative(&[0x48, 0x8d, 0x0d], target + TRAP);
    code.put_far_jump(landed as usize);
    debug_assert_eq!(code.here(), target + TRAP);
    code.put(&[0x0f, 0x05]);
    code.put_far_jump(address + 2);
    debug_assert_eq!(code.here(), target + TRAP + PLAIN);
    code.put_word(place.plain());
    code
}

/// Where the `syscall` is in a landing that has one, and, from there on, the address of the tail.
const TRAP: usize = 7 + 14;
const PLAIN: usize = 2 + 14;

/// Bytes of the landing of the place at `address`.
fn landing_len(address: usize) -> usize {
    if is_small(address) { TRAP + PLAIN + 8 } else { 14 }
}

/// The system calls that are something to us, a bit for each, once there is a landing that asks.
static CARED: [AtomicU64; NUMBERS / 64] = [const { AtomicU64::new(0) }; NUMBERS / 64];
const NUMBERS: usize = 512;

global_asm!(
    ".pushsection mmu_notifier_calls, \"ax\", @progbits",
    ".p2align 4",
    ".hidden mmu_notifier_landed",
    ".globl mmu_notifier_landed",
    ".type mmu_notifier_landed, @function",
    "mmu_notifier_landed:",
    // Free are rcx, which has the address of the trap, and r11. There may be no room on the stack, and the flags are the
    // program's: they come back as at the end of `crate::entry`.
    "mov r11, rax",
    "lahf",
    "seto al",
    "cmp r11, {numbers}",
    "jae 2f",
    "bt qword ptr [rip + {cared}], r11",
    "jc 3f",
    "2:",
    "add al, 0x7f",
    "sahf",
    "mov rax, r11",
    "jmp qword ptr [rcx + {plain}]",
    "3:",
    "add al, 0x7f",
    "sahf",
    "mov rax, r11",
    "jmp rcx",
    ".size mmu_notifier_landed, . - mmu_notifier_landed",
    ".popsection",
    numbers = const NUMBERS,
    cared = sym CARED,
    plain = const PLAIN,
);

unsafe extern "C" {
    fn mmu_notifier_landed();
}

/// Fills [`CARED`]; the same each time.
fn care() {
    for (index, word) in CARED.iter().enumerate() {
        let bits = (0..64).filter(|bit| !hook::does_not_care(index * 64 + bit));
        // Relaxed: read by code that is written after this.
        word.store(bits.fold(0, |word, bit| word | 1 << bit), Ordering::Relaxed);
    }
}

/// The address of the place that is meant by a `syscall` at `address`: another one, if that is in a landing.
pub(crate) fn place_of(address: usize) -> usize {
    // Relaxed: who comes from a landing sees at least when it was made.
    if CARED[0].load(Ordering::Relaxed) == 0 {
        return address;
    }
    let is_it = |entry: &&Entry| {
        entry.target() == address.wrapping_sub(TRAP) && entry.address() != 0 && is_small(entry.address())
    };
    entries().find(is_it).map_or(address, Entry::address)
}

/// Rewrites the place whose `syscall` is at `address`, if that can be done. In the handler of SIGSYS.
#[cold]
#[inline(never)]
pub(crate) fn rewrite(primary: &Primary, address: usize, place: Place) {
    let process = primary.log.process();
    let done = ONE.try_with(|room| {
        // Relaxed: stored before `confined` was at it, or it comes behind this.
        if CONFINED.load(Ordering::Relaxed) {
            return Err(Not::Here);
        }
        // Opened and closed in here: a call.
        let mut writer = Writer::new(Live::No);
        let done = rewrite_alone(primary, &mut writer, room, address, place);
        heat(primary);
        if let Some(process) = process {
            process.own_calls.fetch_add(writer.own_calls, Ordering::Relaxed);
        }
        done
    });
    let outcome = match done.unwrap_or(Err(Not::Now)) {
        // Only who was on his way comes by now.
        Ok(()) => {
            place.put_off(1 << 10);
            0
        }
        Err(Not::Now) => return place.put_off(trapped::HOT / 2),
        // Something may have changed by the time that it has been trapped as often again.
        Err(Not::Here) => {
            place.put_off(place.traps());
            1
        }
    };
    if place.notes(outcome) {
        COUNTS[outcome].fetch_add(1, Ordering::Relaxed);
        if let Some(process) = process {
            process.hot[outcome].fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn rewrite_alone(
    primary: &Primary,
    writer: &mut Writer,
    room: &mut [u8],
    address: usize,
    place: Place,
) -> Result<(), Not> {
    let code = read(address).ok_or(Not::Here)?;
    if entries().any(|entry| entry.address() == address && entry.is_on() && code == entry.jump()) {
        return Ok(());
    }
    let page = |address: usize| address & !(PAGE_SIZE - 1);
    if code[0] != SYSCALL || page(address) != page(address + JUMP - 1) {
        return Err(Not::Here);
    }
    let target = target_of(address, &code).ok_or(Not::Here)?;
    let entry = entry_for(address, target).ok_or(Not::Here)?;
    // From here on a change of this memory waits for us. SeqCst, both: before the look at the record; the partner is who
    // is on record and then looks for HOT, and for this.
    entry.state.store(GOING, Ordering::SeqCst);
    primary.mode.hot(true);
    let done = write(primary, writer, room, entry, place);
    entry.state.store(if done.is_ok() { IN } else { OUT }, Ordering::Release);
    done
}

/// Of a place that is GOING.
fn write(
    primary: &Primary,
    writer: &mut Writer,
    room: &mut [u8],
    entry: &Entry,
    place: Place,
) -> Result<(), Not> {
    let (address, target) = (entry.address(), entry.target());
    let here = Range::with_len(address, JUMP).map_err(|_| Not::Here)?;
    // SeqCst: as that of GOING, which pairs with that of `unrecorded`.
    if UNRECORDED.load(Ordering::SeqCst) != 0 || primary.may_be_changing(here) {
        return Err(Not::Now);
    }
    let landing = landing(place, address, target);
    let landing = landing.bytes();
    if !can_be_written(room, &here, target, landing.len()) {
        return Err(Not::Here);
    }
    // What nobody could have changed since.
    let [_, rest @ ..] = entry.jump();
    let code = read(address).ok_or(Not::Here)?;
    if code[0] != SYSCALL || code[1..] != rest {
        return Err(Not::Here);
    }
    if is_small(address) {
        care();
    }
    map_windows(writer, primary, target, landing.len())?;
    if read_landing(target)[..landing.len()] != *landing {
        // SAFETY: on a page of ours, and of nobody else there: see `entry_for`.
        unsafe { writer.quiet(target, landing).map_err(|_| Not::Here)? };
    }
    // Who sees the jump finds what it leads to.
    let _ = safe::synchronize_code();
    // SAFETY: whichever of both bytes a thread finds, it makes this call: see the module documentation.
    unsafe { writer.byte(address, JMP).map_err(|_| Not::Here)? };
    let _ = safe::synchronize_code();
    Ok(())
}

/// The entry of a place and a target: known already, or new. `None`: there are too many, or something is in the way.
fn entry_for(address: usize, target: usize) -> Option<&'static Entry> {
    let len = landing_len(address);
    let overlap = |a: usize, a_len: usize, b: usize, b_len: usize| a < b + b_len && b < a + a_len;
    let others = || entries().filter(|entry| entry.address() != 0 && entry.address() != address);
    // The bytes that the jumps consist of must not be those of another one, nor where they arrive.
    if others().any(|other| other.is_on() && overlap(address, JUMP, other.address(), JUMP))
        || others().any(|other| overlap(target, len, other.target(), landing_len(other.address())))
    {
        return None;
    }
    let is_it = |entry: &&Entry| entry.address() == address && entry.target() == target;
    if let Some(known) = entries().find(is_it) {
        return Some(known);
    }
    // Of the same place with other code behind it: its landing may still have somebody on it.
    if entries().any(|entry| entry.address() == address && overlap(target, len, entry.target(), len)) {
        return None;
    }
    let used = USED.load(Ordering::Relaxed);
    let free = ENTRIES.iter().take(used + 1).find(|entry| entry.address() == 0)?;
    free.address.store(address, Ordering::Relaxed);
    free.target.store(target, Ordering::Relaxed);
    if core::ptr::eq(free, &raw const ENTRIES[used.min(PLACES - 1)]) {
        // Release pairs with the Acquire in `entries`: it is complete.
        USED.store((used + 1).min(PLACES), Ordering::Release);
    }
    Some(free)
}

/// Whether the code is where it may be written, and its jump leads to where something may be mapped.
fn can_be_written(room: &mut [u8], here: &Range, target: usize, len: usize) -> bool {
    const LOWEST_PAGE: usize = 16 * PAGE_SIZE;
    const HIGHEST: usize = (1 << 47) - PAGE_SIZE;
    if target < LOWEST_PAGE || target + len > HIGHEST {
        return false;
    }
    let (mut code, mut free) = (false, true);
    let read = maps::for_each_in(room, |mapping| {
        let Mapping { range, path, .. } = mapping;
        if range.contains(here) {
            let ours = path.starts_with(b"[") && !path.starts_with(b"[anon");
            code = mapping.readable && mapping.executable && !mapping.writable && !mapping.shared && !ours;
        }
        // What grows must be able to.
        free &= match *path {
            b"[heap]" => !(range.end()..range.end().saturating_add(GROWTH)).contains(&target),
            b"[stack]" => !(range.start().saturating_sub(GROWTH)..range.start()).contains(&target),
            _ => true,
        };
    });
    read.is_ok() && code && free
}

/// Maps the pages where `len` bytes at `target` are, but for those that are ours already.
fn map_windows(writer: &mut Writer, primary: &Primary, target: usize, len: usize) -> Result<(), Not> {
    const READ_EXECUTE: usize = 5;
    const PRIVATE_ANONYMOUS_NOREPLACE: usize = 0x02 | 0x20 | 0x10_0000;
    let first = target & !(PAGE_SIZE - 1);
    for page in (first..target + len).step_by(PAGE_SIZE) {
        let is = |known: usize| move |ours: &&AtomicUsize| ours.load(Ordering::Relaxed) == known;
        if OURS.iter().any(|ours| is(page)(&ours)) {
            continue;
        }
        let place = OURS.iter().find(is(0)).ok_or(Not::Here)?;
        let args = [page, PAGE_SIZE, READ_EXECUTE, PRIVATE_ANONYMOUS_NOREPLACE, usize::MAX, 0];
        writer.own_calls += 1;
        // SAFETY: new memory, nothing is replaced.
        if unsafe { gate::call(Syscall::Mmap.number(), &args) } != page as isize {
            return Err(Not::Here);
        }
        place.store(page, Ordering::Relaxed);
        if let Some(process) = primary.log.process() {
            process.own_bytes.fetch_add(PAGE_SIZE as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// What is at `address`, if it can be read.
fn read(address: usize) -> Option<[u8; JUMP]> {
    let mut code = [0; JUMP];
    (safe::read_memory(address, &mut code) == Ok(JUMP)).then_some(code)
}

fn read_landing(target: usize) -> [u8; LANDING] {
    let mut code = [0; LANDING];
    let _ = safe::read_memory(target, &mut code);
    code
}

/// The pages of ours that `range` touches.
fn ours_in(range: &Range) -> impl Iterator<Item = &'static AtomicUsize> {
    let (start, end) = (range.start(), range.end());
    OURS.iter().filter(move |ours| {
        let page = ours.load(Ordering::Relaxed);
        page != 0 && page < end && start < page + PAGE_SIZE
    })
}

/// Says in the mode whether there is anything that [`before`] has to look for: also pages of ours, which are not ours any more
/// once somebody has mapped something over them. By one thread at a time.
fn heat(primary: &Primary) {
    let pages = OURS.iter().any(|ours| ours.load(Ordering::Relaxed) != 0);
    primary.mode.hot(pages || entries().any(Entry::is_on));
}

/// Before a change, and behind its claim of a slot: what was rewritten there is the program's own again.
#[inline(always)]
pub(crate) fn before(primary: &Primary, range: Range, event: Event) {
    // A copy of the memory, or its end, leaves code what it is.
    if primary.mode.is_hot() && !matches!(event, Event::ProtectionPage | Event::Release) {
        put_back(primary, &range, event);
    }
}

/// The same for a change that is on no record, until [`recorded`].
#[cold]
pub(crate) fn unrecorded(primary: &Primary, range: Range, event: Event) {
    // SeqCst: before the look for places; the partner is GOING, and then the look at this.
    UNRECORDED.fetch_add(1, Ordering::SeqCst);
    before(primary, range, event);
}

/// Such a change is done.
#[cold]
pub(crate) fn recorded() {
    UNRECORDED.fetch_sub(1, Ordering::SeqCst);
}

#[inline(never)]
fn put_back(primary: &Primary, range: &Range, event: Event) {
    if !entries().any(|entry| entry.is_touched_by(range)) && ours_in(range).next().is_none() {
        return;
    }
    put_back_with(primary, range, event);
}

/// Waits for whoever is at it.
fn put_back_with(primary: &Primary, range: &Range, event: Event) {
    let mut writer = Writer::new(Live::No);
    safe::without_signals(|| {
        while ONE.try_with(|_| put_back_alone(primary, &mut writer, range, event)).is_none() {
            safe::yield_processor();
        }
    });
    if let Some(process) = primary.log.process() {
        process.own_calls.fetch_add(writer.own_calls, Ordering::Relaxed);
    }
}

fn put_back_alone(primary: &Primary, writer: &mut Writer, range: &Range, event: Event) {
    for entry in entries().filter(|entry| entry.is_touched_by(range)) {
        let address = entry.address();
        if read(address) == Some(entry.jump()) {
            // SAFETY: as in `write`.
            let _ = unsafe { writer.byte(address, SYSCALL) };
        }
        entry.state.store(OUT, Ordering::Release);
        trapped::forget_traps(address);
        // Whoever is on his way to the landing of code that goes has nowhere to come back to: others may land there.
        if event == Event::Unmap {
            entry.forget();
        }
    }
    let _ = safe::synchronize_code();
    for ours in ours_in(range) {
        let page = ours.swap(0, Ordering::Relaxed);
        // Whoever was interrupted between the two jumps is lost with the page: as with any code that is unmapped.
        let arrives_there = |entry: &&Entry| {
            let target = entry.target();
            target < page + PAGE_SIZE && page < target + landing_len(entry.address())
        };
        for entry in entries().filter(arrives_there) {
            entry.forget();
        }
    }
    heat(primary);
}

/// Before the program confines itself: what is done here takes calls that need not be on its list.
#[cold]
pub(crate) fn confined() {
    // Relaxed: see `rewrite`. The second time, and before the process is armed, there is nothing to put back.
    if !CONFINED.swap(true, Ordering::Relaxed)
        && crate::strict::is_armed()
        && let Some(primary) = hook::primary()
    {
        put_back_with(primary, &Range::EVERYTHING, Event::Clear);
    }
}

/// In a forked child, by its only thread: who was at it in the parent does not go on here.
pub(crate) fn forked(primary: &Primary) {
    UNRECORDED.store(0, Ordering::Relaxed);
    if ONE.busy.load(Ordering::Relaxed) {
        for entry in entries().filter(|entry| entry.address() != 0) {
            let is_there = read(entry.address()) == Some(entry.jump());
            entry.state.store(if is_there { IN } else { OUT }, Ordering::Relaxed);
        }
        heat(primary);
        ONE.busy.store(false, Ordering::Relaxed);
    }
}

/// A place that is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Of the `syscall` instruction.
    pub(crate) address: usize,
    /// What is there.
    pub(crate) jump: [u8; JUMP],
    /// What was.
    pub(crate) own: [u8; JUMP],
    /// Where the jump arrives.
    pub(crate) target: usize,
}

/// What is written, and instead of what.
pub(crate) const WRITTEN: (u8, u8) = (JMP, SYSCALL);

/// Whether the place at `address` is rewritten, is about to be, or was.
pub(crate) fn knows(address: usize) -> bool {
    entries().any(|entry| entry.address() == address)
}

/// Every place that is rewritten now.
pub(crate) fn all() -> impl Iterator<Item = Rewritten> {
    // Acquire pairs with the Release in `rewrite_alone`: the code is written.
    entries().filter(|entry| entry.state.load(Ordering::Acquire) == IN).map(|entry| {
        let jump = entry.jump();
        let own = [SYSCALL, jump[1], jump[2], jump[3], jump[4]];
        Rewritten { address: entry.address(), jump, own, target: entry.target() }
    })
}

impl Rewritten {
    /// Whether it still is: what is looked at meanwhile may be changed by the program, which puts it back.
    pub(crate) fn is_still(&self) -> bool {
        all().any(|other| other == *self)
    }

    /// Whether what the jump leads to is there.
    pub(crate) fn has_landing(&self) -> bool {
        let now = read_landing(self.target);
        Place::of(self.address).is_some_and(|place| {
            let landing = landing(place, self.address, self.target);
            now[..landing.bytes().len()] == *landing.bytes()
        })
    }
}

/// What strict mode has done so far in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traps {
    /// System calls that were trapped, in this process and in those that it was forked from.
    pub calls: u64,
    /// Places that were rewritten while they ran, as they were trapped again and again.
    pub rewritten: u64,
    /// Places that were trapped as often and could not be rewritten when that was tried first.
    pub kept: u64,
}

impl Primary {
    /// How often system calls were trapped (strict mode), and what became of the places where they often were.
    ///
    /// A look at three numbers. Without strict mode all are 0.
    pub fn traps(&self) -> Traps {
        let [rewritten, kept] = COUNTS.each_ref().map(|count| count.load(Ordering::Relaxed));
        Traps { calls: crate::strict::traps(), rewritten, kept }
    }
}
