//! What is registered, kept up with the calls that register and take back.

use core::sync::atomic::Ordering;

use mmu_notifier::Range;

use super::calls::{self, Act, New, Owner};
use super::owner::{self, Rings};
use super::stack::Snapshot;
use super::table::{Entry, Maker, Table};
use super::{frames, judge};
use crate::entry::{Frame, Site};
use crate::gate::safe;
use crate::log::ticks;
use crate::session::check::{Area, Registered};

/// What the lock guards.
pub(crate) struct Books {
    pub(crate) table: &'static mut Table,
    pub(crate) rings: Rings,
    /// Everything that is mapped from now on is locked.
    pub(crate) lock_future: bool,
}

impl Books {
    /// Nothing is registered.
    pub(crate) fn new(table: &'static mut Table) -> Books {
        Books { table, rings: Rings::NONE, lock_future: false }
    }

    /// Notes what a call has done.
    pub(crate) fn registered(
        &mut self,
        area: &Area,
        number: usize,
        args: &[usize; 6],
        frame: &Frame,
        site: &Site,
    ) {
        let (descriptor, owner) = match calls::owner(number, args) {
            Owner::Descriptor(descriptor) => (descriptor, owner::of_descriptor(descriptor).unwrap_or(0)),
            Owner::RingIndex(index) => self.rings.of_index(safe::gettid(), index),
            Owner::Process => (-1, 0),
        };
        let mut maker = None;
        calls::decode(number, args, frame.rax, |act| match act {
            Act::Add(new) | Act::Replace(new) => {
                let maker = *maker.get_or_insert_with(|| {
                    self.forget_closed(descriptor, owner, new.kind);
                    let (stack, room) = self.table.new_stack();
                    if let Some(room) = room {
                        Snapshot::take(room, frame, site);
                    }
                    let (thread, registering) = (safe::gettid(), number as u32);
                    Maker { descriptor, owner, thread, registering, time: ticks(), stack }
                });
                if matches!(act, Act::Replace(_)) {
                    self.remove(|entry| is_at(entry, owner, new.kind, new.index, new.space));
                }
                self.add(area, &new, &maker);
            }
            Act::Remove { kind, index, space } => {
                self.remove(|entry| is_at(entry, owner, kind, index, space));
            }
            Act::RemoveAll(kind) => {
                self.remove(|entry| entry.kind() == Some(kind) && entry.owner == owner);
            }
            Act::RemoveBetween { kind, space, from, to } => self.remove(|entry| {
                entry.kind() == Some(kind)
                    && (entry.owner, entry.space) == (owner, space)
                    && (from..to).contains(&entry.index)
            }),
            Act::RemoveSpace { kind, space } => self
                .remove(|entry| entry.kind() == Some(kind) && (entry.owner, entry.space) == (owner, space)),
            Act::Unlock { start, len } => {
                let Ok(range) = Range::with_len(start, len).map(|range| range.to_pages()) else { return };
                for place in self.table.places() {
                    let entry = self.table.entry(place);
                    let part = entry.pages().and_then(|pages| pages.intersection(&range));
                    if let (Some(Registered::Lock), Some(part)) = (entry.kind(), part) {
                        judge::unlock(self.table, place, &part);
                    }
                }
            }
            Act::LockFuture(on) => self.lock_future = on,
            Act::RingIndex { index, descriptor } => {
                if let Some(ring) = owner::of_descriptor(descriptor) {
                    self.rings.set(safe::gettid(), index, descriptor, ring);
                }
            }
            Act::CloneBuffers { from, from_registered, first, to, count } => {
                let source = match from_registered {
                    true => self.rings.of_index(safe::gettid(), from as u32).1,
                    false => owner::of_descriptor(from).unwrap_or(0),
                };
                self.clone_buffers(area, source, (descriptor, owner), first, to, count);
            }
        });
    }

    fn add(&mut self, area: &Area, new: &New, maker: &Maker) {
        let kind = new.kind as usize;
        area.registered[kind].fetch_add(1, Ordering::Relaxed);
        area.bytes[kind].fetch_add(new.len as u64, Ordering::Relaxed);
        let Some(place) = self.table.add(new, maker) else {
            area.untracked.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let pages = self.table.entry(place).pages();
        if let Some((start, words)) = pages.and_then(|pages| self.table.words(place, &pages)) {
            frames::keep(start, words);
        }
    }

    /// Forgets some.
    pub(crate) fn remove(&mut self, gone: impl Fn(&Entry) -> bool) {
        for place in self.table.places() {
            let entry = self.table.entry(place);
            if entry.kind().is_some() && gone(entry) {
                self.table.remove(place);
            }
        }
    }

    /// What had this descriptor before has been closed.
    fn forget_closed(&mut self, descriptor: i32, owner: u64, kind: Registered) {
        if descriptor >= 0 {
            self.remove(|entry| {
                entry.kind() == Some(kind) && entry.descriptor == descriptor && entry.owner != owner
            });
        }
    }

    /// What one ring holds another holds as well: the pages that were registered, whatever is there by now.
    fn clone_buffers(
        &mut self,
        area: &Area,
        from: u64,
        (descriptor, owner): (i32, u64),
        first: u64,
        to: u64,
        count: u64,
    ) {
        let last = if count == 0 { u64::MAX } else { first.saturating_add(count) };
        for place in self.table.places() {
            let entry = *self.table.entry(place);
            if entry.kind() != Some(Registered::Buffer)
                || entry.owner != from
                || !(first..last).contains(&entry.index)
            {
                continue;
            }
            let index = entry.index - first + to;
            self.remove(|entry| is_at(entry, owner, Registered::Buffer, index, 0));
            let kind = Registered::Buffer as usize;
            area.registered[kind].fetch_add(1, Ordering::Relaxed);
            area.bytes[kind].fetch_add(entry.len as u64, Ordering::Relaxed);
            if self.table.add_like(place, index, descriptor, owner).is_none() {
                area.untracked.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn is_at(entry: &Entry, owner: u64, kind: Registered, index: u64, space: u32) -> bool {
    entry.kind() == Some(kind) && (entry.owner, entry.index, entry.space) == (owner, index, space)
}
