use proptest::prelude::*;

use super::*;

/// A page, to write the tables in.
const P: usize = PAGE_SIZE;
const MAX: usize = usize::MAX;
/// The first address that no page can be at.
const BEYOND: usize = USER_END;
/// An address on a huge page and one that is not.
const HUGE: usize = 0x7f00_0020_0000;
const A: usize = 0x7f12_3456_7000;
const TAGGED: usize = 0x2a << 57;

fn range(start: usize, end: usize) -> Range {
    Range::new(start, end).unwrap()
}

/// Expects that `call` makes the changes `(start, end)`, all for the same reason.
#[track_caller]
fn expect(call: Syscall, args: &[usize], facts: &Facts<'_>, event: Event, expected: &[(usize, usize)]) {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let changes = decode(call, &all, facts);
    let expected: Vec<_> = expected.iter().map(|&(start, end)| (range(start, end), event)).collect();
    assert_eq!(changes.as_slice(), expected, "{}({args:#x?}) with {facts:?}", call.name());
}

#[track_caller]
fn expect_needs(call: Syscall, args: &[usize], expected: Needs) {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    assert_eq!(needs(call, &all), expected, "{}({args:#x?})", call.name());
}

const UNKNOWN: Facts<'_> = Facts { program_break: 0, segment: None, ranges: None, clone_flags: 0 };
/// What is expected to be announced: starts and ends.
type Expected = &'static [(usize, usize)];
const ALL: Expected = &[(0, MAX)];

/// Start, length, and what is announced by a call that stays in user space, by one that does not care.
type Edge = (usize, usize, Expected, Expected);

const EDGES: &[Edge] = &[
    (A, 0, &[], &[]),
    (A, 1, &[(A, A + P)], &[(A, A + P)]),
    (A, 4095, &[(A, A + P)], &[(A, A + P)]),
    (A, 4096, &[(A, A + P)], &[(A, A + P)]),
    (A, 4097, &[(A, A + 2 * P)], &[(A, A + 2 * P)]),
    (0, P, &[(0, P)], &[(0, P)]),
    (A + 1, P, &[], &[]),
    (A + 4095, 1, &[], &[]),
    // The length rounds up to 0.
    (A, MAX, &[], &[]),
    (A, MAX - 4094, &[], &[]),
    // The length is a length, but wraps around.
    (A, MAX - 4095, &[], &[]),
    (A, MAX - A, &[], &[]),
    (MAX - 4095, P, &[], &[]),
    (MAX, 1, &[], &[]),
    // Four-level and five-level user space.
    (0x7fff_ffff_e000, P, &[(0x7fff_ffff_e000, 0x7fff_ffff_f000)], &[(0x7fff_ffff_e000, 0x7fff_ffff_f000)]),
    (0x7fff_ffff_f000, P, &[(0x7fff_ffff_f000, 1 << 47)], &[(0x7fff_ffff_f000, 1 << 47)]),
    (BEYOND - P, P, &[(BEYOND - P, BEYOND)], &[(BEYOND - P, BEYOND)]),
    (BEYOND, P, &[], &[(BEYOND, BEYOND + P)]),
    (BEYOND - P, P + 1, &[], &[(BEYOND - P, BEYOND + P)]),
    (A, 1 << 62, &[], &[(A, A + (1 << 62))]),
];

