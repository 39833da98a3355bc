//! What is on record by itself, with calls of made-up threads.

// UNSAFETY: makes up callers.
#![expect(unsafe_code)]

use std::cell::Cell;

use super::*;

const FILE: Key = Key(100);
const OTHER: Key = Key(200);

fn caller(thread: u64, stack: usize) -> Caller {
    // SAFETY: nobody takes it for more than a number.
    unsafe { Caller::new(thread, thread as usize) }.with_stack(stack)
}

/// Whether somebody who maps that file finds a change of it.
fn is_found(files: &Files, key: Key) -> bool {
    let mapping = files.enter_mapping(&caller(99, 0), key);
    let found = files.find(mapping, &mut 0).is_some();
    files.leave(mapping);
    found
}

/// Whether somebody who changes that file finds one that maps it.
fn is_mapping(files: &Files, key: Key) -> bool {
    let change = files.enter_change(&caller(98, 0), key).unwrap();
    let mapping = files.who_maps(change);
    files.leave(change);
    mapping.file
}

#[test]
fn who_finds_no_room_to_map_is_counted() {
    let files = Files::new();
    let mut others: Vec<_> =
        (1..=RECORDS as u64).map(|thread| files.enter_mapping(&caller(thread, 0), OTHER)).collect();
    let [first, second] = [FILE, OTHER].map(|key| files.enter_mapping(&caller(1000, 0), key));
    files.leave(others.pop().unwrap());
    assert!(is_mapping(&files, FILE), "it may be any file");
    files.leave(first);
    assert!(is_mapping(&files, FILE));
    files.leave(second);
    assert!(!is_mapping(&files, FILE));
    assert!(is_mapping(&files, OTHER));
    others.into_iter().for_each(|other| _ = files.leave(other));
    assert!(!is_mapping(&files, OTHER));
}

#[test]
fn who_finds_no_room_to_change_is_told_so() {
    let files = Files::new();
    let others: Vec<_> =
        (1..=RECORDS as u64).map(|thread| files.enter_mapping(&caller(thread, 0), OTHER)).collect();
    assert_eq!(files.enter_change(&caller(1000, 0), FILE), None);
    assert!(!files.is_changing());
    others.into_iter().for_each(|other| _ = files.leave(other));
    assert!(files.enter_change(&caller(1000, 0), FILE).is_some());
    assert!(files.is_changing());
}

#[test]
fn in_a_forked_child_nothing_is_under_way() {
    let files = Files::new();
    let change = files.enter_change(&caller(1, 0), FILE).unwrap();
    let mut maps: Vec<_> =
        (2..=RECORDS as u64 + 1).map(|thread| files.enter_mapping(&caller(thread, 0), FILE)).collect();
    assert_eq!(maps.last().unwrap().place, RECORDS, "one is only counted");
    files.forked();
    assert!(!files.is_changing());
    assert!(!is_mapping(&files, FILE) && !is_found(&files, FILE));
    // The calls of the child itself, which came back from `fork` inside of them, are no others.
    let new = files.enter_change(&caller(1, 0), FILE).unwrap();
    assert_eq!(new.place, change.place);
    maps.push(change);
    maps.into_iter().for_each(|old| assert!(!files.leave(old)));
    assert!(files.is_changing() && is_found(&files, FILE));
    assert!(!files.leave(new));
    assert!(!files.is_changing());
}

#[test]
fn what_was_jumped_out_of_is_found_by_its_thread() {
    let files = Files::new();
    files.enter_mapping(&caller(1, 0x1000), FILE);
    files.enter_change(&caller(1, 0x1000), FILE).unwrap();
    files.enter_mapping(&caller(1, 0x3000), OTHER);
    let of_another = files.enter_change(&caller(2, 0x1000), OTHER).unwrap();
    assert!(files.may_have_left(&caller(1, 0x2000)));
    files.leave_gone(&caller(1, 0x2000), |stack| stack < 0x2000);
    assert!(!is_mapping(&files, FILE) && !is_found(&files, FILE));
    assert!(is_mapping(&files, OTHER) && is_found(&files, OTHER));
    files.leave(of_another);
    assert!(!files.is_changing());
    files.leave_gone(&caller(1, 0x4000), |stack| stack < 0x4000);
    assert!(!is_mapping(&files, OTHER));
    assert!(!files.may_have_left(&caller(1, 0x4000)));
}

#[test]
fn a_mapping_call_that_was_jumped_out_of_is_looked_for() {
    let files = Files::new();
    let [of_one, of_another] = [1, 2].map(|thread| caller(thread, 0x1000));
    assert!(!files.may_have_left(&of_one));
    files.enter_mapping(&of_one, FILE);
    assert!(files.may_have_left(&of_one));
    assert!(!files.may_have_left(&of_another));
}

#[test]
fn one_change_is_handed_over_to_each_call_if_it_is_there() {
    let files = Files::new();
    let changing = caller(1, 0x1000);
    let mapping = files.enter_mapping(&caller(2, 0), FILE);
    let find = || files.find(mapping, &mut 0);
    let change = files.enter_change(&changing, FILE).unwrap();
    let [found, late] = [find(), find()].map(Option::unwrap);
    assert_eq!((found.thread, found.home, found.stack), (1, 1, 0x1000));
    files.is_not_mapped(change);
    assert!(files.join(&found), "only that is new");
    assert!(!files.join(&late), "one is enough");
    assert!(find().is_none());
    assert!(files.leave(change), "he ends it");
    // The next one in the same place is another.
    let next = files.enter_change(&changing, FILE).unwrap();
    assert_eq!(next.place, change.place);
    assert!(!files.join(&late));
    assert!(!files.leave(next));
    // Who announces everything himself needs nothing.
    let change = files.enter_change(&changing, FILE).unwrap();
    let late = find().unwrap();
    files.is_everything(change);
    assert!(find().is_none() && !files.join(&late));
    assert!(!files.leave(change));
    assert!(!files.join(&late));
}

#[test]
fn who_waits_waits_for_what_others_are_changing() {
    let files = Files::new();
    let (own, other) = (caller(1, 0), caller(2, 0));
    files.enter_change(&own, FILE).unwrap();
    files.enter_mapping(&other, FILE);
    files.wait_for_changes(&own, || unreachable!("that is nobody's change but his own"));
    let change = Cell::new(files.enter_change(&other, FILE).unwrap());
    let waits = Cell::new(0);
    files.wait_for_changes(&own, || {
        waits.set(waits.get() + 1);
        // Not for the next one in the same place.
        if waits.get() == 3 {
            files.leave(change.get());
            change.set(files.enter_change(&other, FILE).unwrap());
        }
    });
    assert_eq!(waits.get(), 3);
}
