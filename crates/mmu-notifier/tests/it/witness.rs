//! Subscribers that write down what they are told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mmu_notifier::{
    Abandoned, AddressSpace, Blocking, Caller, Change, Event, IntervalSubscriber, Pass, Range, Refuser,
    Subscriber, Subscription, WouldBlock,
};

/// What happened, in order: `K+` start of K, `K-` end, `K~` release, `N?` asked, `N!` refused, `*` the change. For an
/// interval `I+` invalidated, `I?` the same without waiting, `I!` refused, `I:` finished, `Ix` dropped.
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

type Answer = Box<dyn Fn(&Change) -> bool + Send + Sync>;

/// An interval's subscriber with a name, and what it does beside writing it down.
pub(crate) struct Mirror {
    name: &'static str,
    log: Log,
    on_start: Callback,
    on_finish: Callback,
    on_drop: Box<dyn Fn() + Send + Sync>,
    ignores: Answer,
    refuses: Arc<AtomicBool>,
    two_pass: bool,
}

impl Mirror {
    pub(crate) fn new(name: &'static str, log: &Log) -> Mirror {
        Mirror {
            name,
            log: log.clone(),
            on_start: Box::new(|_| {}),
            on_finish: Box::new(|_| {}),
            on_drop: Box::new(|| {}),
            ignores: Box::new(|_| false),
            refuses: Arc::default(),
            two_pass: false,
        }
    }

    /// Does this in the first pass.
    pub(crate) fn on_start(mut self, callback: impl Fn(&Change) + Send + Sync + 'static) -> Mirror {
        self.on_start = Box::new(callback);
        self
    }

    /// Has a second pass, and does this in it.
    pub(crate) fn on_finish(mut self, callback: impl Fn(&Change) + Send + Sync + 'static) -> Mirror {
        self.on_finish = Box::new(callback);
        self.two_pass()
    }

    pub(crate) fn on_drop(mut self, callback: impl Fn() + Send + Sync + 'static) -> Mirror {
        self.on_drop = Box::new(callback);
        self
    }

    pub(crate) fn two_pass(mut self) -> Mirror {
        self.two_pass = true;
        self
    }

    pub(crate) fn ignoring(mut self, which: impl Fn(&Change) -> bool + Send + Sync + 'static) -> Mirror {
        self.ignores = Box::new(which);
        self
    }

    /// Refuses what must not wait for as long as the switch is on.
    pub(crate) fn refusing(mut self, refuses: &Arc<AtomicBool>) -> Mirror {
        self.refuses = refuses.clone();
        self
    }

    fn pass(&self) -> Pass {
        if self.two_pass { Pass::Unfinished } else { Pass::Done }
    }
}

impl IntervalSubscriber for Mirror {
    fn ignores(&self, change: &Change) -> bool {
        (self.ignores)(change)
    }

    fn invalidate(&self, change: &Change) -> Pass {
        assert_eq!(change.blocking(), Blocking::Allowed);
        self.log.add(&format!("{}+", self.name));
        (self.on_start)(change);
        self.pass()
    }

    fn try_invalidate(&self, change: &Change) -> Result<Pass, WouldBlock> {
        assert_eq!(change.blocking(), Blocking::Forbidden);
        let refuses = self.refuses.load(Ordering::SeqCst);
        self.log.add(&format!("{}{}", self.name, if refuses { '!' } else { '?' }));
        if refuses {
            return Err(WouldBlock);
        }
        (self.on_start)(change);
        Ok(self.pass())
    }

    fn finish(&self, change: &Change) {
        self.log.add(&format!("{}:", self.name));
        (self.on_finish)(change);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.log.add(&format!("{}x", self.name));
        (self.on_drop)();
    }
}

/// Something that another thread does.
pub(crate) struct Task<T> {
    done: Receiver<()>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Task<T> {
    pub(crate) fn new(run: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        let (is_done, done) = channel();
        let run = move || {
            let result = run();
            let _ = is_done.send(());
            result
        };
        Task { done, thread: std::thread::spawn(run) }
    }

    /// Whether it is not done soon.
    pub(crate) fn waits(&self) -> bool {
        self.done.recv_timeout(Duration::from_millis(40)) == Err(RecvTimeoutError::Timeout)
    }

    /// What has come of it; it must not take long.
    pub(crate) fn finish(self) -> T {
        let waited = self.done.recv_timeout(Duration::from_secs(60));
        assert_ne!(waited, Err(RecvTimeoutError::Timeout), "it waits for something");
        self.thread.join().unwrap()
    }
}

/// Two threads meet: one says that it is there and waits until it may go on.
pub(crate) struct Meeting {
    there: Mutex<Sender<()>>,
    may_go: Mutex<Receiver<()>>,
}

pub(crate) struct Gate {
    there: Receiver<()>,
    may_go: Sender<()>,
}

pub(crate) fn meeting() -> (Meeting, Gate) {
    let (is_there, there) = channel();
    let (may_go, goes) = channel();
    (Meeting { there: Mutex::new(is_there), may_go: Mutex::new(goes) }, Gate { there, may_go })
}

impl Meeting {
    pub(crate) fn stop(&self) {
        let _ = self.there.lock().unwrap().send(());
        let _ = self.may_go.lock().unwrap().recv();
    }
}

impl Gate {
    /// Waits until the other one is there.
    pub(crate) fn await_other(&self) {
        self.there.recv().unwrap();
    }

    pub(crate) fn let_go(&self) {
        self.may_go.send(()).unwrap();
    }
}

/// A change that another thread has open.
pub(crate) struct Elsewhere {
    gate: Gate,
    task: Task<()>,
}

impl Elsewhere {
    pub(crate) fn open(space: &AddressSpace, change: Change) -> Elsewhere {
        let (meeting, gate) = meeting();
        let space = space.clone();
        let task = Task::new(move || {
            let open = space.begin(change).unwrap();
            meeting.stop();
            open.end();
        });
        gate.await_other();
        Elsewhere { gate, task }
    }

    pub(crate) fn close(self) {
        self.gate.let_go();
        self.task.finish();
    }
}

/// A blocking change without an owner.
pub(crate) fn blocking(start: usize, end: usize) -> Change {
    Change::new(range(start, end), Event::Unmap, Blocking::Allowed)
}

pub(crate) fn range(start: usize, end: usize) -> Range {
    Range::new(start, end).unwrap()
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

/// For tests in which nobody goes on in what is abandoned, or which find out what happens if he does.
pub(crate) fn end_abandoned(
    space: &AddressSpace,
    caller: &Caller,
    gone: impl FnMut(usize) -> bool,
) -> Abandoned {
    // SAFETY: these tests' subscribers live as long as their spaces.
    unsafe { space.end_abandoned(caller, gone) }
}

/// As in a forked child.
pub(crate) fn forked(space: &AddressSpace) {
    // SAFETY: the only thread that knows this space.
    unsafe { space.forked() };
}
