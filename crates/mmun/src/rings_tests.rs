use super::*;
use std::sync::atomic::Ordering::Relaxed;

use crate::session::Wanted;

/// A writer as the protocol wants it.
struct World {
    session: Session,
    rings: Rings,
    now: Instant,
}

impl World {
    fn new() -> World {
        let session = Session::create(Wanted { buffer: Some(128 << 10), ..Wanted::default() }, 2).unwrap();
        assert_eq!((session.rings(), session.ring(0).1.len()), (2, 1024));
        World { rings: Rings::new(&session), session, now: Instant::now() }
    }

    /// Takes a position, if there is room.
    fn take(&self, ring: usize) -> Option<u64> {
        let (head, records) = self.session.ring(ring);
        let at = head.head.load(Relaxed);
        if at - head.tail.0.load(Relaxed) >= records.len() as u64 {
            head.dropped.fetch_add(1, Relaxed);
            return None;
        }
        head.head.store(at + 1, Ordering::Release);
        Some(at)
    }

    fn write(&self, ring: usize, at: u64, time: u64) {
        let records = self.session.ring(ring).1;
        let record = &records[at as usize % records.len()];
        record.time.store(time, Relaxed);
        record.what.store(7 << 32 | 1 << 16 | 255 << 8 | 1, Relaxed);
        record.took.store(9 << 32 | 8, Relaxed);
        record.who.store(5 << 32 | 4242, Relaxed);
        record.start.store(0x7000_0000_0000, Relaxed);
        record.sequence.store(at + 1, Ordering::Release);
    }

    fn put(&self, ring: usize, time: u64) {
        if let Some(at) = self.take(ring) {
            self.write(ring, at, time);
        }
    }

    fn times(&mut self, milliseconds: u64, last: bool) -> Vec<u64> {
        self.now += Duration::from_millis(milliseconds);
        let mut batch = Vec::new();
        self.rings.drain(&self.session, self.now, last, &mut batch);
        batch.iter().map(Said::time).collect()
    }
}

#[test]
fn takes_records_apart_and_in_order() {
    let mut world = World::new();
    world.put(0, 30);
    world.put(1, 20);
    world.put(0, 40);
    let mut batch = Vec::new();
    world.rings.drain(&world.session, world.now, false, &mut batch);
    assert_eq!(batch.iter().map(Said::time).collect::<Vec<_>>(), [20, 30, 40]);
    let expected = Entry {
        time: 20,
        call: Syscall::Munmap,
        event: None,
        failed: true,
        refused: false,
        tid: 4242,
        process: 5,
        start: 0x7000_0000_0000,
        len: 0,
        starts: 7,
        change: 8,
        ends: 9,
        caller: 0,
    };
    assert_eq!(batch[0], Said::Call(expected));
    assert_eq!(world.times(1, false), [0; 0]);
    assert_eq!((world.rings.read(), world.rings.dropped(&world.session)), (3, 0));
}

#[test]
fn goes_round_and_counts_what_found_no_room() {
    let mut world = World::new();
    for round in 0..5 {
        (0..1100).for_each(|time| world.put(0, round * 1100 + time));
        let times = world.times(1, false);
        assert_eq!((times.len(), times[1023]), (1024, round * 1100 + 1023));
    }
    assert_eq!(world.rings.read(), 5 * 1024);
    assert_eq!(world.rings.dropped(&world.session), 5 * 76);
    assert_eq!(world.times(1, false), [0; 0]);
}

#[test]
fn waits_for_a_record_that_is_being_written() {
    let mut world = World::new();
    world.put(0, 1);
    let late = world.take(0).unwrap();
    world.put(0, 3);
    assert_eq!(world.times(1, false), [1]);
    assert_eq!(world.times(900, false), [0; 0]);
    world.write(0, late, 2);
    assert_eq!(world.times(1, false), [2, 3]);
    // The time it took does not count against the next one.
    let later = world.take(0).unwrap();
    assert_eq!(world.times(900, false), [0; 0], "seen for the first time");
    assert_eq!(world.times(900, false), [0; 0]);
    assert_eq!(world.times(200, false), [0; 0]);
    world.write(0, later, 4);
    assert_eq!(world.times(1, false), [0; 0]);
    assert_eq!(world.rings.dropped(&world.session), 1);
}

#[test]
fn passes_by_records_of_the_dead() {
    let mut world = World::new();
    world.take(0);
    world.take(0);
    world.put(0, 3);
    assert_eq!(world.times(1, false), [0; 0]);
    world.take(0); // younger: has its own second
    world.put(0, 5);
    assert_eq!(world.times(1100, false), [3]);
    assert_eq!(world.times(900, false), [0; 0]);
    assert_eq!(world.times(200, false), [5]);
    assert_eq!(world.rings.dropped(&world.session), 3);
    world.take(0);
    world.put(0, 7);
    assert_eq!(world.times(1, true), [7], "at the end nothing is waited for");
    assert_eq!(world.rings.dropped(&world.session), 4);
}

#[test]
fn broken_memory_is_survived() {
    let mut world = World::new();
    world.put(0, 1);
    let at = world.take(0).unwrap();
    let record = &world.session.ring(0).1[1];
    record.what.store(u64::MAX, Relaxed); // no such system call
    record.who.store(u64::MAX, Relaxed);
    record.sequence.store(at + 1, Ordering::Release);
    world.put(0, 3);
    assert_eq!(world.times(1, false), [1, 3]);
    assert_eq!(world.rings.dropped(&world.session), 1);

    for nonsense in [u64::MAX - 9, 5000, 1 << 40] {
        world.session.ring(0).0.head.store(nonsense, Relaxed);
        assert_eq!(world.times(1, false), [0; 0]);
    }
    world.session.ring(0).0.tail.0.store(77, Relaxed);
    let (head, _) = world.session.ring(0);
    assert_eq!(head.head.load(Relaxed), 1 << 40);
    world.times(1, false);
    world.put(0, 9);
    assert_eq!(world.times(1, false), [9], "and goes on");
}