#[test]
fn constants_are_the_system_s() {
    for (ours, theirs) in [
        (MAP_FIXED, libc::MAP_FIXED),
        (MAP_ANONYMOUS, libc::MAP_ANONYMOUS),
        (MAP_HUGETLB, libc::MAP_HUGETLB),
        (MAP_FIXED_NOREPLACE, libc::MAP_FIXED_NOREPLACE),
        (PROT_GROWSDOWN, libc::PROT_GROWSDOWN),
        (PROT_GROWSUP, libc::PROT_GROWSUP),
        (MREMAP_MAYMOVE, libc::MREMAP_MAYMOVE),
        (MREMAP_FIXED, libc::MREMAP_FIXED),
        (MREMAP_DONTUNMAP, libc::MREMAP_DONTUNMAP),
        (CLONE_VM as usize, libc::CLONE_VM),
        (SHM_RND as usize, libc::SHM_RND),
        (SHM_REMAP as usize, libc::SHM_REMAP),
        (MADV_NORMAL as usize, libc::MADV_NORMAL),
        (MADV_RANDOM as usize, libc::MADV_RANDOM),
        (MADV_SEQUENTIAL as usize, libc::MADV_SEQUENTIAL),
        (MADV_WILLNEED as usize, libc::MADV_WILLNEED),
        (MADV_REMOVE as usize, libc::MADV_REMOVE),
        (MADV_DONTFORK as usize, libc::MADV_DONTFORK),
        (MADV_DOFORK as usize, libc::MADV_DOFORK),
        (MADV_MERGEABLE as usize, libc::MADV_MERGEABLE),
        (MADV_HUGEPAGE as usize, libc::MADV_HUGEPAGE),
        (MADV_NOHUGEPAGE as usize, libc::MADV_NOHUGEPAGE),
        (MADV_DONTDUMP as usize, libc::MADV_DONTDUMP),
        (MADV_DODUMP as usize, libc::MADV_DODUMP),
        (MADV_WIPEONFORK as usize, libc::MADV_WIPEONFORK),
        (MADV_KEEPONFORK as usize, libc::MADV_KEEPONFORK),
        (MADV_COLD as usize, libc::MADV_COLD),
        (MADV_POPULATE_READ as usize, libc::MADV_POPULATE_READ),
        (MADV_POPULATE_WRITE as usize, libc::MADV_POPULATE_WRITE),
        (FALLOC_FL_KEEP_SIZE as usize, libc::FALLOC_FL_KEEP_SIZE),
        (FALLOC_FL_PUNCH_HOLE as usize, libc::FALLOC_FL_PUNCH_HOLE),
        (FALLOC_FL_COLLAPSE_RANGE as usize, libc::FALLOC_FL_COLLAPSE_RANGE),
        (FALLOC_FL_ZERO_RANGE as usize, libc::FALLOC_FL_ZERO_RANGE),
        (FALLOC_FL_INSERT_RANGE as usize, libc::FALLOC_FL_INSERT_RANGE),
        (FALLOC_FL_UNSHARE_RANGE as usize, libc::FALLOC_FL_UNSHARE_RANGE),
    ] {
        assert_eq!(ours, theirs as usize);
    }
}

#[test]
fn edges_of_a_range() {
    for &(start, len, inside, anywhere) in EDGES {
        expect(Syscall::Munmap, &[start, len], &UNKNOWN, Event::Unmap, inside);
        expect(Syscall::Mmap, &[start, len, 0, 0x32], &UNKNOWN, Event::Unmap, inside);
        expect(Syscall::Madvise, &[start, len, 4], &UNKNOWN, Event::Clear, anywhere);
        expect(Syscall::Mprotect, &[start, len, 1], &UNKNOWN, Event::ProtectionVma, anywhere);
        expect(Syscall::PkeyMprotect, &[start, len, 1, 5], &UNKNOWN, Event::ProtectionVma, anywhere);
        // As the source of a move to a place that is out of the way.
        if start == A {
            let source = inside.first().copied();
            let expected: Vec<_> = [Some((P, 2 * P)), source].into_iter().flatten().collect();
            expect(Syscall::Mremap, &[start, len, 1, 3, P], &UNKNOWN, Event::Unmap, &expected);
        }
    }
}

#[test]
fn tags_are_ignored_where_the_kernel_ignores_them() {
    let a = A | TAGGED;
    expect(Syscall::Munmap, &[a, P], &UNKNOWN, Event::Unmap, &[(A, A + P)]);
    expect(Syscall::Madvise, &[a, P, 4], &UNKNOWN, Event::Clear, &[(A, A + P)]);
    expect(Syscall::Mprotect, &[a, P, 0], &UNKNOWN, Event::ProtectionVma, &[(A, A + P)]);
    expect(Syscall::Mremap, &[a, 2 * P, P, 0], &UNKNOWN, Event::Unmap, &[(A + P, A + 2 * P)]);
    expect(Syscall::Mmap, &[a, P, 0, MAP_FIXED], &UNKNOWN, Event::Unmap, &[]);
    expect(Syscall::Mremap, &[A, P, P, 3, a + 9 * P], &UNKNOWN, Event::Unmap, &[]);
    // Bit 63 is none of the tag bits.
    expect(Syscall::Munmap, &[A | 1 << 63, P], &UNKNOWN, Event::Unmap, &[]);
}

