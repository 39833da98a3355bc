//! One thread an operation: so that an operation may wait, and is seen to.
//!
//! Who waits is found out by the core's own report of it ([`Options::on_stall`](mmu_notifier::Options)), not by the
//! clock: an operation is over when it says so, and waits when the core says so. As nothing else runs meanwhile, both
//! come the same every time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use mmu_notifier::{Caller, OpenChange, Stall, Ticket, Waiting};

/// Whom an operation is made by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) thread: u64,
    pub(crate) home: usize,
}

std::thread_local! {
    static NAME: Cell<Name> = const { Cell::new(Name { thread: 9, home: 0 }) };
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Who is calling: what the core asks.
pub(crate) fn caller() -> Caller {
    let name = NAME.get();
    // SAFETY: operations that have the same name run one after the other, so they could be those of one thread.
    unsafe { Caller::new(name.thread, name.home) }
}

/// Whether this thread reads an interval.
pub(crate) fn is_reading() -> bool {
    READING.get()
}

pub(crate) fn reading<R>(read: impl FnOnce() -> R) -> R {
    READING.set(true);
    let result = read();
    READING.set(false);
    result
}

/// What an operation of the core came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Nothing,
    Open(OpenChange),
    Refused,
    Failed,
    Truth(bool),
    /// A share of this subscriber; whether it was made for this.
    Got(u64, bool),
    Ticket(Ticket),
    Panicked(String),
}

#[derive(Debug)]
pub(crate) enum Progress {
    Done(Answer),
    Waits(Waiting),
}

enum Message {
    Done(u64, Answer),
    Stalled { thread: u64, waiting: Waiting, epoch: u64 },
}

/// The threads of one run.
pub(crate) struct Threads {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// Raised before and after each operation.
    epoch: Arc<AtomicU64>,
    done: BTreeMap<u64, Answer>,
    /// Reports of the epoch that is running, by thread.
    reports: BTreeMap<u64, (Waiting, u32)>,
}

/// Reports of one who may have to wait: the first may have been on its way.
pub(crate) const TWO: u32 = 2;
/// Reports of one who does not have to wait: another thread that runs may just have been put to sleep by the system.
pub(crate) const MANY: u32 = 1000;
/// Longer than anything here takes.
const FOR_EVER: Duration = Duration::from_secs(60);

impl Threads {
    pub(crate) fn new() -> Threads {
        let (sender, receiver) = channel();
        let (epoch, done, reports) = Default::default();
        Threads { sender, receiver, epoch, done, reports }
    }

    /// What the core is to do with reports.
    pub(crate) fn on_stall(&self) -> Box<dyn Fn(&Stall) + Send + Sync> {
        let (sender, epoch) = (self.sender.clone(), self.epoch.clone());
        Box::new(move |stall| {
            let epoch = epoch.load(Ordering::SeqCst);
            // Nobody listens any more when the run is over.
            let _ = sender.send(Message::Stalled { thread: stall.thread, waiting: stall.waiting, epoch });
        })
    }

    /// Runs an operation until it is over or waits; in the second case it goes on by itself.
    pub(crate) fn run(
        &mut self,
        task: u64,
        name: Name,
        work: impl FnOnce() -> Answer + Send + 'static,
    ) -> Progress {
        self.next_epoch();
        let sender = self.sender.clone();
        thread::spawn(move || {
            NAME.set(name);
            let answer = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Answer::Panicked(text.unwrap_or_default())
            });
            let _ = sender.send(Message::Done(task, answer));
        });
        let progress = self.wait_for(task, name.thread, 1);
        self.next_epoch();
        progress
    }

    /// Whether an operation that waited has gone on, or waits for so many reports from now on.
    pub(crate) fn look(&mut self, task: u64, name: Name, reports: u32) -> Progress {
        self.reports.remove(&name.thread);
        self.wait_for(task, name.thread, reports)
    }

    /// The same without waiting for an answer: something only if it has gone on.
    pub(crate) fn glance(&mut self, task: u64) -> Option<Answer> {
        while let Ok(message) = self.receiver.try_recv() {
            self.note(message);
        }
        self.done.remove(&task)
    }

    fn wait_for(&mut self, task: u64, thread: u64, reports: u32) -> Progress {
        loop {
            if let Some(answer) = self.done.remove(&task) {
                return Progress::Done(answer);
            }
            if let Some((waiting, count)) = self.reports.get(&thread)
                && *count >= reports
            {
                return Progress::Waits(*waiting);
            }
            let message = self.receiver.recv_timeout(FOR_EVER);
            self.note(message.unwrap_or_else(|_| panic!("operation {task} hangs without a report")));
        }
    }

    fn note(&mut self, message: Message) {
        match message {
            Message::Done(task, answer) => drop(self.done.insert(task, answer)),
            Message::Stalled { thread, waiting, epoch } => {
                if epoch == self.epoch.load(Ordering::SeqCst) {
                    self.reports.entry(thread).or_insert((waiting, 0)).1 += 1;
                }
            }
        }
    }

    fn next_epoch(&mut self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.reports.clear();
    }
}
