//! Which system calls register memory with the kernel, and what they say: read from their arguments.
//!
//! [`concerns`] is light: it runs in the hook for every call that is no memory call. [`decode`] runs after the call
//! has succeeded, and reads the program's structures in a way that survives a bad pointer.
//!
//! Sources: `io_uring_register(2)`, `linux/kvm.h`, `linux/vfio.h`, `linux/iommufd.h`, `rdma/ib_user_verbs.h`, `mlock(2)`.

use crate::gate::safe;
use crate::session::check::Registered;

pub(crate) const IO_URING_REGISTER: usize = 427;
pub(crate) const IO_URING_ENTER: usize = 426;
pub(crate) const IOCTL: usize = 16;
const MLOCK: usize = 149;
const MUNLOCK: usize = 150;
const MLOCKALL: usize = 151;
const MUNLOCKALL: usize = 152;
const MLOCK2: usize = 325;

/// The numbers whose call sites are to be rewritten when registrations are checked.
pub(crate) const NUMBERS: [usize; 8] =
    [IO_URING_REGISTER, IO_URING_ENTER, IOCTL, MLOCK, MUNLOCK, MLOCKALL, MUNLOCKALL, MLOCK2];

const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_SET_USER_MEMORY_REGION2: u32 = 0x40a0_ae49;
const VFIO_IOMMU_MAP_DMA: u32 = 0x3b71;
const VFIO_IOMMU_UNMAP_DMA: u32 = 0x3b72;
const IOMMU_DESTROY: u32 = 0x3b80;
const IOMMU_IOAS_MAP: u32 = 0x3b85;
const IOMMU_IOAS_UNMAP: u32 = 0x3b86;
const RDMA_VERBS_IOCTL: u32 = 0xc018_1b01;

/// Set in the operation of `io_uring_register`: the descriptor is an index of registered rings.
const REGISTERED_RING: u32 = 1 << 31;

// Operations of `io_uring_register`; the other ones register no memory, and some of them wait.
const REGISTER_BUFFERS: u32 = 0;
const UNREGISTER_BUFFERS: u32 = 1;
const REGISTER_BUFFERS2: u32 = 15;
const REGISTER_BUFFERS_UPDATE: u32 = 16;
const REGISTER_RING_FDS: u32 = 20;
const REGISTER_PBUF_RING: u32 = 22;
const UNREGISTER_PBUF_RING: u32 = 23;
const REGISTER_CLONE_BUFFERS: u32 = 30;

/// Whether a call may register memory, or take a registration back.
#[inline(always)]
pub(crate) fn concerns(number: usize, second: usize) -> bool {
    match number {
        MLOCK | MUNLOCK | MLOCKALL | MUNLOCKALL | MLOCK2 => true,
        IO_URING_REGISTER => matches!(
            second as u32 & !REGISTERED_RING,
            REGISTER_BUFFERS
                | UNREGISTER_BUFFERS
                | REGISTER_BUFFERS2
                | REGISTER_BUFFERS_UPDATE
                | REGISTER_RING_FDS
                | REGISTER_PBUF_RING
                | UNREGISTER_PBUF_RING
                | REGISTER_CLONE_BUFFERS
        ),
        IOCTL => matches!(
            second as u32,
            KVM_SET_USER_MEMORY_REGION
                | KVM_SET_USER_MEMORY_REGION2
                | VFIO_IOMMU_MAP_DMA
                | VFIO_IOMMU_UNMAP_DMA
                | IOMMU_DESTROY
                | IOMMU_IOAS_MAP
                | IOMMU_IOAS_UNMAP
                | RDMA_VERBS_IOCTL
        ),
        _ => false,
    }
}