#[test]
fn mmap() {
    const PRIVATE: usize = 2;
    const ANON: usize = MAP_ANONYMOUS | PRIVATE;
    let over: &[(usize, usize)] = &[(A, A + P)];
    for (flags, expected) in [
        (ANON, &[][..]),
        (ANON | MAP_FIXED, over),
        (PRIVATE | MAP_FIXED, over),
        (1 | MAP_FIXED, over),
        (ANON | MAP_FIXED_NOREPLACE, &[]),
        (ANON | MAP_FIXED | MAP_FIXED_NOREPLACE, &[]),
        (MAP_FIXED, over),
        (MAX & !MAP_FIXED_NOREPLACE, over),
        (MAX, &[]),
        (0, &[]),
    ] {
        expect(Syscall::Mmap, &[A, P, 3, flags, MAX, 0], &UNKNOWN, Event::Unmap, expected);
    }
    // Huge pages round up; anonymous small ones do not.
    for (start, len, flags, end) in [
        (HUGE, P, ANON | MAP_FIXED, HUGE + P),
        (HUGE, P, ANON | MAP_FIXED | MAP_HUGETLB, HUGE + (2 << 20)),
        (HUGE, P, PRIVATE | MAP_FIXED, HUGE + (2 << 20)),
        (HUGE, 2 << 20, PRIVATE | MAP_FIXED, HUGE + (2 << 20)),
        (HUGE, (2 << 20) + 1, PRIVATE | MAP_FIXED, HUGE + (4 << 20)),
        (HUGE + P, P, PRIVATE | MAP_FIXED, HUGE + 2 * P),
        (5 << 30, P, PRIVATE | MAP_FIXED, 6 << 30),
    ] {
        expect(Syscall::Mmap, &[start, len, 3, flags], &UNKNOWN, Event::Unmap, &[(start, end)]);
    }
}

