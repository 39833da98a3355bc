//! Sums over processes.
//!
//! A process entry is read as it is: torn sums between its counters are possible while it runs, none
//! once it is gone. Nothing read here can make a sum panic or grow without bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mmu_notifier::Event;
use mmu_notifier_primary::Syscall;
use mmu_notifier_primary::session::{
    self, BUCKETS, EVENTS, Oracle, Process, Shard, StrictState, UNSEEN, UnseenReason,
};

use crate::check;
use crate::clock::Scale;
use crate::summary::{Calls, Events, Strict, Summary, Times, Unseen};

/// Kinds of unseen things that are told apart; a run has a handful.
const UNSEEN_KINDS: usize = 512;

// Every load here is Relaxed: counters are independent of each other, and those of a process that is
// gone were written before the kernel told us so.
fn get(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

fn add(sum: &mut u64, counter: &AtomicU64) {
    *sum = sum.saturating_add(get(counter));
}

/// What is summed up so far, in ticks.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    threads: u64,
    execs: u64,
    calls: [Calls; Syscall::ALL.len()],
    events: [Events; EVENTS],
    starts: Ticks,
    changes: Ticks,
    ends: Ticks,
    balance_starts: u64,
    balance_ends: u64,
    cut_short: u64,
    open: u64,
    abandoned: u64,
    refused: u64,
    announced_again: u64,
    put_off: crate::summary::PutOff,
    sites: [u64; 3],
    mappings_searched: u64,
    search_ticks: u64,
    own_calls: u64,
    own_bytes: u64,
    strict: Strict,
    unseen: BTreeMap<(u32, String, u32), Place>,
    unseen_more: u64,
    /// By what `Process::oracle` says.
    without_oracle: BTreeMap<u64, u64>,
}

/// What became of a process whose numbers are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It still runs: brackets may be open.
    Running,
    /// It came to its end in order: every bracket of its last thread is closed.
    Exited,
    /// It was killed, or another program took its place: open brackets got no end.
    CutShort,
}

#[derive(Clone, Debug)]
struct Ticks {
    sum: u64,
    max: u64,
    buckets: [u64; BUCKETS],
}

#[derive(Clone, Debug)]
struct Place {
    address: u64,
    processes: u64,
}

/// The few numbers of the live line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// System calls.
    pub calls: u64,
    /// Changes announced.
    pub changes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Refused starts.
    pub refused: u64,
}

impl Progress {
    /// Adds the counters of a process.
    pub fn add<'a>(&mut self, shards: impl Iterator<Item = &'a Shard>) {
        for shard in shards {
            shard.calls.iter().for_each(|call| add(&mut self.calls, &call.count));
            for event in &shard.events {
                add(&mut self.changes, &event.changes);
                add(&mut self.bytes, &event.bytes);
            }
            add(&mut self.refused, &shard.refused);
        }
    }
}

