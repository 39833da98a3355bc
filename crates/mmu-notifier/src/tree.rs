//! The tree of intervals: persistent, replaced by its root, and read without a lock.
//!
//! A B-tree ordered by first address whose inner nodes know the largest end below them (an interval tree). A node
//! never changes once it is published: an edit copies the path from the root to the leaf and exchanges the root. So
//! whoever walks has a picture of one moment, a walk writes nothing but its own record, and an edit waits for nobody.
//!
//! # Reclamation
//!
//! Each exchange of the root ends an *era*. A walker puts on record in which eras its root was in force: the one before
//! it loads the root and the one after. A node that an exchange has replaced is freed when nobody on record walks in an
//! era in which the node was part of the tree. So a callback that takes long keeps one tree from being freed, and
//! not all that there were since.
//!
//! ```text
//! walker                              editor
//! ------                              ------
//! claim a slot; full fence            b := era; make new nodes (born in b)
//! E := era; on record                 exchange the root
//! load the root                       e := era; era := e + 1; retire (old nodes, e)
//! U := era; on record                 full fence; free what was born in b and retired in e, unless somebody has
//!                                     E <= e and b <= U on record
//!
//!    [ a walker that reaches a node has E <= e: it loads the root before the exchange that takes the node out;
//!      and b <= U: it loads the root after the exchange that puts the node in ]
//! ```
//!
//! A walker that is on record without E or without U is taken to walk from the beginning, or without an end. So are
//! editors, which walk too.
//!
//! # Cost
//!
//! A walk of `n` intervals of which `k` overlap looks at O(log n + k) nodes of 16 entries. An edit copies a node a
//! level and allocates.

// UNSAFETY: nodes are shared by raw pointers, so that neither a walk nor the copy of a path counts references.
#![expect(unsafe_code)]

use std::ops::ControlFlow;
use std::ptr::null_mut;

use crate::Range;
use crate::held::Held;
use crate::interval::Kept;
use crate::open::OpenChanges;
use crate::sync::{Alive, AtomicPtr, AtomicU64, AtomicUsize, Ordering, UnsafeCell};

/// Entries of a node at most; and at least, but for the root.
const MOST: usize = if cfg!(any(mmu_loom, mmu_shuttle, miri)) { 4 } else { 16 };
const LEAST: usize = MOST / 4;

/// Batches of retired nodes that are kept before somebody looks whether they can be freed.
const LAZY: usize = if cfg!(any(mmu_loom, mmu_shuttle, miri)) { 1 } else { 32 };

/// The tree in force, and what it consisted of before and may still be walked.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Null: no interval.
    root: AtomicPtr<Node>,
    /// Counts the exchanges of the root, from 1 on.
    era: AtomicU64,
    serials: AtomicU64,
    /// A stack linked by `Batch::next`.
    retired: AtomicPtr<Batch>,
    /// How many are on it, about; and when to look at them.
    retired_count: AtomicUsize,
    collect_at: AtomicUsize,
}

/// Where an interval is in the tree: by first address, then by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    start: usize,
    serial: u64,
}

#[derive(Clone, Copy)]
struct Leaf {
    key: Key,
    end: usize,
    interval: Kept,
}

#[derive(Clone, Copy)]
struct Inner {
    /// The first below.
    key: Key,
    /// The largest end below.
    end: usize,
    child: *mut Node,
}

struct Node {
    /// The era in which it was made: it was part of no tree before.
    born: u64,
    kind: Kind,
}

enum Kind {
    Leaf(Entries<Leaf>),
    Inner(Entries<Inner>),
}

/// One to [`MOST`] values in their order.
struct Entries<T> {
    len: usize,
    /// Those from `len` on are nothing: copies of the first.
    values: [T; MOST],
    alive: Alive,
}

impl<T: Copy> Entries<T> {
    fn new(from: &[T]) -> Entries<T> {
        let mut values = [from[0]; MOST];
        values[..from.len()].copy_from_slice(from);
        Entries { len: from.len(), values, alive: Alive::default() }
    }

    #[inline]
    fn as_slice(&self) -> &[T] {
        self.alive.look();
        &self.values[..self.len]
    }
}

