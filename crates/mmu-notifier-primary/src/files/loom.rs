//! Every interleaving of a call that maps a file and one that changes it, under loom's memory model: `ci/loom.sh`.

// UNSAFETY: makes up callers.
#![expect(unsafe_code)]

use ::loom::sync::Arc;
use ::loom::thread;

use super::*;

const FILE: Key = Key(100);

fn caller(thread: u64) -> Caller {
    // SAFETY: nobody takes it for more than a number.
    unsafe { Caller::new(thread, thread as usize) }.with_stack(0x1000)
}

/// What the calls do. Nothing here orders anything: only the record does.
struct Process {
    files: Files,
    /// The file is mapped.
    mapped: AtomicBool,
    /// The changing call has announced everything.
    announced: AtomicBool,
    /// What it changes is changed.
    changed: AtomicBool,
    /// What the mapping call has handed over.
    handed: AtomicBool,
}

impl Process {
    /// Whether it was announced where the file is mapped when this has mapped it, or that is changed already.
    fn map(&self) -> bool {
        let entered = self.files.enter_mapping(&caller(0), FILE);
        let mut place = 0;
        let mut joined = false;
        while let Some(other) = self.files.find(entered, &mut place) {
            self.handed.store(true, Ordering::Relaxed);
            joined |= self.files.join(&other);
        }
        let over = self.announced.load(Ordering::Relaxed) || self.changed.load(Ordering::Relaxed);
        self.mapped.store(true, Ordering::Relaxed);
        assert!(!self.files.leave(entered));
        joined || over
    }

    /// Whether it announces the new mapping; and whether it ends what was handed over.
    fn change(&self) -> (bool, bool) {
        let entered = self.files.enter_change(&caller(1), FILE).unwrap();
        let maps = self.files.who_maps(entered).file;
        let mapped = self.mapped.load(Ordering::Relaxed);
        if maps {
            self.announced.store(true, Ordering::Relaxed);
            self.files.is_everything(entered);
        }
        self.changed.store(true, Ordering::Relaxed);
        let has_guests = self.files.leave(entered);
        assert!(!has_guests || self.handed.load(Ordering::Relaxed), "what was handed over is found");
        (maps || mapped, has_guests)
    }
}

#[test]
fn one_of_them_sees_the_other() {
    ::loom::model(|| {
        let process = Arc::new(Process {
            files: Files::new(),
            mapped: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            handed: AtomicBool::new(false),
        });
        let of_mapping = process.clone();
        let mapping = thread::spawn(move || of_mapping.map());
        let (announced, _) = process.change();
        let seen = mapping.join().unwrap();
        assert!(announced || seen, "neither has seen the other");
        assert!(!process.files.is_changing());
    });
}
