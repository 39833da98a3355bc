use super::*;

fn acts(number: usize, args: [usize; 6], result: usize) -> Vec<Act> {
    let mut acts = Vec::new();
    decode(number, &args, result, |act| acts.push(act));
    acts
}

fn ring(op: usize, at: usize, count: usize, result: usize) -> Vec<Act> {
    acts(IO_URING_REGISTER, [3, op, at, count, 0, 0], result)
}

fn control(request: u32, structure: &[u64]) -> Vec<Act> {
    acts(IOCTL, [3, request as usize, structure.as_ptr() as usize, 0, 0, 0], 0)
}

/// Two 32-bit numbers, as a structure has them one after the other.
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn new(kind: Registered, index: u64, space: u32, start: usize, len: usize, writes: bool) -> New {
    New { kind, index, space, start, len, writes }
}

#[test]
fn what_concerns_registrations_is_decoded_and_nothing_else() {
    for number in 0..500 {
        for second in [0usize, 1, 0x5401, 0xae80, 0x4020_ae46, 0x3b71] {
            if concerns(number, second) {
                assert!(NUMBERS.contains(&number), "{number}: its sites are not rewritten");
            }
        }
    }
    assert!(!concerns(IOCTL, 0xae80), "KVM_RUN takes as long as the guest runs");
    assert!(!concerns(IO_URING_REGISTER, 24), "IORING_REGISTER_SYNC_CANCEL waits");
    assert!(concerns(IO_URING_REGISTER, 0x8000_0000), "buffers of a registered ring");
    assert!(concerns(IOCTL, 0xffff_ffff_4020_ae46), "the kernel reads an unsigned int");
    assert!(!concerns(IO_URING_ENTER, 1));
}

#[test]
fn buffers_of_a_ring() {
    let vector: Vec<[usize; 2]> = (0..100).map(|nth| [0x10_0000 + 0x3000 * nth, 0x2001]).collect();
    let added = ring(0, vector.as_ptr() as usize, 100, 0);
    assert_eq!(added.len(), 100);
    for (nth, act) in added.into_iter().enumerate() {
        let start = 0x10_0000 + 0x3000 * nth;
        assert_eq!(act, Act::Add(new(Registered::Buffer, nth as u64, 0, start, 0x2001, true)));
    }
    let sparse = [[0usize, 0], [0x5000, 0], [0x6000, 5]];
    let third = Act::Add(new(Registered::Buffer, 2, 0, 0x6000, 5, true));
    assert_eq!(ring(0, sparse.as_ptr() as usize, 3, 0), [third], "places without a buffer");
    assert_eq!(ring(1, 0, 0, 0), [Act::RemoveAll(Registered::Buffer)]);

    let register = [two(3, 0), 0, sparse.as_ptr() as u64, 0];
    assert_eq!(ring(15, register.as_ptr() as usize, 32, 0), [third]);
    let register = [two(64, 1), 0, 0, 0];
    assert_eq!(ring(15, register.as_ptr() as usize, 32, 0), [], "a table without buffers");

    let update = [two(40, 0), sparse.as_ptr() as u64, 0, two(3, 0)];
    let remove = |index| Act::Remove { kind: Registered::Buffer, index, space: 0 };
    assert_eq!(
        ring(16, update.as_ptr() as usize, 32, 3),
        [remove(40), remove(41), Act::Replace(new(Registered::Buffer, 42, 0, 0x6000, 5, true))]
    );
    assert_eq!(
        ring(16, update.as_ptr() as usize, 32, 1),
        [remove(40)],
        "the kernel says how many it has done"
    );
    assert_eq!(ring(0, 8, 2, 0), [], "an address that cannot be read");
}

#[test]
fn rings_and_their_copies() {
    let buffers = [0x7000u64, two(256, 5)];
    let added = Act::Add(new(Registered::BufferRing, 5, 0, 0x7000, 4096, false));
    assert_eq!(ring(22, buffers.as_ptr() as usize, 1, 0), [added]);
    let of_the_kernel = [0x7000u64, two(256, 5 | 1 << 16)];
    assert_eq!(ring(22, of_the_kernel.as_ptr() as usize, 1, 0), []);
    let gone = Act::Remove { kind: Registered::BufferRing, index: 5, space: 0 };
    assert_eq!(ring(23, buffers.as_ptr() as usize, 1, 0), [gone]);
    let clone = [two(9, 1), two(2, 4), two(3, 0)];
    let cloned = Act::CloneBuffers { from: 9, from_registered: true, first: 2, to: 4, count: 3 };
    assert_eq!(ring(30, clone.as_ptr() as usize, 1, 0), [cloned]);
    let indices = [two(0, 0), 7, two(1, 0), 8];
    let index = |index, descriptor| Act::RingIndex { index, descriptor };
    assert_eq!(ring(20, indices.as_ptr() as usize, 2, 2), [index(0, 7), index(1, 8)]);
    assert_eq!(ring(20, indices.as_ptr() as usize, 2, 1), [index(0, 7)]);
    assert_eq!(owner(IO_URING_REGISTER, &[7, 0x8000_0010, 0, 0, 0, 0]), Owner::RingIndex(7));
    assert_eq!(owner(IO_URING_REGISTER, &[7, 16, 0, 0, 0, 0]), Owner::Descriptor(7));
}

