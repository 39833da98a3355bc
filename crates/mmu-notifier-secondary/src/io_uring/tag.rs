//! How a completion says that a buffer was released: the tag that the buffer was registered with.

use mmu_notifier::PAGE_SIZE;

/// What the upper 16 bits of a tag are.
const MARK: u64 = 0x6d6d;
const SHIFT: u32 = 48;

/// The tag of a buffer of that many bytes, a multiple of the page size.
pub(super) const fn of(bytes: u64) -> u64 {
    (MARK << SHIFT) | (bytes / PAGE_SIZE as u64)
}

/// The bytes of the buffer, if this is a tag.
pub(super) const fn bytes(user_data: u64) -> Option<u64> {
    if user_data >> SHIFT == MARK { Some((user_data & ((1 << SHIFT) - 1)) * PAGE_SIZE as u64) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_from_user_data() {
        for pages in [1, 2, 1 << 18] {
            assert_eq!(bytes(of(pages << 12)), Some(pages << 12));
        }
        for other in [0, 1, u64::MAX, 0x7fff_ffff_f000, MARK] {
            assert_eq!(bytes(other), None);
        }
    }
}
