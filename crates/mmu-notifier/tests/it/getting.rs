//! Subscribers that are shared.

use std::convert::Infallible;
use std::sync::mpsc::channel;
use std::time::Duration;

use mmu_notifier::{AddressSpace, Change, Event, Shared, Subscriber};

use crate::witness::PAGES;

struct One;

impl Subscriber for One {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

fn get(space: &AddressSpace) -> Shared<One> {
    space.get(|| Ok::<_, Infallible>(One)).unwrap()
}

#[test]
fn who_gets_what_another_is_just_subscribing_waits_as_well() {
    let space = AddressSpace::new();
    let (opened, is_open) = channel();
    let (close, may_close) = channel::<()>();
    let (got, has_got) = channel();
    std::thread::scope(|scope| {
        let space = &space;
        scope.spawn(move || {
            space.invalidate(PAGES, Event::Unmap, || {
                opened.send(()).unwrap();
                may_close.recv().unwrap();
            });
        });
        is_open.recv().unwrap();
        for _ in 0..2 {
            let got = got.clone();
            scope.spawn(move || {
                let share = get(space);
                got.send(()).unwrap();
                drop(share);
            });
            let early = has_got.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err(), "a change is open that the subscriber was not told of");
        }
        close.send(()).unwrap();
        has_got.recv().unwrap();
        has_got.recv().unwrap();
    });
}