#[test]
fn memslots() {
    let slot = [two(2, 0), 0x10_0000, 0x20_0000, 0x7000_0000];
    let set = Act::Replace(new(Registered::Memslot, 2, 0, 0x7000_0000, 0x20_0000, true));
    assert_eq!(control(KVM_SET_USER_MEMORY_REGION, &slot), [set]);
    assert_eq!(control(KVM_SET_USER_MEMORY_REGION2, &slot), [set]);
    let deleted = Act::Remove { kind: Registered::Memslot, index: 2, space: 0 };
    assert_eq!(control(KVM_SET_USER_MEMORY_REGION, &[two(2, 0), 0x10_0000, 0, 0x7000_0000]), [deleted]);
}

#[test]
fn devices() {
    let map = |flags| control(VFIO_IOMMU_MAP_DMA, &[two(32, flags), 0x7000, 0xf000, 0x2000]);
    let vfio = |writes| [Act::Add(new(Registered::Vfio, 0xf000, 0, 0x7000, 0x2000, writes))];
    assert_eq!(map(3), vfio(true));
    assert_eq!(map(1), vfio(false));
    assert_eq!(map(4), [], "only another address");
    let between = |kind, space| Act::RemoveBetween { kind, space, from: 0xf000, to: 0x1_1000 };
    let unmap = |flags| control(VFIO_IOMMU_UNMAP_DMA, &[two(24, flags), 0xf000, 0x2000]);
    assert_eq!(unmap(0), [between(Registered::Vfio, 0)]);
    assert_eq!(unmap(2), [Act::RemoveAll(Registered::Vfio)]);
    assert_eq!(unmap(4), []);

    let map = [two(40, 2), two(6, 0), 0x7000, 0x2000, 0xf000];
    let iommufd = Act::Add(new(Registered::Iommufd, 0xf000, 6, 0x7000, 0x2000, true));
    assert_eq!(control(IOMMU_IOAS_MAP, &map), [iommufd]);
    assert_eq!(control(IOMMU_IOAS_UNMAP, &[two(24, 6), 0xf000, 0x2000]), [between(Registered::Iommufd, 6)]);
    let destroyed = Act::RemoveSpace { kind: Registered::Iommufd, space: 6 };
    assert_eq!(control(IOMMU_DESTROY, &[two(8, 6)]), [destroyed]);
}

#[test]
fn regions_of_rdma() {
    // object, method and number of attributes; identifier and flags of each.
    let head = |object: u64, method: u64, count: u64| 72 | object << 16 | method << 32 | count << 48;
    let (handle, access) = ([33u64], |access: u32| [0, 0x7000u64, 0x2000, 0x7000, two(1, access)]);
    let register = |request: &[u64]| {
        let [first, response] = [request.as_ptr(), handle.as_ptr()].map(|at| at as u64);
        control(RDMA_VERBS_IOCTL, &[head(0, 0, 3), 0, 0, 2, 9, 0, first, 1, response])
    };
    assert_eq!(register(&access(1)), [Act::Add(new(Registered::Rdma, 33, 0, 0x7000, 0x2000, true))]);
    assert_eq!(register(&access(2)), [Act::Add(new(Registered::Rdma, 33, 0, 0x7000, 0x2000, false))]);
    assert_eq!(register(&access(1 << 6)), [], "one that follows the address space");
    let gone = Act::Remove { kind: Registered::Rdma, index: 33, space: 0 };
    assert_eq!(control(RDMA_VERBS_IOCTL, &[head(7, 1, 1), 0, 0, 0, 33]), [gone]);
    let request = [33u64];
    let by_write = [head(0, 0, 2), 0, 0, 2, 13, 0, request.as_ptr() as u64];
    assert_eq!(control(RDMA_VERBS_IOCTL, &by_write), [gone]);
    assert_eq!(control(RDMA_VERBS_IOCTL, &[head(4, 0, 1), 0, 0, 0, 33]), [], "another object");
}

#[test]
fn locks() {
    let locked = Act::Add(new(Registered::Lock, 0, 0, 0x7001, 0x2000, false));
    for number in [MLOCK, MLOCK2] {
        assert_eq!(acts(number, [0x7001, 0x2000, 0, 0, 0, 0], 0), [locked]);
    }
    assert_eq!(acts(MUNLOCK, [0x7001, 5, 0, 0, 0, 0], 0), [Act::Unlock { start: 0x7001, len: 5 }]);
    assert_eq!(acts(MLOCKALL, [3, 0, 0, 0, 0, 0], 0), [Act::LockFuture(true)]);
    assert_eq!(acts(MLOCKALL, [1, 0, 0, 0, 0, 0], 0), [Act::LockFuture(false)]);
    let all = [Act::LockFuture(false), Act::RemoveAll(Registered::Lock)];
    assert_eq!(acts(MUNLOCKALL, [0; 6], 0), all);
}
