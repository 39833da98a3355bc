//! Whether what holds a registration is still open.
//!
//! Closing is not watched: a descriptor is looked at when it matters. An io_uring has an inode of its own, which tells it
//! from whatever has its descriptor later; a virtual machine has a name in `/proc/self/fd`; a device has an inode that
//! all who open it share.

use super::table::Entry;
use crate::gate::safe;
use crate::maps;
use crate::session::check::Registered;

/// What tells an open file from others that have its descriptor later.
pub(crate) fn of_descriptor(descriptor: i32) -> Option<u64> {
    let id = safe::fstat(usize::try_from(descriptor).ok()?).ok()?;
    Some(id.inode ^ id.device.rotate_left(48))
}

/// Rings that threads have given an index to (`IORING_REGISTER_RING_FDS`).
#[derive(Debug)]
pub(crate) struct Rings {
    known: [Option<Ring>; Rings::MOST],
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Ring {
    thread: u32,
    index: u32,
    descriptor: i32,
    owner: u64,
}

impl Rings {
    const MOST: usize = 64;
    pub(crate) const NONE: Rings = Rings { known: [None; Rings::MOST], next: 0 };

    /// Notes one; of too many, the oldest is forgotten.
    pub(crate) fn set(&mut self, thread: u32, index: u32, descriptor: i32, owner: u64) {
        let same = |ring: &Option<Ring>| ring.is_some_and(|r| (r.thread, r.index) == (thread, index));
        let place = self.known.iter().position(same).unwrap_or_else(|| {
            self.next = (self.next + 1) % Rings::MOST;
            self.next
        });
        self.known[place] = Some(Ring { thread, index, descriptor, owner });
    }

    /// Descriptor and owner of a registered ring; (-1, 0): not known.
    pub(crate) fn of_index(&self, thread: u32, index: u32) -> (i32, u64) {
        let rings = self.known.iter().flatten();
        let mut found = rings.filter(|ring| (ring.thread, ring.index) == (thread, index));
        found.next().map_or((-1, 0), |ring| (ring.descriptor, ring.owner))
    }

    fn have(&self, owner: u64) -> bool {
        self.known.iter().flatten().any(|ring| ring.owner == owner)
    }
}

/// Answers for many registrations of the same owner.
pub(crate) struct Alive<'a> {
    rings: &'a Rings,
    last: Option<(i32, u64, bool)>,
}

impl Alive<'_> {
    pub(crate) fn new(rings: &Rings) -> Alive<'_> {
        Alive { rings, last: None }
    }

    /// Whether the owner of a registration is open.
    pub(crate) fn is(&mut self, entry: &Entry) -> bool {
        let (descriptor, owner) = (entry.descriptor, entry.owner);
        if let Some((known, of, alive)) = self.last
            && (known, of) == (descriptor, owner)
        {
            return alive;
        }
        let alive = match entry.kind() {
            None => false,
            Some(Registered::Lock) => true,
            Some(Registered::Memslot) => {
                let mut name = [0; 32];
                let named = |name: &[u8]| name.starts_with(b"anon_inode:kvm-vm");
                usize::try_from(descriptor).is_ok_and(|fd| named(safe::descriptor_path(fd, &mut name)))
            }
            Some(_) if descriptor < 0 => true,
            Some(_) => {
                of_descriptor(descriptor) == Some(owner)
                    // A ring that has an index needs no descriptor, but it is mapped.
                    || self.rings.have(owner) && is_mapped(owner)
            }
        };
        self.last = Some((descriptor, owner, alive));
        alive
    }
}

fn is_mapped(owner: u64) -> bool {
    let mut mapped = false;
    let _ = maps::for_each(|mapping| mapped |= mapping.inode ^ mapping.device.rotate_left(48) == owner);
    mapped
}
