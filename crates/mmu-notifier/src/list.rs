//! The list of subscribers, replaced as a whole and read without a lock.
//!
//! A list never changes once it is published. Who walks it has put on record that it does
//! ([`OpenChanges`]); a list that was replaced is freed when nobody is on record with it.
//!
//! # Cost
//!
//! A walk loads one pointer. A replacement allocates and copies the list; nobody ever holds a lock, so
//! it may happen anywhere, also inside a callback and while the allocator itself changes the address
//! space.

// UNSAFETY: lists are shared by a raw pointer so that a walk writes to no shared cache line (an `Arc`
// would count), and a subscriber is taken out of its entry while walks that began earlier still see the
// entry. Both rest on the record of open changes. Who is told of changes is called by functions of its type.
#![expect(unsafe_code)]

use std::any::{Any, TypeId};
use std::fmt;
use std::hint::assert_unchecked;
use std::ptr::NonNull;
use std::time::Duration;

use crate::aging::Aging;
use crate::caller::Caller;
use crate::held::Held;
use crate::open::OpenChanges;
use crate::slot::Slot;
use crate::stall::Patience;
use crate::sync::{Alive, Arc, AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, UnsafeCell};
use crate::tlb::SecondaryTlb;
use crate::{Change, WouldBlock};

/// A subscriber that is told of changes, of whatever kind: one call for a start, one for an end.
pub(crate) trait Told: Send + Sync {
    /// `slot` is where the change is on record.
    fn start(&self, slot: &Slot, change: &Change) -> Result<(), WouldBlock>;
    fn end(&self, slot: &Slot, change: &Change);
    fn release(&self);
}

/// Owns a subscriber that is told of changes. Not a box, as callbacks reach it by [`Entry::told`], and not through this.
pub(crate) struct Owned(NonNull<dyn Told>);

// SAFETY: as a box of it would be: `Told` is both.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Owned {
    fn release(&self) {
        // SAFETY: leaked in `Entry::telling`, and freed by nobody but the drop of this.
        unsafe { self.0.as_ref() }.release();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: as above; who drops this has it from `Entry::take`, or drops the entry: nobody calls it any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// How one that is told of changes is called. Not by a table of its type, which would be one more place to look at in
/// each callback.
struct Calls {
    start: unsafe fn(NonNull<()>, &Slot, &Change) -> Result<(), WouldBlock>,
    end: unsafe fn(NonNull<()>, &Slot, &Change),
}

impl Calls {
    fn of<T: Told>() -> Calls {
        Calls {
            // SAFETY: `Callee` calls it with the address of a `T` that lives.
            start: |object, slot, change| unsafe { object.cast::<T>().as_ref() }.start(slot, change),
            // SAFETY: as above.
            end: |object, slot, change| unsafe { object.cast::<T>().as_ref() }.end(slot, change),
        }
    }
}

/// One who is told of changes, and has not gone, in the hands of who is on record.
#[derive(Clone, Copy)]
pub(crate) struct Callee<'a> {
    object: NonNull<()>,
    calls: &'a Calls,
}

impl Callee<'_> {
    /// `slot` is where the change is on record.
    #[inline(always)]
    pub(crate) fn start(self, slot: &Slot, change: &Change) -> Result<(), WouldBlock> {
        // SAFETY: the object is what `calls` were made for, and is not freed while this lives: see `Entry::told`.
        unsafe { (self.calls.start)(self.object, slot, change) }
    }

    #[inline(always)]
    pub(crate) fn end(self, slot: &Slot, change: &Change) {
        // SAFETY: as above.
        unsafe { (self.calls.end)(self.object, slot, change) }
    }
}

/// What a subscriber is.
pub(crate) enum Kind {
    Told(Owned),
    Aging(Box<dyn Aging>),
    Tlb(Box<dyn SecondaryTlb>),
}

impl Kind {
    pub(crate) fn release(&self) {
        match self {
            Kind::Told(told) => told.release(),
            Kind::Aging(aging) => aging.release(),
            Kind::Tlb(tlb) => tlb.release(),
        }
    }
}

/// The lists of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Who is told of changes.
    Changes,
    /// Who is asked about age.
    Aging,
    /// Who is told to flush.
    Tlb,
}

