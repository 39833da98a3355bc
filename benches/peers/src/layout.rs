//! Where the entries are. The addresses are made up: no contender touches memory.

use std::sync::Arc;

/// `count` entries of `len` bytes, one every `stride`, and nothing in between.
#[derive(Clone)]
pub(crate) struct Layout {
    pub(crate) len: usize,
    pub(crate) stride: usize,
    pub(crate) count: usize,
    order: Arc<[u32]>,
}

/// Far from where programs and libraries are.
const BASE: usize = 0x2000_0000_0000;

impl Layout {
    pub(crate) fn new(len: usize, stride: usize, count: usize) -> Layout {
        assert!(stride > len && count > 0);
        let mut order: Vec<u32> = (0..count as u32).collect();
        let mut state = 88172645463325252_u64;
        for at in (1..count).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(at, (state % (at as u64 + 1)) as usize);
        }
        Layout { len, stride, count, order: order.into() }
    }

    pub(crate) fn entry(&self, number: usize) -> (usize, usize) {
        let start = BASE + number * self.stride;
        (start, start + self.len)
    }

    /// All entries in random order.
    pub(crate) fn shuffled(&self) -> impl Iterator<Item = (usize, usize)> {
        self.order.iter().map(|&number| self.entry(number as usize))
    }

    /// A walk from place to place that never comes to the same cache lines soon, unless there are few entries.
    pub(crate) fn random(&self) -> Places {
        self.among(self.order.clone())
    }

    /// The same, through the entries whose number leaves `remainder` when divided by two: for two threads that must not
    /// meet. Of a single entry the second is one that is not there.
    pub(crate) fn half(&self, remainder: usize) -> Places {
        if self.count == 1 {
            return self.fixed(remainder);
        }
        self.among(self.order.iter().copied().filter(|number| *number as usize % 2 == remainder).collect())
    }

    /// Always the same entry.
    pub(crate) fn fixed(&self, number: usize) -> Places {
        self.among([number as u32].into())
    }

    fn among(&self, order: Arc<[u32]>) -> Places {
        Places { layout: self.clone(), at: 0, order }
    }

    /// 64 GiB that nobody holds.
    pub(crate) fn elsewhere() -> (usize, usize) {
        (BASE - (128 << 30), BASE - (64 << 30))
    }
}

/// One entry after the other.
#[derive(Clone)]
pub(crate) struct Places {
    layout: Layout,
    at: usize,
    order: Arc<[u32]>,
}

impl Places {
    /// From the middle on, so that two threads are not in the same place.
    pub(crate) fn half_way_on(mut self) -> Places {
        self.at = self.order.len() / 2;
        self
    }

    /// The next `count` of them, over and over.
    #[inline(always)]
    pub(crate) fn each(&mut self, count: u64, mut body: impl FnMut(Place)) {
        let Layout { len, stride, .. } = self.layout;
        let order = &*self.order;
        // A local, so that it stays in a register: a few nanoseconds count here.
        let mut at = self.at;
        for _ in 0..count {
            let number = order[at] as usize;
            at = if at + 1 == order.len() { 0 } else { at + 1 };
            body(Place { number, start: BASE + number * stride, len, stride });
        }
        self.at = at;
    }
}

/// An entry, and what is behind it.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) number: usize,
    start: usize,
    len: usize,
    stride: usize,
}

impl Place {
    #[inline]
    pub(crate) fn entry(self) -> (usize, usize) {
        (self.start, self.start + self.len)
    }

    /// A buffer inside the entry: whoever asks seldom asks for all of what is registered.
    #[inline]
    pub(crate) fn buffer(self) -> (usize, usize) {
        (self.start + 64, self.start + self.len - 64)
    }

    /// What lies behind the entry and belongs to nobody.
    #[inline]
    pub(crate) fn gap(self) -> (usize, usize) {
        (self.start + self.len, self.start + self.stride)
    }
}