#[test]
fn mremap() {
    const MAY: usize = MREMAP_MAYMOVE;
    const FIX: usize = MREMAP_FIXED;
    const KEEP: usize = MREMAP_DONTUNMAP;
    const B: usize = A + 16 * P;
    type Row = (usize, usize, usize, usize, usize, Expected);
    let rows: &[Row] = &[
        // In place: only a shrinking mapping loses something.
        (A, 4 * P, P, 0, 0, &[(A + P, A + 4 * P)]),
        (A, 4 * P, P, MAY, 0, &[(A + P, A + 4 * P)]),
        (A, 4 * P, 1, 0, 0, &[(A + P, A + 4 * P)]),
        (A, 3 * P + 1, 2 * P + 1, 0, 0, &[(A + 3 * P, A + 4 * P)]),
        (A, 4 * P, 3 * P + 1, 0, 0, &[]),
        (A, 4 * P, 4 * P, 0, 0, &[]),
        (A, 4 * P, 4 * P, MAY, 0, &[]),
        (A, 4 * P, 5 * P, 0, 0, &[]),
        (A, 4 * P, 4 * P + 1, MAY, 0, &[(A, A + 4 * P)]),
        (A, 4 * P, 5 * P, MAY, 0, &[(A, A + 4 * P)]),
        (A, P, MAX, MAY, 0, &[]),
        (A, P, 1 << 62, MAY, 0, &[(A, A + P)]),
        // The new address counts only if it is wanted.
        (A, 4 * P, 4 * P, MAY, B, &[]),
        (A, 4 * P, 5 * P, MAY, B, &[(A, A + 4 * P)]),
        // To a place: the destination first.
        (A, 4 * P, 4 * P, MAY | FIX, B, &[(B, B + 4 * P), (A, A + 4 * P)]),
        (A, 4 * P, P, MAY | FIX, B, &[(B, B + P), (A, A + 4 * P)]),
        (A, P, 4 * P, MAY | FIX, B, &[(B, B + 4 * P), (A, A + P)]),
        (A, P, 1, MAY | FIX, B, &[(B, B + P), (A, A + P)]),
        (A, 4 * P, 4 * P, MAY | FIX, A + 4 * P, &[(A + 4 * P, A + 8 * P), (A, A + 4 * P)]),
        (A, 4 * P, 4 * P, MAY | FIX, A - 4 * P, &[(A - 4 * P, A), (A, A + 4 * P)]),
        // Overlapping, unaligned, out of range, without permission to move: refused.
        (A, 4 * P, 4 * P, MAY | FIX, A, &[]),
        (A, 4 * P, 4 * P, MAY | FIX, A + 3 * P, &[]),
        (A, 4 * P, 4 * P, MAY | FIX, A - 3 * P, &[]),
        (A, 4 * P, 4 * P, MAY | FIX, B + 1, &[]),
        (A, 4 * P, 4 * P, MAY | FIX, BEYOND - 3 * P, &[]),
        (A, 4 * P, 4 * P, MAY | FIX, MAX - 4095, &[]),
        (A, 4 * P, 4 * P, FIX, B, &[]),
        (A, 4 * P, 4 * P, KEEP, 0, &[]),
        (A, 4 * P, 4 * P, FIX | KEEP, B, &[]),
        (A + 1, 4 * P, 4 * P, MAY | FIX, B, &[]),
        (A + 1, 4 * P, P, 0, 0, &[]),
        (A, 4 * P, 0, 0, 0, &[]),
        (A, 4 * P, 0, MAY | FIX, B, &[]),
        (A, 4 * P, MAX, MAY | FIX, B, &[]),
        // The pages go, the mapping stays.
        (A, 4 * P, 4 * P, MAY | KEEP, 0, &[(A, A + 4 * P)]),
        (A, 4 * P, 4 * P, MAY | KEEP, A + 1, &[(A, A + 4 * P)]),
        (A, 4 * P, 4 * P, MAY | FIX | KEEP, B, &[(B, B + 4 * P), (A, A + 4 * P)]),
        (A, 4 * P, 3 * P, MAY | KEEP, 0, &[]),
        (A, 4 * P, 5 * P, MAY | FIX | KEEP, B, &[]),
        // A shared mapping is duplicated.
        (A, 0, 4 * P, MAY, 0, &[]),
        (A, 0, 4 * P, 0, 0, &[]),
        (A, 0, 4 * P, MAY | FIX, B, &[(B, B + 4 * P)]),
        (A, MAX, 4 * P, MAY | FIX, B, &[(B, B + 4 * P)]),
        // There is no such source; but the destination is emptied first.
        (A, MAX - 4095, 4 * P, MAY | FIX, B, &[(B, B + 4 * P)]),
        (A, 1 << 60, 4 * P, MAY | FIX, B, &[(B, B + 4 * P)]),
        (A, MAX - 4095, P, 0, 0, &[]),
        // Huge pages: sizes round up further, but those do not grow.
        (HUGE, 4 * P, P, 0, 0, &[(HUGE + P, HUGE + (2 << 20))]),
        (HUGE, 4 * P, 4 * P, 0, 0, &[]),
        (HUGE, 4 * P, 4 * P, MAY, 0, &[]),
        (HUGE, P, 4 * P, MAY, 0, &[(HUGE, HUGE + P)]),
        (HUGE, P, P, MAY | FIX, B, &[(B, B + P), (HUGE, HUGE + (2 << 20))]),
        (A, P, P, MAY | FIX, HUGE, &[(HUGE, HUGE + (2 << 20)), (A, A + P)]),
        // A flag of the future may move.
        (A, 4 * P, 4 * P, 8, 0, &[(A, A + 4 * P)]),
        (A, 4 * P, 4 * P, 8 | MAY | FIX, B, &[(B, B + 4 * P), (A, A + 4 * P)]),
        (A, 4 * P, 5 * P, 1 << 40 | KEEP, 0, &[(A, A + 4 * P)]),
    ];
    for &(old, old_size, new_size, flags, new, expected) in rows {
        expect(Syscall::Mremap, &[old, old_size, new_size, flags, new], &UNKNOWN, Event::Unmap, expected);
    }
}

#[test]
fn brk() {
    const OLD: usize = 0x5555_5555_6000;
    let rows: &[(usize, usize, Expected)] = &[
        (OLD, 0, &[]),
        (OLD, OLD, &[]),
        (OLD + 1, OLD + 4096, &[]),
        (OLD + 4096, OLD + 1, &[]),
        (OLD, OLD + 1, &[(OLD, OLD + P)]),
        (OLD, OLD - 1, &[]),
        (OLD, OLD - P, &[(OLD - P, OLD)]),
        (OLD, OLD - P - 1, &[(OLD - P, OLD)]),
        (OLD + 1, OLD - P + 1, &[(OLD, OLD + P)]),
        (OLD, OLD + 3 * P, &[(OLD, OLD + 3 * P)]),
        (OLD, 1, &[(P, OLD)]),
        (OLD, MAX, &[]),
        (OLD, BEYOND + 1, &[]),
        (OLD, BEYOND, &[(OLD, BEYOND)]),
        (0, 0, &[]),
        (0, OLD, ALL),
        (MAX, OLD, ALL),
    ];
    for &(old, new, expected) in rows {
        let facts = Facts { program_break: old, ..UNKNOWN };
        expect(Syscall::Brk, &[new], &facts, Event::Unmap, expected);
    }
    expect_needs(Syscall::Brk, &[0], Needs::Nothing);
    expect_needs(Syscall::Brk, &[1], Needs::ProgramBreak);
}

