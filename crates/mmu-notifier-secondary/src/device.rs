//! What the device models of this crate have in common: how they look at the primary page table.
//!
//! [`gru`](crate::gru) and its neighbours keep copies of what a [`PageTable`] says.

mod futex;
mod in_flight;
#[cfg(all(test, mmu_loom))]
pub(crate) mod loom;
mod retry;

pub(crate) use futex::WaitQueue;
pub(crate) use in_flight::{InFlight, Inside, Seat};
use mmu_notifier::PAGE_SIZE;
pub(crate) use retry::Retry;

pub use crate::cache::Access;

/// The primary page table, as a driver sees it. A closure `Fn(usize, Access) -> Option<Page>` is one, and so is a shared one
/// in an `Arc`.
///
/// ```
/// use mmu_notifier_secondary::device::{Access, Page, PageTable};
///
/// /// Each page of this process is where it is.
/// let own = |address: usize, _: Access| Some(Page::writable(address));
/// assert_eq!(own.look_up(0x1000, Access::Write).unwrap().frame(), 0x1000);
/// ```
#[doc(alias = "get_user_pages")]
#[doc(alias = "hmm_range_fault")]
pub trait PageTable: Send + Sync {
    /// What lies at the page that begins at `address`, for that access; none if nothing does or the access is forbidden.
    ///
    /// Called outside of callbacks and without a lock of a device, by several threads at a time. May wait, allocate, and
    /// make the page present; may also change the address space, but for the page that it is asked about.
    fn look_up(&self, address: usize, access: Access) -> Option<Page>;

    /// What lies at that page now, without making it present: for a [snapshot](crate::mirror::Mirror::snapshot). As it is,
    /// [looks it up](PageTable::look_up) for reading.
    fn peek(&self, address: usize) -> Option<Page> {
        self.look_up(address, Access::Read)
    }

    /// Takes the page from the processor: from now on an access of the processor is a change of the page first, which gives it
    /// back. None if there is no page that may be written, or it cannot be taken; so it is unless this is overridden.
    ///
    /// Called inside a change of the page with [`Event::Exclusive`](mmu_notifier::Event::Exclusive), and once more if another
    /// change came meanwhile: a page that is taken already must be left as it is.
    #[doc(alias = "make_device_exclusive")]
    fn take(&self, address: usize) -> Option<Page> {
        let _ = address;
        None
    }
}

impl<F: Fn(usize, Access) -> Option<Page> + Send + Sync> PageTable for F {
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        self(address, access)
    }
}

impl<P: PageTable + ?Sized> PageTable for std::sync::Arc<P> {
    fn look_up(&self, address: usize, access: Access) -> Option<Page> {
        (**self).look_up(address, access)
    }

    fn peek(&self, address: usize) -> Option<Page> {
        (**self).peek(address)
    }

    fn take(&self, address: usize) -> Option<Page> {
        (**self).take(address)
    }
}

/// What a page translates to: a frame, and whether it may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    frame: usize,
    writable: bool,
}

impl Page {
    /// A page that may be read. `frame` is where the device finds it, in bytes: a physical address, or a pointer.
    ///
    /// # Panics
    ///
    /// If `frame` is not a multiple of [`PAGE_SIZE`].
    #[track_caller]
    pub fn read_only(frame: usize) -> Page {
        assert!(frame.is_multiple_of(PAGE_SIZE), "frame {frame:#x} does not begin at a page");
        Page { frame, writable: false }
    }

    /// A page that may be read and written. As [`read_only`](Page::read_only).
    ///
    /// # Panics
    ///
    /// If `frame` is not a multiple of [`PAGE_SIZE`].
    #[track_caller]
    pub fn writable(frame: usize) -> Page {
        Page { writable: true, ..Page::read_only(frame) }
    }

    /// Where it is, in bytes: a multiple of [`PAGE_SIZE`].
    pub const fn frame(&self) -> usize {
        self.frame
    }

    /// Whether it may be written.
    pub const fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether it may be used for `access`.
    pub const fn allows(&self, access: Access) -> bool {
        self.writable || !access.includes(Access::Write)
    }
}