/// What one edit has taken out of the tree.
struct Batch {
    era: u64,
    nodes: Vec<*mut Node>,
    interval: Option<Kept>,
    /// Written by who owns the batch exclusively.
    next: UnsafeCell<*mut Batch>,
}

/// An edit on its way: nodes nobody knows yet, and nodes that go out with it.
struct Edit {
    /// An era before the exchange of the root.
    born: u64,
    fresh: Vec<*mut Node>,
    replaced: Vec<*mut Node>,
}

impl Node {
    /// How the node above refers to this one.
    fn entry(child: *mut Node) -> Inner {
        // SAFETY: for editors, who are on record: nodes that they can reach are not freed.
        let (key, end) = match unsafe { &(*child).kind } {
            Kind::Leaf(entries) => {
                let leaves = entries.as_slice();
                (leaves[0].key, leaves.iter().map(|leaf| leaf.end).max())
            }
            Kind::Inner(entries) => {
                let below = entries.as_slice();
                (below[0].key, below.iter().map(|inner| inner.end).max())
            }
        };
        Inner { key, end: end.unwrap_or(0), child }
    }

    fn len(&self) -> usize {
        match &self.kind {
            Kind::Leaf(entries) => entries.len,
            Kind::Inner(entries) => entries.len,
        }
    }
}

impl Edit {
    fn make(&mut self, kind: Kind) -> *mut Node {
        let node = Box::into_raw(Box::new(Node { born: self.born, kind }));
        self.fresh.push(node);
        node
    }

    /// `node` is no part of the tree any more: of the one in force, or of the one in the making.
    fn remove(&mut self, node: *mut Node) {
        match self.fresh.iter().rposition(|&fresh| fresh == node) {
            Some(at) => {
                self.fresh.swap_remove(at);
                // SAFETY: made by `make`, and nobody knows it.
                drop(unsafe { Box::from_raw(node) });
            }
            None => self.replaced.push(node),
        }
    }

    /// One node with `leaves`, or two if they are too many.
    fn leaves(&mut self, leaves: &[Leaf]) -> (Inner, Option<Inner>) {
        self.split(leaves, |part| Kind::Leaf(Entries::new(part)))
    }

    fn inners(&mut self, inners: &[Inner]) -> (Inner, Option<Inner>) {
        self.split(inners, |part| Kind::Inner(Entries::new(part)))
    }

    fn split<T>(&mut self, all: &[T], node: impl Fn(&[T]) -> Kind) -> (Inner, Option<Inner>) {
        if all.len() <= MOST {
            return (Node::entry(self.make(node(all))), None);
        }
        let (first, second) = all.split_at(all.len() / 2);
        let first = Node::entry(self.make(node(first)));
        (first, Some(Node::entry(self.make(node(second)))))
    }

    fn insert(&mut self, node: *mut Node, new: Leaf) -> (Inner, Option<Inner>) {
        self.remove(node);
        // SAFETY: as in `Node::entry`.
        match unsafe { &(*node).kind } {
            Kind::Leaf(entries) => {
                let mut leaves = entries.as_slice().to_vec();
                let at = leaves.partition_point(|leaf| leaf.key < new.key);
                leaves.insert(at, new);
                self.leaves(&leaves)
            }
            Kind::Inner(entries) => {
                let mut inners = entries.as_slice().to_vec();
                let at = below(&inners, new.key);
                let (first, second) = self.insert(inners[at].child, new);
                inners[at] = first;
                if let Some(second) = second {
                    inners.insert(at + 1, second);
                }
                self.inners(&inners)
            }
        }
    }

    /// The node without `key`; `None` if nothing is left of it. The caller knows that the key is there.
    fn take(&mut self, node: *mut Node, key: Key) -> Option<Inner> {
        self.remove(node);
        // SAFETY: as in `Node::entry`.
        match unsafe { &(*node).kind } {
            Kind::Leaf(entries) => {
                let leaves: Vec<_> =
                    entries.as_slice().iter().filter(|leaf| leaf.key != key).copied().collect();
                (!leaves.is_empty()).then(|| self.leaves(&leaves).0)
            }
            Kind::Inner(entries) => {
                let mut inners = entries.as_slice().to_vec();
                let at = below(&inners, key);
                match self.take(inners[at].child, key) {
                    Some(child) => inners[at] = child,
                    None => drop(inners.remove(at)),
                }
                self.fill(&mut inners, at);
                (!inners.is_empty()).then(|| self.inners(&inners).0)
            }
        }
    }

