//! The index: which entry begins where. A tree whose readers write nothing, take no lock and never wait.
//!
//! No entry in it contains another one's range. So in the order of their starts entries are also in the order of their
//! ends: if any entry contains a request, the last one that begins at or before the request does, and those that overlap a
//! range lie side by side.
//!
//! A node has up to [`FANOUT`] pairs of a key and a value, in order: in a leaf the start of an entry and its number, above
//! the lowest key of a child and the child. One thread at a time changes the tree. There are two ways to read it:
//!
//! * [`find`](Index::find) takes what it finds for a hint. Who looks for an entry to use pins and checks what is found, and
//!   looks again under the lock if there is nothing. So nobody's change of the tree makes it begin anew.
//! * [`visit`](Index::visit) must miss nothing: it knows by a sequence, odd while the tree is being changed, whether all
//!   that it read is of one moment.
//!
//! Nodes are never given back; every value that a reader may see, also a torn or an old one, is checked against the bounds
//! of what it is used for.

// UNSAFETY: promises that a node may consist of zeroes, and asks for cache lines in advance.
#![expect(unsafe_code)]

use mmu_notifier::Range;

use super::places::{Orders, Places, Short};
use super::table::{Id, Table};
use crate::memory::{Zeroed, Zeroes};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Pairs in a node: three cache lines.
const FANOUT: usize = 2 * HALF + 1;

/// The place of the key in the middle.
const HALF: usize = if cfg!(mmu_loom) { 1 } else { 7 };

/// A node with fewer is put together with its neighbour, if both fit into [`MERGED`].
const FEW: usize = FANOUT / 3;
const MERGED: usize = FANOUT * 2 / 3;

/// More levels than a tree of 2^32 entries can have.
const LEVELS: usize = 24;

/// No entry starts there.
const NO_KEY: u64 = u64::MAX;

#[repr(C, align(64))]
struct Node {
    keys: [AtomicU64; FANOUT],
    values: [AtomicU32; FANOUT],
    /// How many pairs. The keys behind are [`NO_KEY`]. In a node that is not in use, the next such one.
    len: AtomicU32,
}

// SAFETY: atomics that may be zero.
unsafe impl Zeroed for Node {
    fn zeroed() -> Node {
        Node {
            keys: std::array::from_fn(|_| AtomicU64::new(0)),
            values: std::array::from_fn(|_| AtomicU32::new(0)),
            len: AtomicU32::new(0),
        }
    }
}

// Relaxed throughout: one thread at a time writes, under a lock; readers either take what they see for a hint, or have the
// fences of the sequence.
impl Node {
    #[inline(always)]
    fn key(&self, at: usize) -> u64 {
        self.keys[at].load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn value(&self, at: usize) -> u32 {
        self.values[at].load(Ordering::Relaxed)
    }

    fn len(&self) -> usize {
        (self.len.load(Ordering::Relaxed) as usize).min(FANOUT)
    }

    fn set_len(&self, len: usize) {
        self.len.store(len as u32, Ordering::Relaxed);
    }

    fn set(&self, at: usize, key: u64, value: u32) {
        self.keys[at].store(key, Ordering::Relaxed);
        self.values[at].store(value, Ordering::Relaxed);
    }

    /// How many pairs have a key of at most `key`: which half it is, and then all of that half at once. No branch depends on
    /// what is read.
    #[inline(always)]
    fn up_to(&self, key: u64) -> usize {
        let is_up_to = |at: usize| usize::from(self.key(at) <= key);
        let half = is_up_to(HALF) * (HALF + 1);
        // Two sums, so that no addition waits for all the others.
        let (even, odd) = (0..HALF).fold((0, 0), |(even, odd), at| match at % 2 {
            0 => (even + is_up_to(half + at), odd),
            _ => (even, odd + is_up_to(half + at)),
        });
        half + even + odd
    }

    /// Asks for all of it at once: in a large tree each line would be waited for by itself.
    #[inline(always)]
    fn fetch(&self) -> &Node {
        #[cfg(all(target_arch = "x86_64", not(mmu_loom), not(miri)))]
        for line in [64, 128] {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which neither reads nor faults; the address is in this node.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(self).cast::<i8>().wrapping_add(line)) };
        }
        self
    }

    /// The child that `key` would be in.
    #[inline(always)]
    fn child(&self, key: u64) -> usize {
        self.up_to(key).saturating_sub(1)
    }

    fn clear(&self) {
        self.keys.iter().for_each(|key| key.store(NO_KEY, Ordering::Relaxed));
        self.set_len(0);
    }

    fn insert_at(&self, at: usize, key: u64, value: u32) {
        let len = self.len();
        for from in (at..len).rev() {
            self.set(from + 1, self.key(from), self.value(from));
        }
        self.set(at, key, value);
        self.set_len(len + 1);
    }

    fn remove_at(&self, at: usize) {
        let len = self.len();
        for to in at..len - 1 {
            self.set(to, self.key(to + 1), self.value(to + 1));
        }
        self.keys[len - 1].store(NO_KEY, Ordering::Relaxed);
        self.set_len(len - 1);
    }

    /// Moves the pairs from `at` on behind those of `other`.
    fn move_to(&self, at: usize, other: &Node) {
        let (len, there) = (self.len(), other.len());
        for from in at..len {
            other.set(there + from - at, self.key(from), self.value(from));
            self.keys[from].store(NO_KEY, Ordering::Relaxed);
        }
        other.set_len(there + len - at);
        self.set_len(at);
    }
}

