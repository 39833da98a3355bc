//! Subscribers that write down what they are told.

use std::sync::{Arc, Mutex};

use mmu_notifier::{
    AddressSpace, Blocking, Change, Event, Range, Refuser, Subscriber, Subscription, WouldBlock,
};

/// What happened, in order: `K+` start of K, `K-` end, `K~` release, `N?` asked, `N!` refused, `*` the change.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }

    /// What happened since the last look.
    pub(crate) fn take(&self) -> String {
        self.0.lock().unwrap().drain(..).collect::<Vec<_>>().join(" ")
    }
}

type Callback = Box<dyn Fn(&Change) + Send + Sync>;

/// A paired subscriber with a name, and what it does beside writing it down.
pub(crate) struct Witness {
    pub(crate) name: &'static str,
    pub(crate) log: Log,
    pub(crate) on_start: Callback,
    pub(crate) on_end: Callback,
}

impl Witness {
    pub(crate) fn new(name: &'static str, log: &Log) -> Witness {
        Witness { name, log: log.clone(), on_start: Box::new(|_| {}), on_end: Box::new(|_| {}) }
    }

    pub(crate) fn on_start(mut self, callback: impl Fn(&Change) + Send + Sync + 'static) -> Witness {
        self.on_start = Box::new(callback);
        self
    }

    pub(crate) fn on_end(mut self, callback: impl Fn(&Change) + Send + Sync + 'static) -> Witness {
        self.on_end = Box::new(callback);
        self
    }
}

impl Subscriber for Witness {
    fn start(&self, change: &Change) {
        self.log.add(&format!("{}+", self.name));
        (self.on_start)(change);
    }

    fn end(&self, change: &Change) {
        self.log.add(&format!("{}-", self.name));
        (self.on_end)(change);
    }

    fn release(&self) {
        self.log.add(&format!("{}~", self.name));
    }
}

/// Refuses every k-th non-blocking start.
pub(crate) struct Busy {
    name: &'static str,
    log: Log,
    every: u32,
    asked: Mutex<u32>,
}

impl Busy {
    pub(crate) fn new(name: &'static str, log: &Log, every: u32) -> Busy {
        Busy { name, log: log.clone(), every, asked: Mutex::new(0) }
    }
}

impl Refuser for Busy {
    fn start(&self, change: &Change) {
        assert_eq!(change.blocking(), Blocking::Allowed);
        self.log.add(&format!("{}+", self.name));
    }

    fn try_start(&self, change: &Change) -> Result<(), WouldBlock> {
        assert_eq!(change.blocking(), Blocking::Forbidden);
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        let refuse = asked.is_multiple_of(self.every);
        self.log.add(&format!("{}{}", self.name, if refuse { '!' } else { '?' }));
        if refuse { Err(WouldBlock) } else { Ok(()) }
    }

    fn release(&self) {
        self.log.add(&format!("{}~", self.name));
    }
}

pub(crate) const PAGES: Range = match Range::new(0x1000, 0x3000) {
    Ok(pages) => pages,
    Err(_) => panic!("a range"),
};

/// A space with paired subscribers of these names, subscribed in this order.
pub(crate) fn space_with(log: &Log, names: &[&'static str]) -> (AddressSpace, Vec<Subscription>) {
    let space = AddressSpace::new();
    let subscriptions = names.iter().map(|name| space.subscribe(Witness::new(name, log))).collect();
    (space, subscriptions)
}

/// A blocking change, written down.
pub(crate) fn change(space: &AddressSpace, log: &Log) {
    space.invalidate(PAGES, Event::Unmap, || log.add("*"));
}

/// A non-blocking change, written down.
pub(crate) fn try_change(space: &AddressSpace, log: &Log) -> Result<(), WouldBlock> {
    space.try_invalidate(PAGES, Event::Clear, || log.add("*"))
}