/// Which callback of a subscriber took how long.
#[derive(Clone, Copy)]
pub(crate) enum Timed {
    Start = 0,
    End = 1,
}

/// One subscriber on a list.
pub(crate) struct Entry {
    /// What a callback on the list of changes is called with; null for who is not told of changes, and once no callback may
    /// begin any more.
    told: AtomicPtr<()>,
    calls: Calls,
    /// No callback may begin any more. Set once.
    gone: AtomicBool,
    /// `release` has been called. Set once.
    released: AtomicBool,
    /// No change is open any more that its subscriber was not told of. Set once, by who subscribed it.
    settled: AtomicBool,
    /// `None` once it has been taken out: `taken` is set before.
    kind: UnsafeCell<Option<Kind>>,
    taken: AtomicBool,
    which: Which,
    /// Passes changes on to another address space.
    relays: bool,
    /// Its type, for reports.
    name: &'static str,
    /// Its longest start and end that were timed, in nanoseconds.
    longest: [AtomicU64; 2],
    /// See `shared.rs`: its type, the same subscriber for who gets it, and how many have got it.
    pub(crate) shared: Option<(TypeId, std::sync::Arc<dyn Any + Send + Sync>)>,
    pub(crate) users: AtomicU32,
}

// SAFETY: `kind` is read (shared) by callers on record, and written only in `Entry::take`, whose caller
// has waited until no caller on record can read it. `Kind` itself is `Send + Sync` by its traits' bounds.
unsafe impl Sync for Entry {}
// SAFETY: all parts are `Send`.
unsafe impl Send for Entry {}