/// Where the tree begins: the number of the root, and how many levels lie above the leaves.
#[derive(Clone, Copy)]
struct Root {
    node: u32,
    height: usize,
}

/// The tree.
pub(super) struct Index {
    root: AtomicU64,
    /// Odd while it is being changed.
    sequence: AtomicU64,
    nodes: Zeroes<Node>,
    places: Places,
}

/// What only who changes the tree knows. To have it is to be the one.
pub(super) struct Writer {
    /// Nodes that were used and are not, plus one; linked by `len`.
    free: u32,
    /// Nodes that were ever used.
    used: u32,
    available: usize,
    orders: Orders,
}

/// There is no room for one more.
#[derive(Debug)]
pub(super) struct NoRoom;

/// Something changed meanwhile: what was visited need not be all.
#[derive(Debug)]
pub(super) struct Torn;

impl Index {
    /// For so many entries.
    pub(super) fn new(entries: usize) -> (Index, Writer) {
        // Two neighbours have more than `MERGED` pairs, or neither has few, when a pair was last taken away from either.
        let count = entries / 2 + if cfg!(mmu_loom) { 4 } else { 64 };
        let nodes: Zeroes<Node> = Zeroes::new(count);
        nodes[0].clear();
        let places = Places::new(entries);
        let index = Index { root: AtomicU64::new(0), sequence: AtomicU64::new(0), nodes, places };
        (index, Writer { free: 0, used: 1, available: count - 1, orders: Orders::default() })
    }

    /// Memory that nodes in use take, and places of so many entries, in bytes.
    pub(super) fn bytes(&self, writer: &Writer, entries: usize) -> usize {
        (self.nodes.len() - writer.available) * size_of::<Node>() + self.places.bytes(entries)
    }

    #[inline(always)]
    fn root(&self) -> Root {
        // Acquire pairs with the Release in `set_root`: a new root is filled.
        let root = self.root.load(Ordering::Acquire);
        Root { node: root as u32, height: (root >> 32) as usize }
    }

    fn set_root(&self, root: Root) {
        self.root.store((root.height as u64) << 32 | u64::from(root.node), Ordering::Release);
    }

    /// Gives entries that may contain `asked` to `is_it`, until one is it. A hint, like all that it finds.
    #[inline(always)]
    pub(super) fn find_map<T>(&self, asked: Range, is_it: impl Fn(Id) -> Option<T>) -> Option<T> {
        match self.places.find(asked, &is_it) {
            Short::Found(found) => Some(found),
            Short::Nothing => None,
            Short::Unknown => self.find(asked.start()).and_then(is_it),
        }
    }

    /// Whether no entry overlaps `range`, for sure. For the writer.
    pub(super) fn is_free<H>(&self, table: &Table<H>, range: Range) -> bool {
        self.places.is_free(table, range)
    }

