//! The third kind of subscriber, which Linux lacks: it may refuse *and* has an end.
//!
//! There it is forbidden, because whoever is told of an end could not know whether its own start had been refused. Here
//! the end consumes what its own start returned; who refused has nothing that an end could take.
//!
//! Nothing is allocated for a change: when somebody subscribes, room is made for one ticket in each slot of the record
//! of open changes. The holder of a slot is the only one who touches its place.

// UNSAFETY: a ticket lies in a cell that only the holder of a slot may touch.
#![expect(unsafe_code)]

use crate::list::{Entry, Told};
use crate::slot::{SLOTS, Slot, WAYS};
use crate::sync::UnsafeCell;
use crate::{AddressSpace, Blocking, Change, Subscription, WouldBlock};

/// May refuse a change that must not wait, and has an end, which gets what the start returned.
///
/// ```
/// use std::sync::Mutex;
/// use mmu_notifier::{AddressSpace, Change, Event, Range, Ticketed, WouldBlock};
///
/// /// Stops a queue for as long as pages change, if it can be stopped at once.
/// struct Queue { busy: bool, stopped: Mutex<u32> }
/// struct Stopped { before: u32 }
///
/// impl Ticketed for Queue {
///     type Ticket = Stopped;
///     fn start(&self, _: &Change) -> Stopped {
///         // ... wait until it is idle ...
///         let mut stopped = self.stopped.lock().unwrap();
///         *stopped += 1;
///         Stopped { before: *stopped - 1 }
///     }
///     fn try_start(&self, change: &Change) -> Result<Stopped, WouldBlock> {
///         if self.busy { Err(WouldBlock) } else { Ok(self.start(change)) }
///     }
///     fn end(&self, _: &Change, ticket: Stopped) {
///         *self.stopped.lock().unwrap() = ticket.before;
///     }
/// }
///
/// let space = AddressSpace::new();
/// let queue = std::sync::Arc::new(Queue { busy: true, stopped: Mutex::new(0) });
/// let subscription = space.subscribe_ticketed(queue.clone());
/// let pages = Range::new(0x1000, 0x2000)?;
/// assert!(space.try_invalidate(pages, Event::Clear, || ()).is_err(), "refused, and no end");
/// space.invalidate(pages, Event::Clear, || assert_eq!(*queue.stopped.lock().unwrap(), 1));
/// assert_eq!(*queue.stopped.lock().unwrap(), 0);
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
///
/// An end without the ticket of its own start does not compile:
///
/// ```compile_fail
/// # use mmu_notifier::{Change, Ticketed, WouldBlock};
/// struct Queue;
/// struct Stopped;
/// impl Ticketed for Queue {
///     type Ticket = Stopped;
///     fn start(&self, _: &Change) -> Stopped { Stopped }
///     fn try_start(&self, _: &Change) -> Result<Stopped, WouldBlock> { Err(WouldBlock) }
///     fn end(&self, _: &Change) {}
/// }
/// ```
pub trait Ticketed: Send + Sync {
    /// What a start leaves for its end. If the subscriber leaves while a change is open, the ticket is dropped later,
    /// and nobody calls `end`.
    type Ticket: Send;

    /// The range is about to change, and there is time to wait. Cannot fail.
    fn start(&self, change: &Change) -> Self::Ticket;

    /// The range is about to change, and this must not wait.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if it would have to: then the change does not take place, and this start has no end.
    fn try_start(&self, change: &Change) -> Result<Self::Ticket, WouldBlock>;

    /// The change that `ticket` was given for is done, or was called off by somebody else.
    fn end(&self, change: &Change, ticket: Self::Ticket);

    /// See [`Subscriber::release`](crate::Subscriber::release).
    fn release(&self) {}
}

impl<S: Ticketed + ?Sized> Ticketed for std::sync::Arc<S> {
    type Ticket = S::Ticket;

    fn start(&self, change: &Change) -> S::Ticket {
        (**self).start(change)
    }

    fn try_start(&self, change: &Change) -> Result<S::Ticket, WouldBlock> {
        (**self).try_start(change)
    }

    fn end(&self, change: &Change, ticket: S::Ticket) {
        (**self).end(change, ticket);
    }

    fn release(&self) {
        (**self).release();
    }
}

/// The tickets of one home: two homes never share a cache line.
#[repr(align(128))]
struct Row<T>([UnsafeCell<Option<T>>; WAYS]);