    /// Joins the node at `at` with a neighbour if it has become too small.
    fn fill(&mut self, inners: &mut Vec<Inner>, at: usize) {
        // SAFETY: as in `Node::entry`.
        let is_small = |inner: &Inner| unsafe { &*inner.child }.len() < LEAST;
        if inners.len() < 2 || !inners.get(at).is_some_and(is_small) {
            return;
        }
        let first = at.saturating_sub(1);
        let (one, two) = (inners[first].child, inners[first + 1].child);
        // SAFETY: as in `Node::entry`.
        let joined = match unsafe { (&(*one).kind, &(*two).kind) } {
            (Kind::Leaf(one), Kind::Leaf(two)) => self.leaves(&[one.as_slice(), two.as_slice()].concat()),
            (Kind::Inner(one), Kind::Inner(two)) => self.inners(&[one.as_slice(), two.as_slice()].concat()),
            // All leaves are equally deep.
            _ => return,
        };
        self.remove(one);
        self.remove(two);
        inners[first] = joined.0;
        match joined.1 {
            Some(second) => inners[first + 1] = second,
            None => drop(inners.remove(first + 1)),
        }
    }
}

/// Which of `inners` is or would be above `key`.
fn below(inners: &[Inner], key: Key) -> usize {
    inners.partition_point(|inner| inner.key <= key).saturating_sub(1)
}

impl Tree {
    pub(crate) fn new() -> Tree {
        Tree {
            root: AtomicPtr::new(null_mut()),
            era: AtomicU64::new(1),
            serials: AtomicU64::new(0),
            retired: AtomicPtr::new(null_mut()),
            retired_count: AtomicUsize::new(0),
            collect_at: AtomicUsize::new(LAZY),
        }
    }