/// Numbers that are named here and not by names, so that a slip in the names shows.
const HARMLESS: [usize; 18] = [0, 1, 2, 3, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23, 103, 1 << 32];

#[test]
fn every_advice() {
    let far = [-1, -100, i64::from(i32::MIN), i64::from(i32::MAX), 0x1_0000_0004, 0x1_0000_0000];
    let one = [range(A, A + P)];
    let none = Facts { ranges: Some(&[]), ..UNKNOWN };
    let listed = Facts { ranges: Some(&one), ..UNKNOWN };
    for advice in (0..=110).chain(far) {
        let advice = advice as usize;
        let expected: Expected = if HARMLESS.contains(&advice) { &[] } else { &[(A, A + P)] };
        expect(Syscall::Madvise, &[A, 1, advice], &none, Event::Clear, expected);
        let wants = if advice == 9 { Needs::Aliases(range(A, A + P)) } else { Needs::Nothing };
        expect_needs(Syscall::Madvise, &[A, 1, advice], wants);

        let expected = if advice == 9 { ALL } else { expected };
        expect(Syscall::ProcessMadvise, &[7, 64, 1, advice, 0], &listed, Event::Clear, expected);
        let wants = if advice == 9 || expected.is_empty() {
            Needs::Nothing
        } else {
            Needs::Vector { pointer: 64, count: 1 }
        };
        expect_needs(Syscall::ProcessMadvise, &[7, 64, 1, advice, 0], wants);
    }
}

#[test]
fn madvise_remove_is_seen_through_every_mapping() {
    let pieces = [range(4 * P, 5 * P), range(P, 2 * P), range(8 * P, 9 * P), range(20 * P, 21 * P)];
    let rows: &[(Option<&[Range]>, Expected)] = &[
        (None, ALL),
        (Some(&[]), &[(10 * P, 11 * P)]),
        (Some(&pieces[..1]), &[(10 * P, 11 * P), (4 * P, 5 * P)]),
        (Some(&pieces[..3]), &[(10 * P, 11 * P), (4 * P, 5 * P), (P, 2 * P), (8 * P, 9 * P)]),
        (Some(&pieces), &[(P, 21 * P)]),
    ];
    for &(ranges, expected) in rows {
        let facts = Facts { ranges, ..UNKNOWN };
        expect(Syscall::Madvise, &[10 * P, P, 9], &facts, Event::Clear, expected);
        expect(Syscall::Madvise, &[10 * P, 0, 9], &facts, Event::Clear, &[]);
        expect(Syscall::Madvise, &[10 * P + 1, P, 9], &facts, Event::Clear, &[]);
        expect(Syscall::Madvise, &[10 * P, P, 4], &facts, Event::Clear, &[(10 * P, 11 * P)]);
    }
}

#[test]
fn process_madvise() {
    let five =
        [range(9 * P, 9 * P + 1), range(P, 2 * P), range(3 * P, 4 * P), range(5, 6), range(7 * P, 8 * P)];
    let tagged = [range(TAGGED | A, (TAGGED | A) + P)];
    let torn = [range(A, (TAGGED | A) + P)];
    let rows: &[(Option<&[Range]>, Expected)] = &[
        (None, ALL),
        (Some(&[]), &[]),
        (Some(&five[..1]), &[(9 * P, 10 * P)]),
        (Some(&five[..4]), &[(9 * P, 10 * P), (P, 2 * P), (3 * P, 4 * P), (0, P)]),
        (Some(&five), &[(0, 10 * P)]),
        (Some(&tagged), &[(A, A + P)]),
        (Some(&torn), ALL),
    ];
    for &(ranges, expected) in rows {
        let facts = Facts { ranges, ..UNKNOWN };
        expect(Syscall::ProcessMadvise, &[3, 64, 5, 4, 0], &facts, Event::Clear, expected);
        // Flags, no vector, too long a vector: refused, or nothing to do. The upper half of flags: no flag.
        expect(Syscall::ProcessMadvise, &[3, 64, 5, 4, 1], &facts, Event::Clear, &[]);
        expect(Syscall::ProcessMadvise, &[3, 64, 0, 4, 0], &facts, Event::Clear, &[]);
        expect(Syscall::ProcessMadvise, &[3, 64, 1025, 4, 0], &facts, Event::Clear, &[]);
        expect(Syscall::ProcessMadvise, &[3, 64, MAX, 4, 0], &facts, Event::Clear, &[]);
        expect(Syscall::ProcessMadvise, &[3, 64, 1024, 4, 1 << 32], &facts, Event::Clear, expected);
    }
    expect_needs(Syscall::ProcessMadvise, &[3, 64, 1024, 21, 0], Needs::Vector { pointer: 64, count: 1024 });
    expect_needs(Syscall::ProcessMadvise, &[3, 64, 1025, 21, 0], Needs::Nothing);
    expect_needs(Syscall::ProcessMadvise, &[3, 64, 1, 21, 2], Needs::Nothing);
}

