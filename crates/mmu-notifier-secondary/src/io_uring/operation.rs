//! A registration that one operation uses.

use mmu_notifier::Range;

use super::FixedBuffers;
use super::slot::Place;
use crate::cache::Registration;

/// A fixed buffer in use by one operation: to be kept until its completion has been seen, and dropped then.
///
/// It holds the [`Registration`], so the buffer stays where the operation finds it. And it remembers the operation's
/// `user_data`: with [`Wait::UntilUnused`](crate::cache::Wait::UntilUnused) a change of the memory cancels the operation
/// by it, which then ends with `ECANCELED` - or does not, if it is too far already - and waits for this to be dropped.
/// An operation that is in the submission queue only cannot be cancelled, nor can the seventeenth with the same buffer. As
/// the kernel knows operations by their `user_data` alone, those under way at the same time should have different ones.
///
/// ```no_run
/// # use io_uring::{IoUring, opcode::ReadFixed, types::Fd};
/// # use mmu_notifier::Range;
/// # use mmu_notifier_secondary::cache::{Access, Cache};
/// # use mmu_notifier_secondary::io_uring::{FixedBuffers, Operation};
/// # fn f(ring: &mut IoUring, cache: &Cache<FixedBuffers>, socket: i32, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error>> {
/// let range = Range::with_len(buffer.as_ptr() as usize, buffer.len())?;
/// let operation = Operation::new(cache.get(range, Access::Write)?, 42);
/// let read = ReadFixed::new(Fd(socket), buffer.as_mut_ptr(), buffer.len() as u32, operation.slot());
/// // SAFETY: the buffer lives, and nobody looks at it, until the completion with user_data 42.
/// unsafe { ring.submission().push(&read.build().user_data(operation.user_data()))? };
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Operation<'cache> {
    registration: Registration<'cache, FixedBuffers>,
    user_data: u64,
    /// `None`: there are so many that this one is not remembered.
    place: Option<Place>,
}

impl<'cache> Operation<'cache> {
    /// The operation that will be submitted with this `user_data`.
    pub fn new(registration: Registration<'cache, FixedBuffers>, user_data: u64) -> Operation<'cache> {
        let place = registration.handle().enter(user_data);
        Operation { registration, user_data, place }
    }

    /// The number that the operation names the buffer by: its `buf_index`.
    pub fn slot(&self) -> u16 {
        self.registration.handle().index()
    }

    /// What it is submitted with.
    pub fn user_data(&self) -> u64 {
        self.user_data
    }

    /// The memory that is registered.
    pub fn range(&self) -> Range {
        self.registration.range()
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.registration.handle().leave(place);
        }
    }
}
