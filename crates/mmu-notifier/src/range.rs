//! A range of addresses.

use core::fmt;

/// The size of a page, in bytes. Linux on x86-64 has no other base page.
pub const PAGE_SIZE: usize = 4096;

/// A non-empty, half-open range of addresses `[start, end)`, in bytes.
///
/// The kernel's `mmu_notifier_range` is half-open too, but nobody checks there that it is not empty or
/// backwards; here such a range cannot be made. The last byte of the address space cannot be part of a
/// range (it can hold no mapping).
///
/// ```
/// use mmu_notifier::Range;
///
/// let pages = Range::new(0x1000, 0x3000)?;
/// assert_eq!(pages.len(), 0x2000);
/// assert!(pages.overlaps(&Range::new(0x2fff, 0x9000)?));
/// assert!(!pages.overlaps(&Range::new(0x3000, 0x9000)?), "the end is exclusive");
/// assert!(Range::new(0x3000, 0x3000).is_err());
/// # Ok::<(), mmu_notifier::RangeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    start: usize,
    end: usize,
}

impl Range {
    /// Every address there is, but for the last byte.
    pub const EVERYTHING: Range = Range { start: 0, end: usize::MAX };

    /// The range from `start` up to and without `end`, in bytes.
    ///
    /// # Errors
    ///
    /// [`RangeError`] when `end <= start`.
    pub const fn new(start: usize, end: usize) -> Result<Range, RangeError> {
        if start < end {
            Ok(Range { start, end })
        } else {
            Err(RangeError { start, end: Some(end), len: None })
        }
    }

    /// The range of `len` bytes from `start` on.
    ///
    /// # Errors
    ///
    /// [`RangeError`] when `len` is 0 or the range would go past the end of the address space.
    ///
    /// ```
    /// use mmu_notifier::Range;
    /// assert_eq!(Range::with_len(0x1000, 0x1000), Range::new(0x1000, 0x2000));
    /// let error = Range::with_len(0x1000, usize::MAX).unwrap_err();
    /// assert_eq!(error.to_string(), "range of 0xffffffffffffffff bytes at 0x1000 leaves the address space");
    /// ```
    pub const fn with_len(start: usize, len: usize) -> Result<Range, RangeError> {
        match start.checked_add(len) {
            Some(end) if len > 0 => Ok(Range { start, end }),
            end => Err(RangeError { start, end, len: Some(len) }),
        }
    }

    /// The first address.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// The address behind the last one.
    pub const fn end(&self) -> usize {
        self.end
    }

    /// The length in bytes, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether all of `other` lies inside.
    pub const fn contains(&self, other: &Range) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What the two have in common, if anything.
    pub fn intersection(&self, other: &Range) -> Option<Range> {
        Range::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }

    /// The smallest range of whole pages around this one.
    ///
    /// ```
    /// use mmu_notifier::Range;
    /// assert_eq!(Range::new(0x1001, 0x2001)?.to_pages(), Range::new(0x1000, 0x3000)?);
    /// assert_eq!(Range::EVERYTHING.to_pages(), Range::EVERYTHING, "rounding up saturates");
    /// # Ok::<(), mmu_notifier::RangeError>(())
    /// ```
    pub const fn to_pages(&self) -> Range {
        let end = match self.end.checked_next_multiple_of(PAGE_SIZE) {
            Some(end) => end,
            None => usize::MAX,
        };
        Range { start: self.start & !(PAGE_SIZE - 1), end }
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What was asked for is no [`Range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeError {
    start: usize,
    /// The asked-for end, if it is an address at all.
    end: Option<usize>,
    /// The asked-for length, if a length was asked for.
    len: Option<usize>,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.len, self.end) {
            (Some(len), None) => {
                write!(f, "range of {len:#x} bytes at {:#x} leaves the address space", self.start)
            }
            (Some(_), Some(_)) => write!(f, "range at {:#x} has no bytes", self.start),
            (None, end) => {
                write!(f, "range from {:#x} to {:#x} has no bytes", self.start, end.unwrap_or_default())
            }
        }
    }
}

impl core::error::Error for RangeError {}