#[test]
fn mprotect_of_what_grows() {
    const DOWN: usize = 0x0100_0000;
    const UP: usize = 0x0200_0000;
    for call in [Syscall::Mprotect, Syscall::PkeyMprotect] {
        for (args, expected) in [
            ([A, P, 0], &[(A, A + P)][..]),
            ([A, P, 7], &[(A, A + P)]),
            ([A, P, MAX & !(UP | DOWN)], &[(A, A + P)]),
            ([A, P, DOWN | 1], &[(0, A + P)]),
            ([A, P, UP | 1], &[(A, MAX)]),
            ([A, P, UP | DOWN | 1], &[]),
            ([A, 0, DOWN], &[]),
            ([A + 1, P, DOWN], &[]),
            ([A, MAX, UP], &[]),
        ] {
            expect(call, &args, &UNKNOWN, Event::ProtectionVma, expected);
        }
    }
}

#[test]
fn shared_segments() {
    const REMAP: usize = 0o40000;
    const RND: usize = 0o20000;
    let rows: &[(usize, usize, Option<usize>, Expected)] = &[
        (A, 0, Some(P), &[]),
        (A, RND, Some(P), &[]),
        (0, 0, Some(P), &[]),
        (A, MAX & !REMAP, Some(P), &[]),
        (A, REMAP, Some(1), &[(A, A + P)]),
        (A, REMAP | 0o10000, Some(3 * P), &[(A, A + 3 * P)]),
        (A, REMAP | 1 << 32, Some(3 * P), &[(A, A + 3 * P)]),
        (A, REMAP << 32, Some(3 * P), &[]),
        (A + 1, REMAP, Some(P), &[]),
        (A + 1, REMAP | RND, Some(P), &[(A, A + P)]),
        (A + 4095, REMAP | RND, None, &[(A, MAX)]),
        (A, REMAP, None, &[(A, MAX)]),
        (A, REMAP, Some(0), &[(A, MAX)]),
        (A, REMAP, Some(MAX), &[]),
        (HUGE, REMAP, Some(P), &[(HUGE, HUGE + (2 << 20))]),
        (0, REMAP, Some(P), &[]),
        (4095, REMAP | RND, Some(P), &[]),
    ];
    for &(addr, flags, segment, expected) in rows {
        let facts = Facts { segment, ..UNKNOWN };
        expect(Syscall::Shmat, &[9, addr, flags], &facts, Event::Unmap, expected);
    }
    expect_needs(Syscall::Shmat, &[9, A, 0], Needs::Nothing);
    expect_needs(Syscall::Shmat, &[9, A, REMAP], Needs::SegmentById(9));
    expect_needs(Syscall::Shmat, &[9, 0, REMAP], Needs::Nothing);

    for (addr, segment, expected) in [
        (A, Some(1), &[(A, A + P)][..]),
        (A, Some(3 * P), &[(A, A + 3 * P)]),
        (A, None, &[(A, MAX)]),
        (0, None, ALL),
        (A + 1, Some(P), &[]),
        (A + 1, None, &[]),
        (HUGE, Some((2 << 20) + 1), &[(HUGE, HUGE + (4 << 20))]),
        (A | TAGGED, Some(P), &[]),
    ] {
        let facts = Facts { segment, ..UNKNOWN };
        expect(Syscall::Shmdt, &[addr], &facts, Event::Unmap, expected);
    }
    expect_needs(Syscall::Shmdt, &[A], Needs::SegmentAt(A));
    expect_needs(Syscall::Shmdt, &[A + 1], Needs::Nothing);
}

#[test]
fn remap_file_pages() {
    for (start, size, expected) in [
        (A, P, &[(A, A + P)][..]),
        (A + 5, 2 * P + 4095, &[(A, A + 2 * P)]),
        (A, 4095, &[]),
        (A, 0, &[]),
        (A, MAX, &[]),
        (A, 1 << 62, &[(A, A + (1 << 62))]),
        (MAX, P, &[]),
    ] {
        expect(Syscall::RemapFilePages, &[start, size, 0, 7, 0], &UNKNOWN, Event::Clear, expected);
    }
}