impl Entry {
    /// Of who is told of changes.
    pub(crate) fn telling<T: Told + 'static>(told: T, name: &'static str) -> Entry {
        let told = NonNull::from(Box::leak(Box::new(told)));
        let object = AtomicPtr::new(told.cast().as_ptr());
        Entry { told: object, calls: Calls::of::<T>(), ..Entry::new(Kind::Told(Owned(told)), name) }
    }

    pub(crate) fn new(kind: Kind, name: &'static str) -> Entry {
        let which = match kind {
            Kind::Told(_) => Which::Changes,
            Kind::Aging(_) => Which::Aging,
            Kind::Tlb(_) => Which::Tlb,
        };
        Entry {
            told: AtomicPtr::new(std::ptr::null_mut()),
            calls: Calls { start: |_, _, _| Ok(()), end: |_, _, _| () },
            gone: AtomicBool::new(false),
            released: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            kind: UnsafeCell::new(Some(kind)),
            taken: AtomicBool::new(false),
            which,
            relays: false,
            name,
            longest: [AtomicU64::new(0), AtomicU64::new(0)],
            shared: None,
            users: AtomicU32::new(0),
        }
    }

    /// The list it belongs on.
    pub(crate) fn which(&self) -> Which {
        self.which
    }

    /// The same for who passes changes on to another address space.
    pub(crate) fn relaying(self) -> Entry {
        Entry { relays: true, ..self }
    }

    /// Whether it is told also of changes that are made in its own callbacks, and in a forked child.
    pub(crate) fn relays(&self) -> bool {
        self.relays
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// A callback took that long.
    pub(crate) fn took(&self, which: Timed, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let longest = &self.longest[which as usize];
        // Relaxed, here and below: a number. The look spares the line.
        if time > longest.load(Ordering::Relaxed) {
            longest.fetch_max(time, Ordering::Relaxed);
        }
    }

    pub(crate) fn longest(&self, which: Timed) -> Duration {
        Duration::from_nanos(self.longest[which as usize].load(Ordering::Relaxed))
    }

    /// The identity of the entry, for [`Held::calling`].
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// Its subscriber, unless it has gone. The proof of being on record is `held`.
    #[inline]
    pub(crate) fn subscriber<'a>(&'a self, _held: Held<'a>) -> Option<&'a Kind> {
        // Relaxed: the full fence of `claim` or `finish`, whose phase `held` is in, lies before.
        if self.gone.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: `held` is in phase Starting or Ending, and `gone` was false after its fence. Whoever sets
        // `gone` and wants to take the subscriber fences after that and then waits for our phase to end
        // (`OpenChanges::wait_for_callbacks`), so `take` has not run, and cannot run while this reference lives.
        self.kind.with(|kind| unsafe { Some((*kind).as_ref().unwrap_unchecked()) })
    }

    /// The same of who is told of changes; `None` if it is not.
    #[inline(always)]
    pub(crate) fn told<'a>(&'a self, _held: Held<'a>) -> Option<Callee<'a>> {
        // Relaxed: as in `subscriber`, where it says why what this refers to lives as long: `leave` clears both.
        let object = NonNull::new(self.told.load(Ordering::Relaxed))?;
        // For a checker, to which this is a look at what `take` takes.
        self.kind.with(|_| ());
        Some(Callee { object, calls: &self.calls })
    }

    /// No callback begins after this, except by who is on record already.
    pub(crate) fn leave(&self) {
        // Before a callback: the fence in `wait_for_callbacks` follows before anybody relies on it. Relaxed; and Release pairs
        // with the Acquire in `has_left` and in `AddressSpace::release`.
        self.told.store(std::ptr::null_mut(), Ordering::Relaxed);
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn has_left(&self) -> bool {
        // Acquire pairs with the Release in `leave`: who unsubscribes has said so in `Shared::releasing`.
        self.gone.load(Ordering::Acquire)
    }

    /// Who put it on the list has waited for the changes that did not know it.
    pub(crate) fn settle(&self) {
        // Release pairs with the Acquire in `is_settled`: those changes happened before.
        self.settled.store(true, Ordering::Release);
    }

    pub(crate) fn is_settled(&self) -> bool {
        // Acquire pairs with the Release in `settle`.
        self.settled.load(Ordering::Acquire)
    }

    /// True for the first who asks: that one calls `release`.
    pub(crate) fn claim_release(&self) -> bool {
        // Relaxed: only who is first matters.
        !self.released.swap(true, Ordering::Relaxed)
    }

    /// Takes the subscriber out, after its callbacks are over for good; `None` if that was done before.
    ///
    /// # Safety
    ///
    /// [`leave`](Entry::leave) was called, then [`OpenChanges::wait_for_callbacks`] has returned in the same thread, which
    /// is in no callback of this subscriber.
    unsafe fn take(&self) -> Option<Kind> {
        // Relaxed: only who is first matters.
        if self.taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: by the caller's promise no reference from `subscriber` lives, and none will be made; and this is the
        // only one who gets here.
        self.kind.with_mut(|kind| unsafe { (*kind).take() })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("gone", &self.has_left()).finish_non_exhaustive()
    }
}

/// Some subscribers, the newest first, as in Linux.
struct List {
    /// A vector, which becomes shorter where it lies: see `forget_all`.
    entries: Vec<Arc<Entry>>,
    /// Which of all retired lists this is. Written, as the next, only by who owns this list exclusively.
    retirement: UnsafeCell<u64>,
    /// The next list that waits to be freed.
    next_retired: UnsafeCell<*mut List>,
    alive: Alive,
}

impl List {
    /// Forgets, without freeing them, all who do not relay; how many are left.
    fn keep_relays(&mut self) -> usize {
        let mut kept = 0;
        for at in 0..self.entries.len() {
            if self.entries[at].relays() {
                self.entries.swap(kept, at);
                kept += 1;
            }
        }
        // SAFETY: no longer than before; those behind are leaked.
        unsafe { self.entries.set_len(kept) };
        kept
    }
}

/// The list in force, and those that were replaced and may still be walked.
pub(crate) struct Published {
    /// Null: nobody.
    current: AtomicPtr<List>,
    /// A stack linked by `next_retired`.
    retired: AtomicPtr<List>,
    /// Lists that were ever retired.
    retirements: AtomicU64,
}

impl Published {
    pub(crate) fn new() -> Published {
        Published {
            current: AtomicPtr::new(std::ptr::null_mut()),
            retired: AtomicPtr::new(std::ptr::null_mut()),
            retirements: AtomicU64::new(0),
        }
    }

    /// Whether nobody is on the list.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: nothing is read there.
        self.current.load(Ordering::Relaxed).is_null()
    }

    /// Finds the list in force for who has just gone on record, and records it.
    #[inline]
    pub(crate) fn walk<'a>(&self, held: Held<'a>) -> &'a [Arc<Entry>] {
        debug_assert!(held.slot.list().is_none(), "on record with another list: this one may be freed");
        // Acquire pairs with the Release in `replace`: the entries are complete.
        let list = self.current.load(Ordering::Acquire);
        held.walks(list as usize);
        Self::entries(list, held)
    }

    /// The same for a change that goes on record with it, if there is anybody on the list.
    #[inline(always)]
    pub(crate) fn walk_with<'a>(&self, held: Held<'a>, change: &Change) -> Option<&'a [Arc<Entry>]> {
        debug_assert!(held.slot.list().is_none(), "on record with another list: this one may be freed");
        // Acquire: as in `walk`.
        let list = self.current.load(Ordering::Acquire);
        if list.is_null() {
            return None;
        }
        held.write(change);
        held.walks(list as usize);
        let entries = Self::entries(list, held);
        // SAFETY: instead of an empty list, `replace` publishes none.
        unsafe { assert_unchecked(!entries.is_empty()) };
        Some(entries)
    }

    /// The list that a change found when it was put on record.
    #[inline]
    pub(crate) fn walk_again<'a>(&self, held: Held<'a>) -> &'a [Arc<Entry>] {
        Self::entries(held.list() as *mut List, held)
    }

    #[inline]
    fn entries<'a>(list: *mut List, _held: Held<'a>) -> &'a [Arc<Entry>] {
        if list.is_null() {
            return &[];
        }
        // SAFETY: the list was in force after the claim's fence, and the slot of `held` has been on record
        // with it (or with "any list") ever since, so `collect` has not freed it; lists are not written
        // after they are published, but for `next_retired`, which nobody reads through this reference.
        unsafe {
            (*list).alive.look();
            &(*list).entries
        }
    }

    /// Publishes a changed list: `edit` turns the entries in force into new ones, or says that there is
    /// nothing to do. Returns the address of the new list.
    pub(crate) fn replace(
        &self,
        held: &Held<'_>,
        edit: impl Fn(&[Arc<Entry>]) -> Option<Box<[Arc<Entry>]>>,
    ) -> Option<usize> {
        debug_assert!(held.slot.list().is_none(), "on record with one list: the one in force may be freed");
        loop {
            // Acquire pairs with the Release below. `held` is on record as walking any list, so this one stays, and
            // its address cannot come back as that of another list before the exchange.
            let old = self.current.load(Ordering::Acquire);
            let entries = edit(Self::entries(old, *held))?;
            let new = if entries.is_empty() {
                std::ptr::null_mut()
            } else {
                Box::into_raw(Box::new(List {
                    entries: entries.into_vec(),
                    retirement: UnsafeCell::new(0),
                    next_retired: UnsafeCell::new(std::ptr::null_mut()),
                    alive: Alive::default(),
                }))
            };
            // Release pairs with the Acquire in `walk`.
            if self.current.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                if !old.is_null() {
                    // Relaxed: only has to be unique, and to grow.
                    let retirement = self.retirements.fetch_add(1, Ordering::Relaxed);
                    // SAFETY: who takes a list out of force is the only one who writes this, and nobody reads it before
                    // `retire` publishes it.
                    unsafe { (*old).retirement.with_mut(|place| *place = retirement) };
                    self.retire(old);
                }
                return Some(new as usize);
            }
            if !new.is_null() {
                // SAFETY: made by `Box::into_raw` above and never published.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }

    fn retire(&self, list: *mut List) {
        // Relaxed load: the exchange below checks it.
        let mut head = self.retired.load(Ordering::Relaxed);
        loop {
            // SAFETY: whoever took `list` out of force (or off the retired stack) is the only one who writes
            // `next_retired`, and nobody reads it before the exchange below publishes it.
            unsafe { (*list).next_retired.with_mut(|next| *next = head) };
            // Release pairs with the Acquire in `collect`.
            match self.retired.compare_exchange_weak(head, list, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// What is retired from now on has this number or a later one.
    pub(crate) fn now(&self) -> u64 {
        // Relaxed: for who retired something himself, or heard of it from who did.
        self.retirements.load(Ordering::Relaxed)
    }

    /// Frees the lists that nobody walks any more; the number of the oldest that is left, `u64::MAX` if none is. Must not
    /// run in a hook: it frees memory.
    pub(crate) fn collect(&self, open: &OpenChanges) -> u64 {
        // Acquire pairs with the Release in `retire`. From here on the whole stack is ours.
        let list = self.retired.swap(std::ptr::null_mut(), Ordering::Acquire);
        let rest = Rest { published: self, list };
        let mut oldest = u64::MAX;
        for list in rest {
            if open.holds(list as usize) {
                // SAFETY: the list is ours, by the swap.
                oldest = oldest.min(unsafe { (*list).retirement.with(|number| *number) });
                self.retire(list);
            } else {
                // SAFETY: it came from `Box::into_raw`, was taken out of force before the fence in `holds`, and
                // nobody on record holds it: nobody can reach it.
                drop(unsafe { Box::from_raw(list) });
            }
        }
        oldest
    }

    /// Takes `entry` off the list.
    pub(crate) fn remove(&self, held: &Held<'_>, entry: &Arc<Entry>) {
        self.replace(held, |entries| {
            let others: Box<[_]> =
                entries.iter().filter(|other| !Arc::ptr_eq(other, entry)).cloned().collect();
            (others.len() < entries.len()).then_some(others)
        });
    }

    /// Takes everybody off the list.
    pub(crate) fn clear(&self, held: &Held<'_>) {
        self.replace(held, |entries| (!entries.is_empty()).then(Box::default));
    }

    /// Waits until no callback of `entry`, which has been taken off the list, runs or will run, and hands out its
    /// subscriber. Not to be called inside one of its callbacks.
    pub(crate) fn take(
        open: &OpenChanges,
        caller: &Caller,
        patience: &mut Patience<'_>,
        entry: &Entry,
    ) -> Option<Kind> {
        entry.leave();
        open.wait_for_callbacks(caller, patience);
        if open.is_in_callback(caller, entry.address()) {
            return None;
        }
        // SAFETY: just now, in this order, in this thread.
        unsafe { entry.take() }
    }

    /// Forgets all lists without freeing them: in a forked child the allocator may be locked. Who relays stays. `held` is on
    /// record with any list.
    pub(crate) fn forget_all(&self, held: &Held<'_>) {
        for entry in self.walk(*held).iter().filter(|entry| !entry.relays()) {
            entry.leave();
            // Whoever drops the parent's subscription here must not tell the parent's subscriber.
            entry.claim_release();
        }
        // Relaxed: there is only one thread.
        let list = self.current.load(Ordering::Relaxed);
        // SAFETY: null, or a list in force; there is no other thread, and this one walks it no more.
        if let Some(list) = unsafe { list.as_mut() }
            && list.keep_relays() == 0
        {
            self.current.store(std::ptr::null_mut(), Ordering::Relaxed);
        }
        self.retired.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
}

/// Replaced lists that somebody goes through. If the drop of a subscriber panics, those that are left go back.
struct Rest<'a> {
    published: &'a Published,
    list: *mut List,
}

impl Iterator for Rest<'_> {
    type Item = *mut List;

    fn next(&mut self) -> Option<*mut List> {
        let list = self.list;
        if list.is_null() {
            return None;
        }
        // SAFETY: all of these were taken off the stack by who made this, and are nobody else's.
        self.list = unsafe { (*list).next_retired.with(|next| *next) };
        Some(list)
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        while let Some(list) = self.next() {
            self.published.retire(list);
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // SAFETY (both blocks): `&mut self` means that nobody walks; the lists came from `Box::into_raw`.
        let current = self.current.load(Ordering::Relaxed);
        if !current.is_null() {
            // SAFETY: see above.
            drop(unsafe { Box::from_raw(current) });
        }
        let mut list = self.retired.load(Ordering::Relaxed);
        while !list.is_null() {
            // SAFETY: see above.
            let owned = unsafe { Box::from_raw(list) };
            // SAFETY: see above.
            list = owned.next_retired.with(|next| unsafe { *next });
        }
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published")
    }
}
