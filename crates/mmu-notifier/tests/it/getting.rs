//! Subscribers that are shared.

use std::convert::Infallible;

use mmu_notifier::{AddressSpace, Change, Event, Shared, Subscriber};

use crate::witness::{Elsewhere, PAGES, Task, blocking};

struct One;

impl Subscriber for One {
    fn start(&self, _: &Change) {}
    fn end(&self, _: &Change) {}
}

fn get(space: &AddressSpace) -> Shared<One> {
    space.get(|| Ok::<_, Infallible>(One)).unwrap()
}

/// Another thread that gets a share, says so, and puts it; inside a change of its own, perhaps.
fn getting(space: &AddressSpace, inside: bool) -> Task<()> {
    let space = space.clone();
    Task::new(move || {
        if inside {
            space.invalidate(PAGES, Event::Unmap, || drop(get(&space)));
        } else {
            drop(get(&space));
        }
    })
}

#[test]
fn who_gets_what_another_is_just_subscribing_waits_as_well() {
    for inside in [false, true] {
        let space = AddressSpace::new();
        let open = Elsewhere::open(&space, blocking(0x1000, 0x3000));
        let tasks = [false, inside].map(|inside| {
            let task = getting(&space, inside);
            assert!(task.waits(), "a change is open that the subscriber was not told of");
            task
        });
        open.close();
        tasks.into_iter().for_each(Task::finish);
    }
}