/// Which bytes of a file, if any.
type Bytes = Option<(usize, usize)>;

/// Mode, offset, length and which bytes of the file go.
#[test]
fn fallocate() {
    let rows: &[(usize, usize, usize, Bytes)] = &[
        (0x00, 0, P, None),
        (0x01, 0, P, None),
        (0x03, P, P, Some((P, 2 * P))),
        (0x03, P + 1, 1, Some((P, 2 * P))),
        (0x02, 4095, 2, Some((0, 2 * P))),
        (0x08, 2 * P + 1, P, Some((2 * P, MAX))),
        (0x10, P, P, Some((P, 2 * P))),
        (0x11, P, P, Some((P, 2 * P))),
        (0x20, 3 * P, P, Some((3 * P, MAX))),
        (0x40, P, P, Some((P, 2 * P))),
        (0x80, P, P, Some((P, 2 * P))),
        (0x18, P, P, Some((P, MAX))),
        (0x04, P, P, Some((0, MAX))),
        (0x104, P, P, Some((0, MAX))),
        (0x8000_0000, P, P, Some((0, MAX))),
        (1 << 32, P, P, None),
        (0x03, P, 0, None),
        (0x03, P, MAX, None),
        (0x03, MAX, P, None),
        (0x03, 1 << 63, P, None),
        (0x03, MAX >> 1, 1, None),
        (0x03, 0, MAX >> 1, Some((0, 1 << 63))),
        (0x08, MAX >> 1, MAX >> 1, None),
    ];
    for &(mode, offset, len, bytes) in rows {
        check_file(Syscall::Fallocate, &[6, mode, offset, len], File::Descriptor(6), bytes);
    }
}

#[test]
fn truncate() {
    for (length, bytes) in [
        (0, Some((0, MAX))),
        (1, Some((0, MAX))),
        (4095, Some((0, MAX))),
        (4096, Some((P, MAX))),
        (MAX >> 1, Some(((MAX >> 1) & !4095, MAX))),
        (1 << 63, None),
        (MAX, None),
    ] {
        check_file(Syscall::Ftruncate, &[6, length], File::Descriptor(6), bytes);
        check_file(Syscall::Ftruncate, &[MAX, length], File::Descriptor(-1), bytes);
        check_file(Syscall::Truncate, &[A, length], File::Path(A), bytes);
    }
}

#[track_caller]
fn check_file(call: Syscall, args: &[usize], file: File, bytes: Bytes) {
    let pieces = [range(A, A + P), range(P, 3 * P + 1), range(5 * P, 6 * P), range(0, 1), range(7, 8)];
    let Some((from, to)) = bytes else {
        expect_needs(call, args, Needs::Nothing);
        for ranges in [None, Some(&pieces[..])] {
            expect(call, args, &Facts { ranges, ..UNKNOWN }, Event::Clear, &[]);
        }
        return;
    };
    expect_needs(call, args, Needs::FileRanges { file, from, to });
    let rows: &[(Option<&[Range]>, Expected)] = &[
        (None, ALL),
        (Some(&[]), &[]),
        (Some(&pieces[..1]), &[(A, A + P)]),
        (Some(&pieces[..4]), &[(A, A + P), (P, 4 * P), (5 * P, 6 * P), (0, P)]),
        (Some(&pieces), &[(0, A + P)]),
    ];
    for &(ranges, expected) in rows {
        expect(call, args, &Facts { ranges, ..UNKNOWN }, Event::Clear, expected);
    }
}

#[test]
fn new_processes() {
    const SIGCHLD: usize = 17;
    const VM: usize = 0x100;
    for (call, args, clone_flags, expected) in [
        (Syscall::Fork, [0, 0], 0, ALL),
        (Syscall::Fork, [VM, 0], VM as u64, ALL),
        (Syscall::Vfork, [0, 0], 0, &[]),
        (Syscall::Clone, [SIGCHLD, 0], VM as u64, ALL),
        (Syscall::Clone, [VM | SIGCHLD, 0], 0, &[]),
        (Syscall::Clone, [0x4000 | VM, 0], 0, &[]),
        (Syscall::Clone3, [A, 88], 0, ALL),
        (Syscall::Clone3, [VM, 88], 0x4000, ALL),
        (Syscall::Clone3, [A, 88], VM as u64, &[]),
    ] {
        let facts = Facts { clone_flags, ..UNKNOWN };
        expect(call, &args, &facts, Event::ProtectionPage, expected);
        let wants = if call == Syscall::Clone3 { Needs::CloneFlags(args[0]) } else { Needs::Nothing };
        expect_needs(call, &args, wants);
    }
    expect(Syscall::Execve, &[A], &UNKNOWN, Event::Release, ALL);
    expect(Syscall::Execveat, &[3, A], &UNKNOWN, Event::Release, ALL);
    expect(Syscall::ExitGroup, &[0], &UNKNOWN, Event::Release, &[]);
}