    /// Whether there is no interval. For who is on record: one that comes later waits for him where it matters.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: nothing is read there.
        self.root.load(Ordering::Relaxed).is_null()
    }

    /// Puts on record that `held` is about to walk; the era. Before a list is on record, and until
    /// [`Held::walks_no_more`].
    pub(crate) fn enter(&self, held: &Held<'_>) -> u64 {
        // Acquire: the root that is loaded behind this is not older than the era.
        let since = self.era.load(Ordering::Acquire);
        held.walks_since(since);
        since
    }

    /// The root in force, for who goes on record as its walker, and an era before it was loaded.
    fn root(&self, held: &Held<'_>) -> (*mut Node, u64) {
        let since = self.enter(held);
        (self.load_root(), since)
    }

    fn load_root(&self) -> *mut Node {
        // Acquire pairs with the Release in `edit`: the nodes are complete, and what is loaded of `era` behind this is
        // not older than the era in which they were made.
        self.root.load(Ordering::Acquire)
    }

    /// Calls `visit` for each interval that overlaps `range`, by ascending first address, until it breaks. Once behind
    /// each [`enter`](Tree::enter).
    pub(crate) fn walk<'a>(
        &'a self,
        held: &'a Held<'_>,
        range: &Range,
        mut visit: impl FnMut(Kept) -> ControlFlow<()>,
    ) {
        let root = self.load_root();
        // Only who loads one root: an editor may have to load another one, before anybody sees that it does.
        held.walks_until(self.era.load(Ordering::Relaxed));
        if !root.is_null() {
            // SAFETY: `held` is on record in phase Starting with its eras, so that no node below is freed.
            let _ = unsafe { walk(root, range, &mut visit) };
        }
    }

    /// Puts an interval into the tree; where it is.
    pub(crate) fn insert(&self, held: &Held<'_>, range: &Range, interval: Kept) -> Key {
        // Relaxed: only has to be unique, and to grow for who inserts one after the other.
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        let key = Key { start: range.start(), serial };
        let new = Leaf { key, end: range.end(), interval };
        self.edit(held, |edit, root| {
            let (first, second) = if root.is_null() { edit.leaves(&[new]) } else { edit.insert(root, new) };
            match second {
                Some(second) => edit.inners(&[first, second]).0.child,
                None => first.child,
            }
        });
        key
    }

    /// Takes an interval out of the tree.
    pub(crate) fn remove(&self, held: &Held<'_>, key: Key) {
        self.edit(held, |edit, root| {
            let mut root = edit.take(root, key).map_or(null_mut(), |root| root.child);
            // A root with one child is that child.
            loop {
                // SAFETY: as in `Node::entry`; null is none.
                let only = match unsafe { root.as_ref() }.map(|root| &root.kind) {
                    Some(Kind::Inner(entries)) if entries.len == 1 => entries.as_slice()[0].child,
                    _ => return root,
                };
                edit.remove(root);
                root = only;
            }
        });
    }

    /// Keeps an interval that is in no tree any more until nobody walks one that had it.
    pub(crate) fn retire_interval(&self, interval: Kept) {
        // AcqRel: as in `edit`.
        let era = self.era.fetch_add(1, Ordering::AcqRel);
        self.retire(era, Vec::new(), Some(interval));
    }

    fn edit(&self, held: &Held<'_>, change: impl Fn(&mut Edit, *mut Node) -> *mut Node) {
        loop {
            let (old, born) = self.root(held);
            let mut edit = Edit { born, fresh: Vec::new(), replaced: Vec::new() };
            let new = change(&mut edit, old);
            // Release pairs with the Acquire in `root`. `held` keeps the old root from being freed, so its address
            // cannot come back as that of another.
            if self.root.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // AcqRel: behind the exchange, and before whatever is done to the nodes.
                let era = self.era.fetch_add(1, Ordering::AcqRel);
                self.retire(era, edit.replaced, None);
                return;
            }
            for node in edit.fresh {
                // SAFETY: made by `Edit::make` and never published.
                drop(unsafe { Box::from_raw(node) });
            }
        }
    }

    fn retire(&self, era: u64, nodes: Vec<*mut Node>, interval: Option<Kept>) {
        let next = UnsafeCell::new(null_mut());
        self.push(Box::into_raw(Box::new(Batch { era, nodes, interval, next })));
    }

    fn push(&self, batch: *mut Batch) {
        self.retired_count.fetch_add(1, Ordering::Relaxed);
        // Relaxed load: the exchange below checks it.
        let mut head = self.retired.load(Ordering::Relaxed);
        loop {
            // SAFETY: the batch is ours until the exchange publishes it.
            unsafe { (*batch).next.with_mut(|next| *next = head) };
            // Release pairs with the Acquire in `collect`.
            match self.retired.compare_exchange_weak(head, batch, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Whether much has come together that nobody may be able to reach any more.
    pub(crate) fn is_due(&self) -> bool {
        // Relaxed, here and below: about right is right.
        cfg!(mmu_loom)
            || self.retired_count.load(Ordering::Relaxed) >= self.collect_at.load(Ordering::Relaxed)
    }

    /// Frees what nobody can reach any more; the oldest era of what is left, `u64::MAX` if nothing is. Must not run in a
    /// hook: it frees memory.
    pub(crate) fn collect(&self, open: &OpenChanges) -> u64 {
        // Acquire pairs with the Release in `retire`. From here on the whole stack is ours.
        let batch = self.retired.swap(null_mut(), Ordering::Acquire);
        if batch.is_null() {
            return u64::MAX;
        }
        let rest = Rest { tree: self, batch };
        let walkers = open.walkers();
        let is_held = |born, era| walkers.iter().any(|&(since, until)| since <= era && born <= until);
        let (mut kept, mut oldest) = (0, u64::MAX);
        for batch in rest {
            // SAFETY: made by `Box::into_raw` in `retire`, and ours, by the swap.
            let mut batch = unsafe { Box::from_raw(batch) };
            let era = batch.era;
            batch.nodes.retain(|&node| {
                // SAFETY: it came from `Edit::make`, and who took it out of the tree gave it to us.
                let held = is_held(unsafe { (*node).born }, era);
                if !held {
                    // SAFETY: it was part of trees from `born` to `era`, and nobody on record walks one of those. Who
                    // comes later does not find it.
                    drop(unsafe { Box::from_raw(node) });
                }
                held
            });
            let interval = batch.interval.take_if(|_| !is_held(0, era));
            if !batch.nodes.is_empty() || batch.interval.is_some() {
                kept += 1;
                oldest = oldest.min(era);
                self.push(Box::into_raw(batch));
            }
            if let Some(interval) = interval {
                // SAFETY: the same for the interval: it left the tree before `era`.
                unsafe { interval.free() };
            }
        }
        self.collect_at.store(LAZY.max(2 * kept), Ordering::Relaxed);
        oldest
    }

    /// What is retired from now on is of this era or a later one.
    pub(crate) fn now(&self) -> u64 {
        // Relaxed: for who retired something himself, or heard of it from who did.
        self.era.load(Ordering::Relaxed)
    }

    /// Forgets all nodes without freeing them: in a forked child the allocator may be locked.
    pub(crate) fn forget_all(&self) {
        // Relaxed: there is only one thread.
        self.root.store(null_mut(), Ordering::Relaxed);
        self.retired.store(null_mut(), Ordering::Relaxed);
        self.retired_count.store(0, Ordering::Relaxed);
    }
}

/// Batches that somebody goes through. If the drop of a subscriber panics, those that are left go back.
struct Rest<'a> {
    tree: &'a Tree,
    batch: *mut Batch,
}

impl Iterator for Rest<'_> {
    type Item = *mut Batch;

    fn next(&mut self) -> Option<*mut Batch> {
        let batch = self.batch;
        if batch.is_null() {
            return None;
        }
        // SAFETY: all of these were taken off the stack by who made this, and are nobody else's.
        self.batch = unsafe { (*batch).next.with(|next| *next) };
        self.tree.retired_count.fetch_sub(1, Ordering::Relaxed);
        Some(batch)
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        while let Some(batch) = self.next() {
            self.tree.push(batch);
        }
    }
}

