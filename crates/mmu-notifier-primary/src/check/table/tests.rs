use super::*;

fn maker(time: u64, stack: u32) -> Maker {
    Maker { descriptor: 3, owner: 9, thread: 1, registering: 427, time, stack }
}

fn new(index: u64, start: usize, len: usize) -> New {
    New { kind: Registered::Buffer, index, space: 0, start, len, writes: true }
}

fn pages(start: usize, end: usize) -> Range {
    Range::new(start * PAGE_SIZE, end * PAGE_SIZE).unwrap()
}

#[test]
fn what_is_removed_leaves_nothing() {
    let table = Table::new().unwrap();
    for round in 0..3 {
        let places: Vec<_> = (0..1000u64)
            .map(|nth| {
                table.add(&new(nth, 0x10_0000 * (nth as usize + 1), 100 * PAGE_SIZE), &maker(nth, NONE))
            })
            .map(|place| place.unwrap())
            .collect();
        assert_eq!(places, (0..1000).collect::<Vec<_>>(), "round {round}");
        assert_eq!(table.hull(), (0x10_0000, 0x10_0000 * 1000 + 100 * PAGE_SIZE));
        for place in places.into_iter().rev() {
            table.remove(place);
        }
        assert_eq!((table.places(), table.hull()), (0..0, (0, 0)));
        assert!(table.taken.iter().all(|&taken| taken == 0), "a block was not given back");
    }
}

#[test]
fn places_are_used_again() {
    let table = Table::new().unwrap();
    for nth in 0..5 {
        table.add(&new(nth, PAGE_SIZE, 1), &maker(0, NONE)).unwrap();
    }
    table.remove(3);
    table.remove(1);
    assert_eq!(table.add(&new(7, PAGE_SIZE, 1), &maker(0, NONE)), Some(1));
    assert_eq!(table.add(&new(8, PAGE_SIZE, 1), &maker(0, NONE)), Some(3));
    assert_eq!(table.add(&new(9, PAGE_SIZE, 1), &maker(0, NONE)), Some(5));
    let indices: Vec<_> = table.places().map(|place| table.entry(place).index).collect();
    assert_eq!(indices, [0, 7, 2, 8, 4, 9]);
}

#[test]
fn each_page_has_a_word_of_its_own() {
    let table = Table::new().unwrap();
    // Bytes 100 to the second of page 12.
    let place = table.add(&new(0, 10 * PAGE_SIZE + 100, 2 * PAGE_SIZE), &maker(0, NONE)).unwrap();
    let other = table.add(&new(1, 10 * PAGE_SIZE, 200 * PAGE_SIZE), &maker(0, NONE)).unwrap();
    let (start, words) = table.words(place, &Range::EVERYTHING).unwrap();
    assert_eq!((start, words.len()), (10 * PAGE_SIZE, 3));
    words.copy_from_slice(&[1, 2, 3]);
    let (start, words) = table.words(other, &pages(100, 1000)).unwrap();
    assert_eq!((start, words.len()), (100 * PAGE_SIZE, 110));
    words.fill(7);
    assert_eq!(table.words(place, &pages(11, 12)), Some((11 * PAGE_SIZE, &mut [2][..])));
    assert_eq!(table.words(place, &pages(12, 100)), Some((12 * PAGE_SIZE, &mut [3][..])));
    assert_eq!(table.words(place, &pages(13, 100)), None);
    assert_eq!(table.words(other, &pages(10, 11)), Some((10 * PAGE_SIZE, &mut [0][..])));
    let copy = table.add_like(place, 5, 4, 8).unwrap();
    assert_eq!(table.words(copy, &Range::EVERYTHING), Some((10 * PAGE_SIZE, &mut [1, 2, 3][..])));
    assert_eq!((table.entry(copy).index, table.entry(copy).owner), (5, 8));
}

#[test]
fn a_stack_lives_as_long_as_its_registrations() {
    let table = Table::new().unwrap();
    let (stack, room) = table.new_stack();
    assert!(room.is_some());
    let first = table.add(&new(0, PAGE_SIZE, 1), &maker(0, stack)).unwrap();
    let second = table.add(&new(1, PAGE_SIZE, 1), &maker(0, stack)).unwrap();
    assert_ne!(table.new_stack().0, stack);
    table.remove(first);
    assert_ne!(table.new_stack().0, stack);
    table.remove(second);
    assert_eq!(table.new_stack().0, stack);
}

#[test]
fn what_does_not_fit_is_refused_and_the_rest_goes_on() {
    let table = Table::new().unwrap();
    let large = PAGES * PAGE_SIZE / 2;
    assert!(table.add(&new(0, PAGE_SIZE, large), &maker(0, NONE)).is_some());
    let second = table.add(&new(1, PAGE_SIZE, large), &maker(0, NONE)).unwrap();
    assert_eq!(table.add(&new(2, PAGE_SIZE, 1), &maker(0, NONE)), None, "there are no more words");
    table.remove(second);
    for nth in 1..ENTRIES as u64 {
        assert!(table.add(&new(nth, PAGE_SIZE, 1), &maker(0, NONE)).is_some(), "{nth}");
    }
    assert_eq!(table.add(&new(2, PAGE_SIZE, 1), &maker(0, NONE)), None, "there are no more places");
    let slot = New { kind: Registered::Memslot, ..new(0, PAGE_SIZE, usize::MAX / 2) };
    table.remove(77);
    assert_eq!(table.add(&slot, &maker(0, NONE)), Some(77), "it needs no words");
}

#[test]
fn a_part_of_what_is_locked_is_unlocked() {
    let table = Table::new().unwrap();
    let lock = |table: &mut Table| {
        let whole = New { kind: Registered::Lock, ..new(0, 10 * PAGE_SIZE, 10 * PAGE_SIZE) };
        table.add(&whole, &maker(0, NONE)).unwrap()
    };
    for (part, left) in [
        (pages(10, 20), &[][..]),
        (pages(10, 12), &[(12, 20)]),
        (pages(15, 20), &[(10, 15)]),
        (pages(12, 13), &[(10, 12), (13, 20)]),
    ] {
        let place = lock(table);
        super::super::judge::unlock(table, place, &part);
        let mut locked: Vec<_> = table
            .places()
            .filter(|&place| table.entry(place).kind().is_some())
            .map(|place| table.entry(place).pages().unwrap())
            .collect();
        locked.sort_by_key(Range::start);
        let expected: Vec<_> = left.iter().map(|&(from, to)| pages(from, to)).collect();
        assert_eq!(locked, expected, "{part:?}");
        table.places().for_each(|place| {
            if table.entry(place).kind().is_some() {
                table.remove(place);
            }
        });
    }
}