struct WithTickets<S: Ticketed> {
    subscriber: S,
    rows: Box<[Row<S::Ticket>]>,
}

// SAFETY: a cell is touched only by the holder of the slot of that number, and a slot has one holder at a time; the
// tickets go from one to the next through the Release and Acquire of the slot's state, and are `Send`.
unsafe impl<S: Ticketed> Sync for WithTickets<S> {}

impl<S: Ticketed> WithTickets<S> {
    fn put(&self, slot: &Slot, ticket: Option<S::Ticket>) -> Option<S::Ticket> {
        let cell = &self.rows[slot.number() / WAYS].0[slot.number() % WAYS];
        // SAFETY: whoever calls with the slot of this number is its holder; the reference does not outlive
        // the exchange, which runs no foreign code.
        cell.with_mut(|place| std::mem::replace(unsafe { &mut *place }, ticket))
    }
}

impl<S: Ticketed> Told for WithTickets<S> {
    fn start(&self, slot: &Slot, change: &Change) -> Result<(), WouldBlock> {
        let ticket = match change.blocking() {
            Blocking::Allowed => Ok(self.subscriber.start(change)),
            Blocking::Forbidden => self.subscriber.try_start(change),
        };
        let refused = ticket.as_ref().map(|_| ()).map_err(|refused| *refused);
        // What lies there was left by a change that was jumped out of.
        drop(self.put(slot, ticket.ok()));
        refused
    }

    fn end(&self, slot: &Slot, change: &Change) {
        // Nothing: it refused.
        if let Some(ticket) = self.put(slot, None) {
            self.subscriber.end(change, ticket);
        }
    }

    fn release(&self) {
        self.subscriber.release();
    }
}

impl AddressSpace {
    /// Asks `ticketed` before every change from now on, and tells it of the ends. As
    /// [`subscribe`](AddressSpace::subscribe); takes 128 bytes or four tickets, whichever is more, times 128.
    pub fn subscribe_ticketed<S: Ticketed + 'static>(&self, ticketed: S) -> Subscription {
        self.add(WithTickets::entry(ticketed))
    }

    /// Passes every change from now on to another address space: `relay` starts it there, and its ticket is what it takes to
    /// end it. As [`subscribe_ticketed`](AddressSpace::subscribe_ticketed), with two differences.
    ///
    /// A change that is made inside a callback of the relay's is announced to it as well: who is in whose callback knows
    /// the other address space, whose subscribers these callbacks are. And the relay stays subscribed in a
    /// [forked](AddressSpace::forked) child, where nobody can subscribe before the first change. So it must be able to be
    /// called in there, and by itself change nothing.
    ///
    /// ```
    /// use mmu_notifier::{AddressSpace, Change, Event, OpenChange, Range, Subscriber, Ticketed, WouldBlock};
    ///
    /// struct Relay(AddressSpace);
    /// impl Ticketed for Relay {
    ///     type Ticket = OpenChange;
    ///     fn start(&self, change: &Change) -> OpenChange {
    ///         self.try_start(change).expect("nobody refuses a change that may wait")
    ///     }
    ///     fn try_start(&self, change: &Change) -> Result<OpenChange, WouldBlock> {
    ///         self.0.start(&self.0.caller(), *change)
    ///     }
    ///     fn end(&self, _: &Change, open: OpenChange) {
    ///         self.0.end(&self.0.caller(), open);
    ///     }
    /// }
    ///
    /// let (here, there) = (AddressSpace::new(), AddressSpace::new());
    /// let relay = here.subscribe_relay(Relay(there.clone()));
    /// here.invalidate(Range::new(0x1000, 0x2000)?, Event::Unmap, || assert!(there.is_changing()));
    /// assert!(!there.is_changing());
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub fn subscribe_relay<S: Ticketed + 'static>(&self, relay: S) -> Subscription {
        self.add(WithTickets::entry(relay).relaying())
    }
}

impl<S: Ticketed + 'static> WithTickets<S> {
    fn entry(subscriber: S) -> Entry {
        let row = |_| Row(std::array::from_fn(|_| UnsafeCell::new(None)));
        let rows = (0..SLOTS / WAYS).map(row).collect();
        Entry::telling(WithTickets { subscriber, rows }, std::any::type_name::<S>())
    }
}