impl Totals {
    /// Adds what a process counted, in those of its shards that were touched.
    pub fn add<'a>(
        &mut self,
        process: &Process,
        shards: impl Iterator<Item = &'a Shard> + Clone,
        fate: Fate,
    ) {
        for shard in shards.clone() {
            self.add_shard(shard);
        }
        add(&mut self.threads, &process.threads);
        // The first thread of a program that was exec'ed was counted before, except for the first program.
        self.execs += u64::from(process.forked.load(Relaxed) == 0 && get(&process.threads) > 0);
        // Ends first: a bracket that opens and closes in between must not look open.
        let ends = shards.clone().map(|shard| get(&shard.balance_ends)).fold(0, u64::saturating_add);
        let starts = shards.map(|shard| get(&shard.balance_starts)).fold(0, u64::saturating_add);
        self.balance_starts = self.balance_starts.saturating_add(starts);
        self.balance_ends = self.balance_ends.saturating_add(ends);
        let unended = starts.saturating_sub(ends);
        match fate {
            Fate::Running => self.open = self.open.saturating_add(unended),
            Fate::CutShort => self.cut_short = self.cut_short.saturating_add(unended),
            // A start that a thread has jumped out of has not returned, and has no end.
            Fate::Exited => {
                let unfinished = unended.min(get(&process.unfinished));
                self.cut_short = self.cut_short.saturating_add(unfinished);
            }
        }
        add(&mut self.abandoned, &process.abandoned);
        let put_off = &process.put_off;
        add(&mut self.put_off.ranges, &put_off.ranges);
        add(&mut self.put_off.bytes, &put_off.bytes);
        add(&mut self.put_off.by_worker, &put_off.by_worker);
        add(&mut self.put_off.by_calls, &put_off.by_calls);
        add(&mut self.put_off.declined, &put_off.declined);
        for (sum, sites) in self.sites.iter_mut().zip(&process.sites) {
            add(sum, sites);
        }
        add(&mut self.mappings_searched, &process.mappings_searched);
        add(&mut self.search_ticks, &process.search_ticks);
        add(&mut self.own_calls, &process.own_calls);
        self.own_bytes = self.own_bytes.max(get(&process.own_bytes));
        self.add_unseen(process);
        let oracle = get(&process.oracle);
        // A process that never was ready has made nothing that could be judged.
        if Oracle::from_u64(oracle) != Oracle::InPlace && get(&process.ready) > 0 {
            *self.without_oracle.entry(oracle).or_default() += 1;
        }
    }

    /// Processes that sent no oracle: why, and how many.
    pub fn without_oracle(&self) -> BTreeMap<String, u64> {
        self.without_oracle.iter().map(|(oracle, count)| (oracle_words(*oracle), *count)).collect()
    }

    fn add_shard(&mut self, shard: &Shard) {
        for (sum, call) in self.calls.iter_mut().zip(&shard.calls) {
            add(&mut sum.count, &call.count);
            add(&mut sum.failed, &call.failed);
            add(&mut sum.bracketed, &call.bracketed);
        }
        for (sum, event) in self.events.iter_mut().zip(&shard.events) {
            add(&mut sum.changes, &event.changes);
            add(&mut sum.bytes, &event.bytes);
        }
        add(&mut self.refused, &shard.refused);
        add(&mut self.announced_again, &shard.announced_again);
        self.starts.add(&shard.starts);
        self.changes.add(&shard.changes);
        self.ends.add(&shard.ends);
    }

    fn add_unseen(&mut self, process: &Process) {
        let all = get(&process.unseen);
        let listed = all.min(UNSEEN as u64);
        // Most of what is not listed is about code, too.
        let more = all - listed;
        let strict = StrictState::from_u32(process.strict.load(Relaxed));
        match strict {
            StrictState::Off => {}
            StrictState::Asked => self.strict.asked += 1,
            StrictState::Needed => self.strict.needed += 1,
            StrictState::Refused => self.strict.refused += 1,
        }
        add(&mut self.strict.trapped, &process.trapped);
        let [rewritten, kept] = &process.hot;
        add(&mut self.strict.rewritten, rewritten);
        add(&mut self.strict.kept, kept);
        let armed = matches!(strict, StrictState::Asked | StrictState::Needed);
        let more_of = if armed { &mut self.strict.places } else { &mut self.unseen_more };
        *more_of = more_of.saturating_add(more);
        let mut mine = BTreeMap::new();
        for unseen in &process.unseen_list[..listed as usize] {
            let reason = unseen.reason.load(Relaxed);
            let kind = UnseenReason::from_u32(reason);
            if armed && kind.is_about_code() {
                self.strict.places += 1;
            } else if kind != UnseenReason::None {
                let key = (reason, path(&unseen.file), unseen.number.load(Relaxed));
                mine.entry(key).or_insert(get(&unseen.address));
            }
        }
        for (key, address) in mine {
            if let Some(place) = self.unseen.get_mut(&key) {
                place.processes += 1;
            } else if self.unseen.len() < UNSEEN_KINDS {
                self.unseen.insert(key, Place { address, processes: 1 });
            } else {
                self.unseen_more += 1;
            }
        }
    }

    /// The sums for the live line.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress { refused: self.refused, ..Progress::default() };
        for call in &self.calls {
            progress.calls = progress.calls.saturating_add(call.count);
        }
        for event in &self.events {
            progress.changes = progress.changes.saturating_add(event.changes);
            progress.bytes = progress.bytes.saturating_add(event.bytes);
        }
        progress
    }

    /// Writes the sums into a summary, in nanoseconds.
    pub fn fill(&self, summary: &mut Summary, scale: &Scale) {
        summary.threads = self.threads.saturating_sub(self.execs.saturating_sub(1));
        summary.calls = Syscall::ALL.iter().map(|call| (call.name(), self.calls[*call as usize])).collect();
        summary.events = Event::ALL
            .iter()
            .zip(self.events)
            .filter(|(_, sum)| *sum != Events::default())
            .map(|(event, sum)| (event.name(), sum))
            .collect();
        summary.starts = self.starts.times(scale);
        summary.changes = self.changes.times(scale);
        summary.ends = self.ends.times(scale);
        summary.balance_starts = self.balance_starts;
        summary.balance_ends = self.balance_ends;
        summary.cut_short = self.cut_short;
        summary.still_open = self.open;
        summary.abandoned = self.abandoned;
        summary.refused = self.refused;
        summary.announced_again = self.announced_again;
        summary.put_off = self.put_off;
        summary.sites = self.sites;
        summary.mappings_searched = self.mappings_searched;
        summary.search = std::time::Duration::from_nanos(scale.ns(self.search_ticks));
        summary.own_calls = self.own_calls;
        summary.own_bytes = self.own_bytes;
        summary.strict = self.strict;
        summary.unseen_more = self.unseen_more;
        summary.unseen = self
            .unseen
            .iter()
            .map(|((reason, file, number), place)| Unseen {
                reason: words(UnseenReason::from_u32(*reason)),
                file: file.clone(),
                call: call_name(*number),
                address: place.address,
                processes: place.processes,
            })
            .collect();
    }
}