/// What a call did to registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Memory is registered where nothing was.
    Add(New),
    /// Memory is registered; what had the same kind, index and space no longer is.
    Replace(New),
    /// Taken back.
    Remove { kind: Registered, index: u64, space: u32 },
    /// All of a kind are taken back.
    RemoveAll(Registered),
    /// Those from one index to before another.
    RemoveBetween { kind: Registered, space: u32, from: u64, to: u64 },
    /// All of a space.
    RemoveSpace { kind: Registered, space: u32 },
    /// No longer locked.
    Unlock { start: usize, len: usize },
    /// Everything that is mapped from now on is locked, or is not.
    LockFuture(bool),
    /// A ring got an index for this thread.
    RingIndex { index: u32, descriptor: i32 },
    /// Buffers of another ring are held by this one, too.
    CloneBuffers { from: i32, from_registered: bool, first: u64, to: u64, count: u64 },
}

/// A registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct New {
    pub(crate) kind: Registered,
    /// Buffer, slot, handle, or address in the device.
    pub(crate) index: u64,
    /// For devices with several address spaces.
    pub(crate) space: u32,
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// The kernel or the device writes there.
    pub(crate) writes: bool,
}

/// Who owns the registrations of a call: a descriptor, or a registered ring's index and no descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Descriptor(i32),
    RingIndex(u32),
    Process,
}

pub(crate) fn owner(number: usize, args: &[usize; 6]) -> Owner {
    match number {
        IO_URING_REGISTER if args[1] as u32 & REGISTERED_RING != 0 => Owner::RingIndex(args[0] as u32),
        IO_URING_REGISTER | IO_URING_ENTER | IOCTL => Owner::Descriptor(args[0] as i32),
        _ => Owner::Process,
    }
}

/// Little-endian numbers of a structure of the program's; what cannot be read is zero.
struct Read<const LEN: usize>([u8; LEN]);

impl<const LEN: usize> Read<LEN> {
    fn at(address: usize) -> Read<LEN> {
        Read::at_most(address, LEN)
    }

    fn at_most(address: usize, len: usize) -> Read<LEN> {
        let mut bytes = [0; LEN];
        let _ = safe::read_memory(address, &mut bytes[..len]);
        Read(bytes)
    }

