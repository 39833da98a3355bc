//! What a call that maps a file, or changes one, does for the others ([`crate::files`]).

// UNSAFETY: names another thread, to give it a change; ends what others have given to this one.
#![expect(unsafe_code)]

use mmu_notifier::{Blocking, Caller, Change, Event, Range, WouldBlock};

use crate::Syscall;
use crate::bracket::count_changes;
use crate::decode::{Changes, File, Maps, Needs, decode, maps, needs};
use crate::facts::Ranges;
use crate::files::{Entered, Key, Other};
use crate::gate::safe::{self, Errno, FileId, without_signals};
use crate::primary::Primary;
use crate::refused::{Attempts, Refusals};

/// Which file a call is about to change.
enum Changed {
    /// This one.
    File(FileId),
    /// Nobody can say.
    Any,
    /// None: the call will fail.
    None,
}

impl Primary {
    /// What a rare call is about to change. One that maps a file or changes one is on record afterwards.
    ///
    /// Behind [`end_abandoned`](Primary::end_abandoned).
    // Kept out of the frame in which subscribers are called: it may be large.
    #[inline(never)]
    pub(crate) fn rare_changes(
        &self,
        caller: &Caller,
        call: Syscall,
        args: &[usize; 6],
    ) -> (Changes, Option<Entered>) {
        let mut ranges = Ranges::new();
        let wanted = needs(call, args);
        if let Needs::FileRanges { .. } | Needs::Aliases(_) = wanted {
            return self.changes_of_file(caller, call, args, wanted, &mut ranges);
        }
        let entered = maps(call, args).map(|maps| {
            let key = match maps {
                Maps::File(descriptor) if self.files.key_wanted() => {
                    safe::fstat(descriptor as usize).map_or(Key::ANY, |file| Key::of(&file))
                }
                Maps::File(_) | Maps::Unknown => Key::ANY,
                Maps::Mapped => Key::MAPPED,
            };
            self.files.enter_mapping(caller, key)
        });
        (decode(call, args, &self.memory.find(wanted, &mut ranges)), entered)
    }

    fn changes_of_file(
        &self,
        caller: &Caller,
        call: Syscall,
        args: &[usize; 6],
        wanted: Needs,
        ranges: &mut Ranges,
    ) -> (Changes, Option<Entered>) {
        let file = changed(&wanted);
        let key = match &file {
            Changed::File(file) => Key::of(file),
            Changed::Any => Key::ANY,
            Changed::None => return (Changes::NONE, None),
        };
        let Some(entered) = self.files.enter_change(caller, key) else {
            // What everybody is told of nobody has to be shown.
            return (decode(call, args, &Default::default()), None);
        };
        // In this order: who is not seen any more has left behind what he has mapped.
        let mapping = self.files.who_maps(entered);
        let is_mapped = match &file {
            Changed::File(file) => self.memory.was_mapped(file),
            _ => true,
        };
        if !is_mapped {
            self.files.is_not_mapped(entered);
        }
        let is_moved = mapping.moves && is_mapped;
        let is_known = !mapping.file && !is_moved;
        let changes = match (wanted, file) {
            _ if !is_known => decode(call, args, &Default::default()),
            (Needs::FileRanges { .. }, Changed::File(_)) if !is_mapped => Changes::NONE,
            (Needs::FileRanges { from, to, .. }, Changed::File(file)) => {
                decode(call, args, &self.memory.find_in(&file, from..to, ranges))
            }
            (Needs::FileRanges { .. }, _) => decode(call, args, &Default::default()),
            (wanted, _) => decode(call, args, &self.memory.find(wanted, ranges)),
        };
        (changes, Some(entered))
    }

    /// Behind the starts of such a call: announces what it has to for others.
    ///
    /// # Errors
    ///
    /// If that is refused.
    pub(crate) fn announced_of_file(
        &self,
        caller: &Caller,
        call: Syscall,
        entered: Entered,
        changes: &Changes,
        blocking: Blocking,
    ) -> Result<(), WouldBlock> {
        if entered.changes() {
            if matches!(changes.as_slice(), [(Range::EVERYTHING, _)]) {
                self.files.is_everything(entered);
            }
            return Ok(());
        }
        // Switched off, nobody is told; and who switches it on waits for all that change files.
        if self.mode.is_off() {
            return Ok(());
        }
        let mut place = 0;
        while let Some(other) = self.files.find(entered, &mut place) {
            self.announce_for(caller, call, &other, blocking)?;
        }
        Ok(())
    }

    /// Announces that everything changes until another thread's call is done.
    #[cold]
    fn announce_for(
        &self,
        caller: &Caller,
        call: Syscall,
        other: &Other,
        blocking: Blocking,
    ) -> Result<(), WouldBlock> {
        let mut attempts = Attempts::new(blocking);
        let mut refusals = Refusals::default();
        let open = loop {
            match self.space.start(caller, Change::new(Range::EVERYTHING, Event::Clear, blocking)) {
                Ok(open) => break open,
                Err(WouldBlock) => refusals.refused += 1,
            }
            if !attempts.again(self) {
                return Err(WouldBlock);
            }
            refusals.again += 1;
        };
        let change = [(Range::EVERYTHING, Event::Clear)];
        if let Some(shard) = self.log.shard(caller.home()) {
            count_changes(shard, &change, refusals);
        }
        // SAFETY: not to act in its name; a change is given to it, which it ends where its own call at that place of its
        // stack ends, or is found to be gone.
        let to = unsafe { Caller::new(other.thread, other.home) }.with_stack(other.stack);
        if self.log.is_audited() {
            self.log.opened(&to, call, &change, self.log.now());
        }
        // Nothing may jump out in the middle.
        let mut is_his = false;
        without_signals(|| {
            self.space.hand_to(&open, &to);
            is_his = self.files.join(other);
        });
        if !is_his {
            self.space.end(caller, open);
        }
        Ok(())
    }

    /// Behind such a call, when its changes have been ended.
    pub(crate) fn leave_file(&self, caller: &Caller, entered: Option<Entered>) {
        if let Some(entered) = entered
            && self.files.leave(entered)
        {
            // SAFETY: the changes that were open at this place of the stack are ended; the rest is what others have given.
            unsafe { self.end_those(caller, |stack| stack == caller.stack()) };
        }
    }
}

fn changed(wanted: &Needs) -> Changed {
    const EPERM: Errno = Errno(1);
    const ENOSYS: Errno = Errno(38);
    let id = match wanted {
        Needs::FileRanges { file: File::Descriptor(descriptor), .. } => safe::fstat(*descriptor as usize),
        Needs::FileRanges { file: File::Path(path), .. } => safe::stat(*path),
        _ => return Changed::Any,
    };
    match id {
        Ok(file) => Changed::File(file),
        // Somebody forbids it to ask.
        Err(EPERM | ENOSYS) => Changed::Any,
        Err(_) => Changed::None,
    }
}