    /// The entry with the highest start of at most `key`. A hint: it may be one that is not there any more, or none though
    /// there is one.
    #[inline(always)]
    pub(super) fn find(&self, key: usize) -> Option<Id> {
        let key = key as u64;
        let Root { mut node, height } = self.root();
        for _ in 0..height {
            let inner = self.nodes.get(node as usize)?.fetch();
            node = inner.value(inner.child(key));
        }
        let leaf = self.nodes.get(node as usize)?.fetch();
        let at = leaf.up_to(key).checked_sub(1)?;
        Some(leaf.value(at))
    }

    /// The leaf that `key` would be in, and the lowest key of the leaf behind it.
    fn leaf(&self, key: u64) -> Option<(&Node, u64)> {
        let Root { node, height } = self.root();
        let mut node = self.nodes.get(node as usize)?.fetch();
        let mut behind = NO_KEY;
        for _ in 0..height {
            let at = node.child(key);
            if at + 1 < FANOUT {
                behind = behind.min(node.key(at + 1));
            }
            node = self.nodes.get(node.value(at) as usize)?.fetch();
        }
        Some((node, behind))
    }

    /// Gives every entry that overlaps `range` to `visit`, and perhaps others, some more than once, in any order.
    ///
    /// # Errors
    ///
    /// [`Torn`] if the tree was being changed.
    #[inline]
    pub(super) fn visit<H>(
        &self,
        table: &Table<H>,
        range: Range,
        mut visit: impl FnMut(Id),
    ) -> Result<(), Torn> {
        // Acquire pairs with the Release in `change`.
        let sequence = self.sequence.load(Ordering::Acquire);
        if !sequence.is_multiple_of(2) {
            return Err(Torn);
        }
        if !self.places.visit(range, &mut visit) {
            self.walk(table, range, &mut visit, || self.sequence.load(Ordering::Relaxed) == sequence)?;
        }
        // Pairs with the fence in `change`: if anything that was read is newer, so is the sequence.
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some(()).ok_or(Torn)
    }