/// Numbers as they come, and many near those at which something happens.
fn number() -> impl Strategy<Value = usize> {
    let landmarks = vec![0, P, HUGE, A, TAGGED, 1 << 30, 1 << 47, BEYOND, 1 << 63, MAX - P, MAX];
    prop_oneof![
        any::<usize>(),
        0usize..=0x200,
        (0u32..64).prop_map(|bit| 1 << bit),
        (prop::sample::select(landmarks), -5000isize..5000).prop_map(|(at, by)| at.wrapping_add_signed(by)),
    ]
}

fn any_range() -> impl Strategy<Value = Range> {
    (number(), number()).prop_filter_map("empty", |(a, b)| Range::new(a.min(b), a.max(b)).ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn takes_anything(
        args in prop::array::uniform6(number()),
        program_break in number(),
        segment in prop::option::of(number()),
        ranges in prop::option::of(prop::collection::vec(any_range(), 0..7)),
        clone_flags in any::<u64>(),
    ) {
        let facts = Facts { program_break, segment, ranges: ranges.as_deref(), clone_flags };
        for call in Syscall::ALL {
            let wants = needs(call, &args);
            let changes = decode(call, &args, &facts);
            prop_assert!(changes.as_slice().len() <= Changes::MAX);
            for (range, _) in changes.as_slice() {
                prop_assert!(range.start() < range.end());
                prop_assert!(range.start().is_multiple_of(P), "{:?} of {:?}", range, call);
                prop_assert!(range.end().is_multiple_of(P) || range.end() == MAX, "{:?} of {:?}", range, call);
            }
            // A call that wants nothing does not look at the facts.
            if wants == Needs::Nothing {
                prop_assert_eq!(changes, decode(call, &args, &UNKNOWN));
            }
            // To know less is to announce more.
            let blind = decode(call, &args, &UNKNOWN);
            if call != Syscall::Brk {
                for (range, event) in changes.as_slice() {
                    let covered = blind.as_slice().iter().any(|(wide, why)| wide.contains(range) && why == event);
                    prop_assert!(covered, "{:?} of {:?} is not in {:?}", range, call, blind);
                }
            }
        }
    }

    /// The short way says what the long way says, or nothing.
    #[test]
    fn the_common_calls_are_decoded_alike(
        args in prop::array::uniform6(number()),
        pages in 1usize..9,
        advice in prop_oneof![0..32usize, Just(103)],
        flags in 0..8usize,
        over in prop::array::uniform4(any::<bool>()),
    ) {
        // Numbers that mean something, as often as not.
        let [mut a, mut b, mut c, mut d, e, f] = args;
        if over[0] { a = untagged(page_floor(a)); }
        if over[1] { b = pages * P; }
        if over[2] { c = advice; }
        if over[3] {
            let or = |bit: usize, flag| if flags & bit != 0 { flag } else { 0 };
            d = MAP_ANONYMOUS | or(1, MAP_FIXED) | or(2, MAP_FIXED_NOREPLACE) | or(4, MAP_HUGETLB);
        }
        for call in Syscall::ALL {
            let all = decode(call, &[a, b, c, d, e, f], &UNKNOWN);
            match decode_common(call.number(), &[a, b, c, d]) {
                (Common::Rare, ..) => {}
                (Common::Nothing, ..) => prop_assert_eq!(all.as_slice(), []),
                (Common::One, range, event) => prop_assert_eq!(all.as_slice(), [(range, event)]),
            }
        }
    }

    /// What the kernel unmaps lies inside what is announced, and nothing that it cannot touch does.
    #[test]
    fn munmap_is_exact(page in 0usize..USER_END / P, len in 1usize..1 << 50) {
        let changes = decode(Syscall::Munmap, &[page * P, len, 0, 0, 0, 0], &UNKNOWN);
        let end = page * P + len.div_ceil(P) * P;
        if end > USER_END {
            prop_assert_eq!(changes, Changes::NONE);
        } else {
            prop_assert_eq!(changes.as_slice(), [(range(page * P, end), Event::Unmap)]);
        }
    }
}