impl Default for Ticks {
    fn default() -> Ticks {
        Ticks { sum: 0, max: 0, buckets: [0; BUCKETS] }
    }
}

impl Ticks {
    fn add(&mut self, histogram: &session::Histogram) {
        add(&mut self.sum, &histogram.sum);
        self.max = self.max.max(get(&histogram.max));
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            add(sum, bucket);
        }
    }

    fn times(&self, scale: &Scale) -> Times {
        let used = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        Times {
            count: self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count)),
            total_ns: scale.ns(self.sum),
            max_ns: scale.ns(self.max),
            buckets: used.map(|(n, count)| (scale.ns((2 << n) - 1), *count)).collect(),
        }
    }
}

/// A path out of the session, as text.
pub fn path(path: &session::Path) -> String {
    // Pairs with the Release of who wrote the bytes before their number.
    let len = path.len.load(std::sync::atomic::Ordering::Acquire).min(session::PATH as u64) as usize;
    let bytes: Vec<u8> = path.bytes[..len].iter().map(|byte| byte.load(Relaxed)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn call_name(number: u32) -> Option<String> {
    (number != u32::MAX).then(|| check::call_name(number.into()))
}

fn oracle_words(oracle: u64) -> String {
    let error = std::io::Error::from_raw_os_error((oracle >> 8) as i32);
    match Oracle::from_u64(oracle) {
        Oracle::None | Oracle::InPlace => "it did not say why".to_owned(),
        Oracle::NoDevice => format!("it could not open /dev/kvm: {error}"),
        Oracle::NotMade => format!("it could not make a virtual machine: {error}"),
        Oracle::NotSent => format!("it could not send its virtual machine: {error}"),
    }
}

fn words(reason: UnseenReason) -> &'static str {
    match reason {
        UnseenReason::None => "unknown",
        UnseenReason::Shape => "instructions of a shape that cannot be rewritten",
        UnseenReason::UnknownNumber => "system call with a number known only at run time",
        UnseenReason::NoFunction => "system call outside of any known function",
        UnseenReason::NoPool => "no room for a stub within reach",
        UnseenReason::NotWritable => "code that could not be written",
        UnseenReason::NoFile => "mapped file that could not be read",
        UnseenReason::Anonymous => "code made at run time",
        UnseenReason::TableFull => "a table was full",
        UnseenReason::Exec => "program started with an environment that could not be prepared",
        UnseenReason::ForeignPatch => "code already patched by somebody else",
        UnseenReason::ManyTraps => "strict mode ended in a thread: system calls of too many places",
        UnseenReason::NotTraced => {
            "program into which nothing can be preloaded, started by a process that mmun cannot trace"
        }
        UnseenReason::GainsRights => "program that gains rights, which it would lose if it were watched",
        UnseenReason::Deaf => {
            "thread that blocked SIGSYS when strict mode began, unseen until it unblocks it"
        }
        UnseenReason::Compat => "system calls of 32 bits (int $0x80), which are made and not announced",
        UnseenReason::NotPutIn => "program that has no room for what mmun puts in",
        UnseenReason::SmallStacks => "Go code, whose stacks are too small for the hook",
    }
}
