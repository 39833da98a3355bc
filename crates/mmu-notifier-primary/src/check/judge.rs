//! A change meets a registration: is it still of the pages that the program sees?
//!
//! | holder | what it does about changes | so what is wrong |
//! | --- | --- | --- |
//! | io_uring, VFIO, iommufd, RDMA | nothing: it has pinned the pages | the address means other pages (stale), or none (unmapped); the program took its right to write, the holder has it (exposed) |
//! | KVM memslots | follows, as an MMU notifier | there is nothing to follow to: nothing is mapped (dangling) |
//! | `mlock` | goes with the mapping | what stands there instead is not locked (unlocked) |
//!
//! What leaves the pages where they are is found to by looking: `fork`, `MADV_FREE`, `MADV_PAGEOUT`, `MADV_DONTNEED` of
//! a shared mapping. Each page is told once for each verdict.

use mmu_notifier::{Event, PAGE_SIZE, Range};

use super::frames::{self, Compared};
use super::pending::Outcome;
use super::table::{Entry, Table};
use crate::Syscall;
use crate::session::check::{Registered, Verdict};

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    pub(crate) call: Syscall,
    pub(crate) args: &'a [usize; 6],
    pub(crate) result: usize,
    /// What it announced.
    pub(crate) changes: &'a [(Range, Event)],
}

/// What was found of registrations of one call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    /// Where it waits ([`super::pending`]).
    pub(crate) pending: Option<u32>,
    /// The first of them.
    pub(crate) entry: Entry,
    pub(crate) count: u32,
    pub(crate) from: usize,
    pub(crate) bytes: u64,
    pub(crate) compared: Compared,
}

impl Made<'_> {
    /// What is mapped anew, also where nothing was.
    pub(crate) fn mapped(&self) -> Option<Range> {
        let len = match self.call {
            Syscall::Mmap => self.args[1],
            Syscall::Mremap => self.args[2],
            // The size of the segment is known to who asked; a page of it will do, as the address is the same.
            Syscall::Shmat => PAGE_SIZE,
            _ => return None,
        };
        Range::with_len(self.result, len).ok().map(|range| range.to_pages())
    }

    /// The right to write that a call gives or takes.
    fn protection(&self) -> Option<bool> {
        const WRITE: usize = 2;
        let protects = matches!(self.call, Syscall::Mprotect | Syscall::PkeyMprotect);
        protects.then_some(self.args[2] & WRITE != 0)
    }
}

/// Looks at everything that a call has changed; `found` is called for each registration that is not what it was,
/// with those of the same call together.
pub(crate) fn judge(
    table: &mut Table,
    made: &Made<'_>,
    lock_future: bool,
    mut alive: impl FnMut(&Entry) -> bool,
    mut found: impl FnMut(&mut Table, &Found),
) -> (u64, Compared) {
    let mut all = Compared::default();
    let mut met = 0;
    let mut open: Option<Found> = None;
    let mapped = made.mapped().filter(|mapped| !made.changes.iter().any(|(range, _)| range.contains(mapped)));
    let ranges = made.changes.iter().copied().chain(mapped.map(|range| (range, Event::Unmap)));
    for (range, event) in ranges {
        for place in table.places() {
            let entry = *table.entry(place);
            let Some(kind) = entry.kind() else { continue };
            let Some(part) = entry.pages().and_then(|pages| pages.intersection(&range)) else { continue };
            if entry.inherited {
                continue;
            }
            if !alive(&entry) {
                table.remove(place);
                continue;
            }
            met += 1;
            let (verdict, compared) = match kind {
                Registered::Lock => {
                    (lock(table, place, made, event, &part, lock_future), Compared::default())
                }
                Registered::Memslot => {
                    let dangles = event == Event::Unmap && frames::has_holes(&part);
                    (dangles.then_some(Verdict::Dangling), Compared::default())
                }
                _ => pinned(table, place, made, event, &part, entry.writes),
            };
            all.add(&compared);
            let Some(verdict) = verdict else { continue };
            if verdict == Verdict::Stale {
                // What was unmapped before has become a mistake.
                table.settle(place, Outcome::Mistake);
            }
            let bytes = Range::with_len(entry.start, entry.len)
                .ok()
                .and_then(|whole| whole.intersection(&part))
                .map_or(part.len(), |both| both.len()) as u64;
            if let (Verdict::Unmapped, Some(pending)) = (verdict, table.pending(place)) {
                // Piece by piece: it is told with the first one.
                table.grow(pending, bytes, &compared);
                continue;
            }
            match &mut open {
                Some(open) if open.verdict == verdict && open.entry.is_sibling(&entry) => {
                    open.count += 1;
                    open.bytes += bytes;
                    open.compared.add(&compared);
                }
                _ => {
                    let from = part.start().max(entry.start);
                    let waits = verdict == Verdict::Unmapped;
                    let pending = if waits { table.new_pending() } else { None };
                    let new = Found { verdict, pending, entry, count: 1, from, bytes, compared };
                    if let Some(done) = open.replace(new) {
                        found(table, &done);
                    }
                }
            }
            if let Some(pending) = open.and_then(|open| open.pending) {
                table.wait(place, pending);
            }
        }
    }
    if let Some(done) = open {
        found(table, &done);
    }
    (met, all)
}

/// Pages that are held whatever happens to their address.
fn pinned(
    table: &mut Table,
    place: usize,
    made: &Made<'_>,
    event: Event,
    part: &Range,
    writes: bool,
) -> (Option<Verdict>, Compared) {
    let mut compared = Compared::default();
    let Some((start, words)) = table.words(place, part) else { return (None, compared) };
    if let Some(may_write) = made.protection() {
        compared.pages = frames::expose(words, writes && !may_write);
        return ((compared.pages > 0).then_some(Verdict::Exposed), compared);
    }
    let replaced = event == Event::Unmap;
    compared = frames::compare(start, words, replaced);
    let verdict = match compared {
        Compared { other: 0, empty: 0, unmapped: 0, .. } => None,
        Compared { other: 0, empty: 0, .. } => Some(Verdict::Unmapped),
        _ => Some(Verdict::Stale),
    };
    (verdict, compared)
}

/// Locked memory: the lock goes with the mapping, which is as it should be, unless something else is there at once.
fn lock(
    table: &mut Table,
    place: usize,
    made: &Made<'_>,
    event: Event,
    part: &Range,
    lock_future: bool,
) -> Option<Verdict> {
    const MAP_LOCKED: usize = 0x2000;
    if event != Event::Unmap {
        return None;
    }
    let moved = made.call == Syscall::Mremap;
    let locked_again = lock_future || moved || made.call == Syscall::Mmap && made.args[3] & MAP_LOCKED != 0;
    let replaced = made.mapped().is_some_and(|mapped| mapped.overlaps(part));
    unlock(table, place, part);
    (replaced && !locked_again).then_some(Verdict::Unlocked)
}

/// Takes a part out of what is locked.
pub(crate) fn unlock(table: &mut Table, place: usize, part: &Range) {
    let entry = *table.entry(place);
    let Some(whole) = entry.pages() else { return };
    let left = part.start().saturating_sub(whole.start());
    let right = whole.end().saturating_sub(part.end());
    match (left, right) {
        (0, 0) => table.remove(place),
        (_, 0) => table.shrink(place, whole.start(), left),
        (0, _) => table.shrink(place, part.end(), right),
        _ => {
            table.shrink(place, whole.start(), left);
            if let Some(more) = table.add_like(place, entry.index, entry.descriptor, entry.owner) {
                table.shrink(more, part.end(), right);
            }
        }
    }
}