/// # Safety
///
/// `node` and all below stay.
unsafe fn walk(
    node: *const Node,
    range: &Range,
    visit: &mut impl FnMut(Kept) -> ControlFlow<()>,
) -> ControlFlow<()> {
    // SAFETY: by the caller's promise.
    match unsafe { &(*node).kind } {
        Kind::Leaf(entries) => {
            for leaf in entries.as_slice() {
                if leaf.key.start >= range.end() {
                    break;
                }
                if leaf.end > range.start() {
                    visit(leaf.interval)?;
                }
            }
        }
        Kind::Inner(entries) => {
            for inner in entries.as_slice() {
                if inner.key.start >= range.end() {
                    break;
                }
                if inner.end > range.start() {
                    // SAFETY: by the caller's promise.
                    unsafe { walk(inner.child, range, visit)? };
                }
            }
        }
    }
    ControlFlow::Continue(())
}

impl Drop for Tree {
    fn drop(&mut self) {
        /// # Safety
        ///
        /// Nobody else has `node` or anything below.
        unsafe fn free(node: *mut Node) {
            // SAFETY: by the caller's promise; it came from `Edit::make`.
            if let Kind::Inner(entries) = unsafe { Box::from_raw(node) }.kind {
                for inner in entries.as_slice() {
                    // SAFETY: by the caller's promise.
                    unsafe { free(inner.child) };
                }
            }
        }
        // Relaxed: `&mut self` means that nobody walks.
        let root = self.root.load(Ordering::Relaxed);
        if !root.is_null() {
            // SAFETY: nobody walks, and a node is in one place of one tree.
            unsafe { free(root) };
        }
        let mut batch = self.retired.load(Ordering::Relaxed);
        while !batch.is_null() {
            // SAFETY: made by `Box::into_raw` in `edit`, and nobody walks.
            let owned = unsafe { Box::from_raw(batch) };
            for node in owned.nodes {
                // SAFETY: as in `collect`, and nobody walks.
                drop(unsafe { Box::from_raw(node) });
            }
            if let Some(interval) = owned.interval {
                // SAFETY: as in `collect`, and nobody walks.
                unsafe { interval.free() };
            }
            // SAFETY: as above.
            batch = owned.next.with(|next| unsafe { *next });
        }
    }
}