    #[inline(never)]
    fn walk<H>(
        &self,
        table: &Table<H>,
        range: Range,
        visit: &mut impl FnMut(Id),
        is_same: impl Fn() -> bool,
    ) -> Result<(), Torn> {
        let (start, end) = (range.start() as u64, range.end() as u64);
        // From the last one that begins before the range or with it backwards, as long as they reach into it: their ends
        // are in the order of their starts.
        let mut before = start;
        'backwards: loop {
            let (leaf, _) = self.leaf(before).ok_or(Torn)?;
            let mut at = leaf.up_to(before);
            if at == 0 {
                break;
            }
            while at > 0 {
                at -= 1;
                let id = leaf.value(at);
                let reaches = table.get(id).ok_or(Torn)?.end() as u64 > start;
                if !reaches {
                    break 'backwards;
                }
                visit(id);
            }
            match leaf.key(0).checked_sub(1) {
                Some(further) if is_same() => before = further,
                Some(_) => return Err(Torn),
                None => break,
            }
        }
        // And those that begin in it.
        let mut from = start.saturating_add(1);
        while from < end {
            let (leaf, behind) = self.leaf(from).ok_or(Torn)?;
            for at in leaf.up_to(from - 1)..leaf.len() {
                if leaf.key(at) >= end {
                    return Ok(());
                }
                visit(leaf.value(at));
            }
            if behind <= from || !is_same() {
                return Err(Torn);
            }
            from = behind;
        }
        Ok(())
    }

    /// Puts in an entry. No other one has the same key.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if there are not enough nodes.
    pub(super) fn insert(&self, writer: &mut Writer, range: Range, id: Id) -> Result<(), NoRoom> {
        let key = range.start() as u64;
        let mut root = self.root();
        if writer.available < root.height + 2 {
            return Err(NoRoom);
        }
        self.change(|| {
            if self.node(root.node).len() == FANOUT {
                let above = self.take_node(writer);
                self.node(above).insert_at(0, self.node(root.node).key(0), root.node);
                root = Root { node: above, height: root.height + 1 };
                self.set_root(root);
                self.split(writer, self.node(above), 0, key);
            }
            let mut node = self.node(root.node);
            for _ in 0..root.height {
                if key < node.key(0) {
                    node.keys[0].store(key, Ordering::Relaxed);
                }
                if self.node(node.value(node.child(key))).len() == FANOUT {
                    self.split(writer, node, node.child(key), key);
                }
                node = self.node(node.value(node.child(key)));
            }
            node.insert_at(node.up_to(key), key, id);
            self.places.insert(&mut writer.orders, range, id);
        });
        Ok(())
    }

    /// Splits the full child at that place. If what comes now goes behind all of it, it stays nearly full: who registers
    /// one buffer after the other gets full nodes. But not if there is a nearly empty one behind it already: who goes down
    /// and registers each two upwards would get one for each two.
    fn split(&self, writer: &mut Writer, above: &Node, at: usize, key: u64) {
        let child = self.node(above.value(at));
        let new = self.take_node(writer);
        let is_behind_filled = at + 1 == above.len() || self.node(above.value(at + 1)).len() >= HALF;
        let stays_full = key > child.key(FANOUT - 1) && is_behind_filled;
        let place = if stays_full { FANOUT - 1 } else { FANOUT / 2 };
        child.move_to(place, self.node(new));
        above.insert_at(at + 1, self.node(new).key(0), new);
    }

    /// Takes out an entry. Whether it was there.
    pub(super) fn remove(&self, writer: &mut Writer, range: Range, id: Id) -> bool {
        let key = range.start() as u64;
        let mut path = [(0, 0); LEVELS];
        let root = self.root();
        let mut node = root.node;
        for step in &mut path[..root.height] {
            let at = self.node(node).child(key);
            *step = (node, at);
            node = self.node(node).value(at);
        }
        let leaf = self.node(node);
        let Some(at) = leaf.up_to(key).checked_sub(1) else { return false };
        if leaf.key(at) != key || leaf.value(at) != id {
            return false;
        }
        self.change(|| {
            leaf.remove_at(at);
            self.places.remove(&mut writer.orders, range, id);
            for &(above, at) in path[..root.height].iter().rev() {
                self.tend(writer, self.node(above), at);
            }
            let mut root = root;
            while root.height > 0 && self.node(root.node).len() <= 1 {
                let old = root.node;
                if self.node(old).len() == 0 {
                    root.height = 0;
                } else {
                    root = Root { node: self.node(old).value(0), height: root.height - 1 };
                    self.give_node(writer, old);
                }
                self.set_root(root);
            }
        });
        true
    }

    /// A pair was taken away from the child at that place, or from below it.
    fn tend(&self, writer: &mut Writer, above: &Node, at: usize) {
        let child = above.value(at);
        let len = self.node(child).len();
        if len == 0 {
            above.remove_at(at);
            self.give_node(writer, child);
            return;
        }
        above.keys[at].store(self.node(child).key(0), Ordering::Relaxed);
        if len >= FEW {
            return;
        }
        let neighbours = [at.checked_sub(1), Some(at)];
        for left in neighbours.into_iter().flatten().filter(|left| left + 1 < above.len()) {
            let (one, other) = (above.value(left), above.value(left + 1));
            if self.node(one).len() + self.node(other).len() <= MERGED {
                self.node(other).move_to(0, self.node(one));
                above.remove_at(left + 1);
                self.give_node(writer, other);
                return;
            }
        }
    }

    fn change(&self, change: impl FnOnce()) {
        // Relaxed: written under the lock of the writer.
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        // Pairs with the fence in `visit`.
        fence(Ordering::Release);
        change();
        // Release pairs with the Acquire in `visit`: who sees the new sequence sees all of the change.
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// What others see in the middle of a change.
    #[cfg(all(test, not(mmu_loom)))]
    pub(super) fn while_changing(&self, look: impl FnOnce()) {
        self.change(look);
    }

    /// For the writer, to whom every number in the tree is one of a node.
    fn node(&self, number: u32) -> &Node {
        self.nodes[number as usize].fetch()
    }

    fn take_node(&self, writer: &mut Writer) -> u32 {
        writer.available -= 1;
        let number = match writer.free.checked_sub(1) {
            Some(number) => {
                writer.free = self.node(number).len.load(Ordering::Relaxed);
                number
            }
            None => {
                writer.used += 1;
                writer.used - 1
            }
        };
        self.node(number).clear();
        number
    }

    fn give_node(&self, writer: &mut Writer, number: u32) {
        self.node(number).clear();
        self.node(number).len.store(writer.free, Ordering::Relaxed);
        writer.free = number + 1;
        writer.available += 1;
    }
}

#[cfg(all(test, not(mmu_loom)))]
mod tests;