    fn u16(&self, at: usize) -> u16 {
        self.0[at..at + 2].try_into().map_or(0, u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        self.0[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.0[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
    }
}

/// Calls `act` with everything that a call, which returned `result` and not an error, did to registrations.
pub(crate) fn decode(number: usize, args: &[usize; 6], result: usize, mut act: impl FnMut(Act)) {
    match number {
        IO_URING_REGISTER => io_uring(args, result, &mut act),
        IOCTL => ioctl(args, &mut act),
        MLOCK | MLOCK2 => act(Act::Add(New {
            kind: Registered::Lock,
            index: 0,
            space: 0,
            start: args[0],
            len: args[1],
            writes: false,
        })),
        MUNLOCK => act(Act::Unlock { start: args[0], len: args[1] }),
        MLOCKALL => act(Act::LockFuture(args[0] & 2 != 0)),
        MUNLOCKALL => {
            act(Act::LockFuture(false));
            act(Act::RemoveAll(Registered::Lock));
        }
        _ => {}
    }
}

fn io_uring(args: &[usize; 6], result: usize, act: &mut impl FnMut(Act)) {
    const SPARSE: u32 = 1;
    const OF_THE_KERNEL: u16 = 1;
    let at = args[2];
    match args[1] as u32 & !REGISTERED_RING {
        // iovecs, count
        REGISTER_BUFFERS => {
            buffers(at, 0, args[3], |_, new| new.into_iter().for_each(|new| act(Act::Add(new))))
        }
        UNREGISTER_BUFFERS => act(Act::RemoveAll(Registered::Buffer)),
        // struct io_uring_rsrc_register: nr, flags, resv2, data, tags
        REGISTER_BUFFERS2 => {
            let what = Read::<32>::at(at);
            if what.u32(4) & SPARSE == 0 {
                let count = what.u32(0) as usize;
                buffers(what.u64(16) as usize, 0, count, |_, new| {
                    new.into_iter().for_each(|new| act(Act::Add(new)))
                });
            }
        }
        // struct io_uring_rsrc_update2: offset, resv, data, tags, nr, resv2; returns how many were done.
        REGISTER_BUFFERS_UPDATE => {
            let what = Read::<32>::at(at);
            buffers(what.u64(8) as usize, what.u32(0).into(), result, |index, new| {
                act(match new {
                    Some(new) => Act::Replace(new),
                    None => Act::Remove { kind: Registered::Buffer, index, space: 0 },
                });
            });
        }
        // struct io_uring_rsrc_update, several: offset, resv, data; returns how many were done.
        REGISTER_RING_FDS => {
            for nth in 0..result.min(args[3]) {
                let ring = Read::<16>::at(at + 16 * nth);
                act(Act::RingIndex { index: ring.u32(0), descriptor: ring.u64(8) as i32 });
            }
        }
        // struct io_uring_buf_reg: ring_addr, ring_entries, bgid, flags
        REGISTER_PBUF_RING => {
            let what = Read::<16>::at(at);
            if what.u16(14) & OF_THE_KERNEL == 0 {
                act(Act::Add(New {
                    kind: Registered::BufferRing,
                    index: what.u16(12).into(),
                    space: 0,
                    start: what.u64(0) as usize,
                    len: what.u32(8) as usize * 16,
                    writes: false,
                }));
            }
        }
        UNREGISTER_PBUF_RING => {
            let index = Read::<16>::at(at).u16(12).into();
            act(Act::Remove { kind: Registered::BufferRing, index, space: 0 });
        }
        // struct io_uring_clone_buffers: src_fd, flags, src_off, dst_off, nr
        REGISTER_CLONE_BUFFERS => {
            let what = Read::<24>::at(at);
            act(Act::CloneBuffers {
                from: what.u32(0) as i32,
                from_registered: what.u32(4) & 1 != 0,
                first: what.u32(8).into(),
                to: what.u32(12).into(),
                count: what.u32(16).into(),
            });
        }
        _ => {}
    }
}

/// The buffers of a vector by their index; those without a length leave their place empty.
fn buffers(vector: usize, first: u64, count: usize, mut each: impl FnMut(u64, Option<New>)) {
    const AT_ONCE: usize = 32;
    let mut index = first;
    let mut left = count;
    let mut at = vector;
    while left > 0 {
        let some = left.min(AT_ONCE);
        let entries = Read::<{ 16 * AT_ONCE }>::at_most(at, 16 * some);
        for nth in 0..some {
            let (start, len) = (entries.u64(16 * nth) as usize, entries.u64(16 * nth + 8) as usize);
            let kind = Registered::Buffer;
            let new = New { kind, index, space: 0, start, len, writes: true };
            each(index, (start != 0 && len != 0).then_some(new));
            index += 1;
        }
        at = at.wrapping_add(16 * some);
        left -= some;
    }
}

fn ioctl(args: &[usize; 6], act: &mut impl FnMut(Act)) {
    let at = args[2];
    match args[1] as u32 {
        // struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
        KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
            let slot = Read::<32>::at(at);
            let (index, len) = (slot.u32(0).into(), slot.u64(16) as usize);
            let (kind, space) = (Registered::Memslot, 0);
            act(match len {
                0 => Act::Remove { kind, index, space },
                _ => {
                    let start = slot.u64(24) as usize;
                    Act::Replace(New { kind, index, space, start, len, writes: true })
                }
            });
        }
        // struct vfio_iommu_type1_dma_map: argsz, flags, vaddr, iova, size
        VFIO_IOMMU_MAP_DMA => {
            let map = Read::<32>::at(at);
            // Flags: 2: the device may write; 4: only a new address for what is mapped.
            if map.u32(4) & 4 == 0 {
                act(Act::Add(New {
                    kind: Registered::Vfio,
                    index: map.u64(16),
                    space: 0,
                    start: map.u64(8) as usize,
                    len: map.u64(24) as usize,
                    writes: map.u32(4) & 2 != 0,
                }));
            }
        }
        // struct vfio_iommu_type1_dma_unmap: argsz, flags, iova, size
        VFIO_IOMMU_UNMAP_DMA => {
            let map = Read::<24>::at(at);
            let (from, to) = (map.u64(8), map.u64(8).saturating_add(map.u64(16)));
            act(match map.u32(4) {
                flags if flags & 4 != 0 => return,
                flags if flags & 2 != 0 => Act::RemoveAll(Registered::Vfio),
                _ => Act::RemoveBetween { kind: Registered::Vfio, space: 0, from, to },
            });
        }
        // struct iommu_ioas_map: size, flags, ioas_id, reserved, user_va, length, iova (which the kernel may have chosen)
        IOMMU_IOAS_MAP => {
            let map = Read::<40>::at(at);
            act(Act::Add(New {
                kind: Registered::Iommufd,
                index: map.u64(32),
                space: map.u32(8),
                start: map.u64(16) as usize,
                len: map.u64(24) as usize,
                writes: map.u32(4) & 2 != 0,
            }));
        }
        // struct iommu_ioas_unmap: size, ioas_id, iova, length
        IOMMU_IOAS_UNMAP => {
            let map = Read::<24>::at(at);
            act(Act::RemoveBetween {
                kind: Registered::Iommufd,
                space: map.u32(4),
                from: map.u64(8),
                to: map.u64(8).saturating_add(map.u64(16)),
            });
        }
        // struct iommu_destroy: size, id
        IOMMU_DESTROY => {
            act(Act::RemoveSpace { kind: Registered::Iommufd, space: Read::<8>::at(at).u32(4) });
        }
        RDMA_VERBS_IOCTL => verbs(at, act),
        _ => {}
    }
}

/// `struct ib_uverbs_ioctl_hdr`: length, object_id, method_id, num_attrs, .., and its attributes: what libibverbs sends
/// for `ibv_reg_mr` and `ibv_dereg_mr`. Regions that follow the address space (on-demand paging) are none of ours.
fn verbs(at: usize, act: &mut impl FnMut(Act)) {
    const DEVICE: u16 = 0;
    const INVOKE_WRITE: u16 = 0;
    const MR: u16 = 7;
    const MR_DESTROY: u16 = 1;
    const REG_MR: u64 = 9;
    const DEREG_MR: u64 = 13;
    const LOCAL_WRITE: u32 = 1;
    const ON_DEMAND: u32 = 1 << 6;
    let head = Read::<8>::at(at);
    let (object, method, count) = (head.u16(2), head.u16(4), head.u16(6));
    // struct ib_uverbs_attr: attr_id, len, flags, .., data
    let mut attributes = [0; 3];
    for nth in 0..usize::from(count.min(16)) {
        let attribute = Read::<16>::at(at + 24 + 16 * nth);
        if let Some(kept) = attributes.get_mut(usize::from(attribute.u16(0))) {
            *kept = attribute.u64(8);
        }
    }
    let [first, response, command] = attributes;
    let kind = Registered::Rdma;
    match (object, method, command) {
        // struct ib_uverbs_reg_mr: response, start, length, hca_va, pd_handle, access_flags
        (DEVICE, INVOKE_WRITE, REG_MR) => {
            let region = Read::<40>::at(first as usize);
            if region.u32(36) & ON_DEMAND == 0 {
                act(Act::Add(New {
                    kind,
                    index: Read::<4>::at(response as usize).u32(0).into(),
                    space: 0,
                    start: region.u64(8) as usize,
                    len: region.u64(16) as usize,
                    writes: region.u32(36) & LOCAL_WRITE != 0,
                }));
            }
        }
        (DEVICE, INVOKE_WRITE, DEREG_MR) => {
            let index = Read::<4>::at(first as usize).u32(0).into();
            act(Act::Remove { kind, index, space: 0 });
        }
        (MR, MR_DESTROY, _) => act(Act::Remove { kind, index: first, space: 0 }),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
