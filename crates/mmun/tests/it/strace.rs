//! The truth: which memory system calls `strace` saw, counted from its log.
//!
//! `strace` stands around `mmun`, so it sees `mmun` as well. What counts is what a *ready* thread
//! calls: one that has made the marker call `munmap(0x6d6d756e0000, 0)`, or was made by a ready one.
//! A successful `exec` ends that until the next marker.
//!
//! A child's first calls often stand in the log before its parent's `clone` returns and tells the
//! child's id, so the log is read twice: for births, then for calls.

use std::collections::{BTreeMap, HashMap};

/// The calls that are compared, as `strace` spells them.
pub(crate) const CALLS: [&str; 21] = [
    "mmap",
    "munmap",
    "mremap",
    "brk",
    "madvise",
    "process_madvise",
    "mprotect",
    "pkey_mprotect",
    "shmat",
    "shmdt",
    "remap_file_pages",
    "ftruncate",
    "truncate",
    "fallocate",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "execve",
    "execveat",
    "exit_group",
];

/// The marker's arguments.
const MARKER: &str = "0x6d6d756e0000, 0";

/// The options of `strace` that give the log that [`count`] reads. `exit` is there to know which
/// threads ended by themselves.
pub(crate) fn options() -> Vec<String> {
    let calls = CALLS.join(",");
    ["-f", "-q", "-e", &format!("trace={calls},exit"), "-e", "signal=none"].map(str::to_owned).into()
}

/// What was seen of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Calls by ready threads, restarts by the kernel not counted again.
    pub(crate) count: u64,
    /// Those that returned an error.
    pub(crate) failed: u64,
    /// Those that never returned because the thread was killed inside.
    pub(crate) unreturned: u64,
}

/// What was seen of a whole run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// By call; every call has an entry.
    pub(crate) calls: BTreeMap<&'static str, Seen>,
    /// Marker calls: programs that began to count.
    pub(crate) markers: u64,
    /// `brk` that did not move the break as asked. It has no error return, so `failed` leaves them out.
    pub(crate) brk_refused: u64,
    /// Ready threads that were killed by a signal, or by an `exit_group` or `exec` of another thread:
    /// one whose last call may have been counted and not made, or made and not counted.
    pub(crate) threads_cut: u64,
}

/// How a call came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    Value(u64),
    Error,
    /// The kernel makes the call again, whatever happens in between.
    Restarted,
    /// The kernel makes the call again unless a signal handler makes it fail.
    MayRestart,
    /// Not at all.
    Never,
}

/// One line without its thread id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    /// A call from start to return.
    Whole { name: &'a str, args: &'a str, returned: Return },
    /// A call that has begun.
    Begun { name: &'a str, args: &'a str },
    /// A call that has begun, in a thread that now takes its process's id: `exec` beside the first thread.
    BegunAndRenamed { name: &'a str, id: u32 },
    /// The rest of a call.
    Resumed { name: &'a str, returned: Return },
    /// The first thread of a process was replaced by the one that made an `exec`.
    Superseded,
    /// A thread ended.
    Gone,
    /// Nothing that matters.
    Other,
}

/// Counts the calls in the log that `strace -o` wrote.
///
/// # Errors
///
/// The first line that could not be understood.
pub(crate) fn count(log: &str) -> Result<Log, String> {
    let mut lines = Vec::new();
    for (index, text) in log.lines().enumerate() {
        let parsed = split_id(text).and_then(|(id, rest)| Some((id, parse(rest)?)));
        lines.push(parsed.ok_or_else(|| format!("line {} is not understood: {text}", index + 1))?);
    }
    Ok(Reader::new(&lines).read(&lines))
}

/// `1234  munmap(...` or `[pid  1234] munmap(...`.
fn split_id(line: &str) -> Option<(u32, &str)> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix("[pid") {
        let (id, rest) = rest.split_once(']')?;
        return Some((id.trim().parse().ok()?, rest.trim()));
    }
    let (id, rest) = line.split_once(char::is_whitespace)?;
    Some((id.parse().ok()?, rest.trim()))
}

fn parse(line: &str) -> Option<Line<'_>> {
    if line.starts_with("+++ superseded by execve") {
        return Some(Line::Superseded);
    }
    if line.starts_with("+++ exited with") || line.starts_with("+++ killed by") {
        return Some(Line::Gone);
    }
    if line.starts_with("--- ") {
        return Some(Line::Other);
    }
    if let Some(rest) = line.strip_prefix("<... ") {
        let (name, rest) = rest.split_once(" resumed>")?;
        return Some(Line::Resumed { name, returned: parse_return(rest)? });
    }
    let (name, rest) = line.split_once('(')?;
    if name.is_empty()
        || !name.bytes().all(|byte| byte == b'?' || byte == b'_' || byte.is_ascii_alphanumeric())
    {
        return None;
    }
    if let Some(args) = rest.strip_suffix("<unfinished ...>") {
        return Some(Line::Begun { name, args: args.trim() });
    }
    if let Some((_, id)) = rest.strip_suffix(" ...>").and_then(|rest| rest.rsplit_once("<pid changed to ")) {
        return Some(Line::BegunAndRenamed { name, id: id.parse().ok()? });
    }
    let (args, _) = rest.rsplit_once(" = ")?;
    Some(Line::Whole { name, args: args.trim_end().strip_suffix(')')?, returned: parse_return(rest)? })
}

/// The part behind the last ` = `.
fn parse_return(rest: &str) -> Option<Return> {
    let (_, returned) = rest.rsplit_once("= ")?;
    if returned.starts_with('?') {
        return Some(if returned.contains("ERESTARTNOINTR") {
            Return::Restarted
        } else if returned.contains("ERESTART") {
            Return::MayRestart
        } else {
            Return::Never
        });
    }
    let word = returned.split_whitespace().next()?;
    if word.starts_with('-') {
        return Some(Return::Error);
    }
    let value = match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    value.ok().map(Return::Value)
}

fn makes_thread(name: &str) -> bool {
    matches!(name, "fork" | "vfork" | "clone" | "clone3")
}

/// A call that has begun.
#[derive(Clone, Copy)]
struct Pending<'a> {
    name: &'a str,
    args: &'a str,
    /// It is in the count.
    counted: bool,
}

#[derive(Clone, Copy, Default)]
struct Thread<'a> {
    ready: bool,
    pending: Option<Pending<'a>>,
    /// It called `exit` or `exit_group`.
    leaving: bool,
    /// A call that came back as [`Return::MayRestart`].
    may_restart: Option<&'a str>,
}

struct Reader<'a> {
    /// By child: at which lines the calls that made it begin.
    births: HashMap<u32, Vec<usize>>,
    /// Whether the caller was ready, by the line of the call that makes a child.
    ready_at: HashMap<usize, bool>,
    threads: HashMap<u32, Thread<'a>>,
    log: Log,
}

impl<'a> Reader<'a> {
    /// First reading: who is born where.
    fn new(lines: &[(u32, Line<'a>)]) -> Reader<'a> {
        let mut births: HashMap<u32, Vec<usize>> = HashMap::new();
        let mut begun: HashMap<u32, usize> = HashMap::new();
        for (index, &(id, line)) in lines.iter().enumerate() {
            let (at, name, returned) = match line {
                Line::Begun { .. } => {
                    begun.insert(id, index);
                    continue;
                }
                Line::Whole { name, returned, .. } => (index, name, returned),
                Line::Resumed { name, returned } => (begun.remove(&id).unwrap_or(index), name, returned),
                _ => continue,
            };
            if let (true, Return::Value(child)) = (makes_thread(name), returned) {
                births.entry(child as u32).or_default().push(at);
            }
        }
        let calls = CALLS.into_iter().map(|name| (name, Seen::default())).collect();
        let log = Log { calls, ..Log::default() };
        Reader { births, ready_at: HashMap::new(), threads: HashMap::new(), log }
    }

    /// Second reading: what the ready ones call.
    fn read(mut self, lines: &[(u32, Line<'a>)]) -> Log {
        for (index, &(id, line)) in lines.iter().enumerate() {
            self.meet(id, index);
            match line {
                Line::Whole { name, args, returned } => {
                    self.begin(id, index, name, args);
                    self.finish(id, returned);
                }
                Line::Begun { name, args } => self.begin(id, index, name, args),
                Line::BegunAndRenamed { name, id: new } => {
                    self.begin(id, index, name, "");
                    let caller = self.threads.remove(&id).unwrap_or_default();
                    // The line `superseded` of the thread that had this id until now comes next.
                    if let Some(first) = self.threads.insert(new, caller) {
                        self.cut(first);
                    }
                }
                Line::Resumed { returned, .. } => self.finish(id, returned),
                Line::Gone => {
                    let thread = self.threads.remove(&id).unwrap_or_default();
                    self.cut(thread);
                }
                Line::Superseded | Line::Other => {}
            }
        }
        for thread in std::mem::take(&mut self.threads).into_values() {
            self.cut(thread);
        }
        self.log
    }

    /// Makes the entry of a thread that is seen for the first time.
    fn meet(&mut self, id: u32, index: usize) {
        if self.threads.contains_key(&id) {
            return;
        }
        let born = self.births.get(&id).and_then(|at| at.iter().rev().find(|&&at| at < index));
        let ready = match born {
            Some(at) => self.ready_at.get(at).copied().unwrap_or(false),
            // Nobody's `clone` returned this one: the parent was killed inside. Or it is the very first.
            None => self.threads.values().any(|thread| {
                thread.ready && thread.pending.is_some_and(|pending| makes_thread(pending.name))
            }),
        };
        self.threads.insert(id, Thread { ready, ..Thread::default() });
    }

    fn begin(&mut self, id: u32, index: usize, name: &'a str, args: &'a str) {
        let thread = self.threads.entry(id).or_default();
        if makes_thread(name) {
            self.ready_at.insert(index, thread.ready);
        }
        let again = thread.may_restart.take();
        if let (Some(failed), true) = (again.filter(|&before| before != name), thread.ready)
            && let Some(seen) = self.log.calls.get_mut(failed)
        {
            seen.failed += 1;
        }
        let marker = name == "munmap" && args == MARKER;
        let counted = thread.ready && !marker;
        thread.pending = Some(Pending { name, args, counted });
        thread.leaving |= matches!(name, "exit" | "exit_group");
        if marker {
            thread.ready = true;
            self.log.markers += 1;
        }
        if counted
            && again != Some(name)
            && let Some(seen) = self.log.calls.get_mut(name)
        {
            seen.count += 1;
        }
    }

    fn finish(&mut self, id: u32, returned: Return) {
        let thread = self.threads.entry(id).or_default();
        let Some(Pending { name, args, counted }) = thread.pending.take() else { return };
        if matches!(name, "execve" | "execveat") && returned == Return::Value(0) {
            thread.ready = false;
        }
        if !counted {
            return;
        }
        let Some(seen) = self.log.calls.get_mut(name) else { return };
        match returned {
            Return::Value(value) => {
                let wanted = args.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
                if name == "brk" && wanted.is_some_and(|wanted| wanted != value) {
                    self.log.brk_refused += 1;
                }
            }
            Return::Error => seen.failed += 1,
            Return::Restarted => seen.count -= 1,
            Return::MayRestart => thread.may_restart = Some(name),
            Return::Never if name == "exit_group" => {}
            Return::Never => seen.unreturned += 1,
        }
    }

    /// A thread is no more.
    fn cut(&mut self, thread: Thread<'a>) {
        if !thread.ready {
            return;
        }
        if !thread.leaving {
            self.log.threads_cut += 1;
        }
        if let Some(Pending { name, counted: true, .. }) = thread.pending
            && name != "exit_group"
            && let Some(seen) = self.log.calls.get_mut(name)
        {
            seen.unreturned += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was seen of the calls that were made at all.
    fn counts(log: &str) -> Vec<(&'static str, u64, u64, u64)> {
        let log = count(log).unwrap();
        let made = log.calls.into_iter().filter(|(_, seen)| *seen != Seen::default());
        made.map(|(name, seen)| (name, seen.count, seen.failed, seen.unreturned)).collect()
    }

    const READY: &str = "10  munmap(0x6d6d756e0000, 0)     = -1 EINVAL (Invalid argument)\n";

    #[test]
    fn nothing_counts_before_the_marker() {
        let log = "10  execve(\"./v\", [\"./v\"], 0x7ffd1a39a380 /* 35 vars */) = 0\n\
                   10  brk(NULL)                         = 0x5602167d7000\n\
                   10  munmap(0x7f3809b4f000, 39347)     = 0\n";
        assert_eq!(counts(log), []);
    }

    #[test]
    fn the_marker_itself_does_not_count() {
        assert_eq!(counts(READY), []);
        assert_eq!(count(READY).unwrap().markers, 1);
    }

    #[test]
    fn a_marker_in_two_pieces_is_one() {
        let log = "10  munmap(0x6d6d756e0000, 0 <unfinished ...>\n\
                   11  brk(NULL)                         = 0x5602167d7000\n\
                   10  <... munmap resumed>)             = -1 EINVAL (Invalid argument)\n\
                   10  munmap(0x1000, 4096)              = 0\n";
        assert_eq!(counts(log), [("munmap", 1, 0, 0)]);
    }

    #[test]
    fn calls_and_failures_count() {
        let log = READY.to_owned()
            + "10  munmap(0x1000, 4096)              = 0\n\
               10  munmap(0x1001, 4096)              = -1 EINVAL (Invalid argument)\n\
               10  mmap(NULL, 8392704, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK, -1, 0) = 0x7f3809169000\n\
               10  madvise(0x7f0000000000, 4096, 0x63 /* MADV_??? */) = -1 EINVAL (Invalid argument)\n";
        assert_eq!(counts(&log), [("madvise", 1, 1, 0), ("mmap", 1, 0, 0), ("munmap", 2, 1, 0)]);
    }

    #[test]
    fn a_path_that_looks_like_a_return_does_not_mislead() {
        let log = READY.to_owned()
            + "10  truncate(\"a) = 0\", 5)           = -1 ENOENT (No such file or directory)\n\
               10  execve(\"/a b) = 3\", [\"x(\", \"= -1\"], 0x7ffe0 /* 1 var */) = -1 EACCES (Permission denied)\n";
        assert_eq!(counts(&log), [("execve", 1, 1, 0), ("truncate", 1, 1, 0)]);
    }

    #[test]
    fn interrupted_lines_are_joined() {
        let log = READY.to_owned()
            + "10  clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f3809169000} => {parent_tid=[11]}, 88) = 11\n\
               10  munmap(0x1000, 4096 <unfinished ...>\n\
               11  madvise(0x1000, 4096, MADV_DONTNEED <unfinished ...>\n\
               10  <... munmap resumed>)             = -1 EINVAL (Invalid argument)\n\
               11  <... madvise resumed>)            = 0\n";
        assert_eq!(counts(&log), [("clone3", 1, 0, 0), ("madvise", 1, 0, 0), ("munmap", 1, 1, 0)]);
    }

    #[test]
    fn a_child_is_ready_before_its_birth_is_told() {
        let log = READY.to_owned()
            + "10  clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD <unfinished ...>\n\
               12  munmap(0x1000, 4096)              = 0\n\
               10  <... clone resumed>, child_tidptr=0x7f380996aa10) = 12\n\
               12  exit_group(0)                     = ?\n\
               12  +++ exited with 0 +++\n";
        assert_eq!(counts(&log), [("clone", 1, 0, 0), ("exit_group", 1, 0, 0), ("munmap", 1, 0, 0)]);
    }

    #[test]
    fn clone3_tells_its_child_when_it_resumes() {
        let log = READY.to_owned()
            + "10  clone3({flags=CLONE_VM, stack_size=0x7fff80} <unfinished ...>\n\
               11  munmap(0x1000, 4096 <unfinished ...>\n\
               10  <... clone3 resumed> => {parent_tid=[11]}, 88) = 11\n\
               11  <... munmap resumed>)             = 0\n";
        assert_eq!(counts(&log), [("clone3", 1, 0, 0), ("munmap", 1, 0, 0)]);
    }

    #[test]
    fn a_childs_child_is_ready_too() {
        let log = READY.to_owned()
            + "10  fork( <unfinished ...>\n\
               11  fork( <unfinished ...>\n\
               12  munmap(0x1000, 4096)              = 0\n\
               11  <... fork resumed>)               = 12\n\
               10  <... fork resumed>)               = 11\n";
        assert_eq!(counts(&log), [("fork", 2, 0, 0), ("munmap", 1, 0, 0)]);
    }

    #[test]
    fn what_comes_from_elsewhere_does_not_count() {
        let log = "5  clone3({flags=CLONE_VM|CLONE_VFORK} => {}, 88) = 10\n\
                   5  munmap(0x1000, 4096)              = 0\n"
            .to_owned()
            + READY
            + "5  fork()                            = 6\n\
               6  munmap(0x1000, 4096)              = 0\n\
               7  munmap(0x1000, 4096)              = 0\n\
               10  munmap(0x1000, 4096)              = 0\n";
        assert_eq!(counts(&log), [("munmap", 1, 0, 0)]);
    }

    #[test]
    fn exec_ends_counting_until_the_next_marker() {
        let log = READY.to_owned()
            + "10  execve(\"/bin/true\", [\"true\"], 0x7ffe /* 35 vars */) = 0\n\
               10  munmap(0x7f174c505000, 39347)     = 0\n\
               10  munmap(0x6d6d756e0000, 0)     = -1 EINVAL (Invalid argument)\n\
               10  brk(NULL)                         = 0x5602167d7000\n";
        assert_eq!(counts(&log), [("brk", 1, 0, 0), ("execve", 1, 0, 0)]);
        assert_eq!(count(&log).unwrap().markers, 2);
    }

    #[test]
    fn a_failed_exec_goes_on() {
        let log = READY.to_owned()
            + "10  execve(\"/no\", [\"no\"], 0x7ffe /* 35 vars */) = -1 ENOENT (No such file or directory)\n\
               10  execveat(3, \"\", [\"no\"], NULL, AT_EMPTY_PATH <unfinished ...>\n\
               10  <... execveat resumed>)           = -1 EACCES (Permission denied)\n\
               10  brk(NULL)                         = 0x5602167d7000\n";
        assert_eq!(counts(&log), [("brk", 1, 0, 0), ("execve", 1, 1, 0), ("execveat", 1, 1, 0)]);
    }

    #[test]
    fn a_vfork_child_counts_until_its_exec() {
        let log = READY.to_owned()
            + "10  vfork( <unfinished ...>\n\
               13  mprotect(0x1000, 4096, PROT_READ) = 0\n\
               13  execve(\"/bin/true\", [\"true\"], 0x7fffca11aa38 /* 35 vars */ <unfinished ...>\n\
               10  <... vfork resumed>)              = 13\n\
               13  <... execve resumed>)             = 0\n\
               13  brk(NULL)                         = 0x5616bc836000\n\
               13  exit_group(0)                     = ?\n\
               13  +++ exited with 0 +++\n\
               10  exit_group(3)                     = ?\n\
               10  +++ exited with 3 +++\n";
        let made = [("execve", 1, 0, 0), ("exit_group", 1, 0, 0), ("mprotect", 1, 0, 0), ("vfork", 1, 0, 0)];
        assert_eq!(counts(&log), made);
        assert_eq!(count(&log).unwrap().threads_cut, 0);
    }

    #[test]
    fn a_thread_that_execs_takes_over_its_process() {
        let log = READY.to_owned()
            + "10  clone3({flags=CLONE_VM|CLONE_THREAD} => {parent_tid=[11]}, 88) = 11\n\
               10  munmap(0x1000, 4096 <unfinished ...>\n\
               11  execve(\"/bin/true\", [\"true\"], 0x7fff0ebc30b8 /* 35 vars */ <pid changed to 10 ...>\n\
               10  +++ superseded by execve in pid 11 +++\n\
               10  <... execve resumed>)             = 0\n\
               10  brk(NULL)                         = 0x5600c9f3e000\n\
               10  exit_group(0)                     = ?\n\
               10  +++ exited with 0 +++\n";
        assert_eq!(counts(&log), [("clone3", 1, 0, 0), ("execve", 1, 0, 0), ("munmap", 1, 0, 1)]);
        assert_eq!(count(&log).unwrap().threads_cut, 1);
    }

    #[test]
    fn threads_killed_inside_a_call_are_told() {
        let log = READY.to_owned()
            + "10  clone3({flags=CLONE_VM|CLONE_THREAD} => {parent_tid=[11]}, 88) = 11\n\
               10  clone3({flags=CLONE_VM|CLONE_THREAD} => {parent_tid=[12]}, 88) = 12\n\
               11  munmap(0x1000, 4096 <unfinished ...>\n\
               12  madvise(0x1000, 4096, MADV_DONTNEED <unfinished ...>\n\
               10  exit_group(0 <unfinished ...>\n\
               11  <... munmap resumed>)             = ?\n\
               10  <... exit_group resumed>)         = ?\n\
               12  <... madvise resumed> <unfinished ...>) = ?\n\
               11  +++ exited with 0 +++\n\
               12  +++ exited with 0 +++\n\
               10  +++ exited with 0 +++\n";
        let made = [("clone3", 2, 0, 0), ("exit_group", 1, 0, 0), ("madvise", 1, 0, 1), ("munmap", 1, 0, 1)];
        assert_eq!(counts(&log), made);
        assert_eq!(count(&log).unwrap().threads_cut, 2);
    }

    #[test]
    fn a_kill_leaves_an_unfinished_call() {
        let log = READY.to_owned()
            + "10  munmap(0x1000, 4096 <unfinished ...>\n\
               10  +++ killed by SIGKILL +++\n";
        assert_eq!(counts(&log), [("munmap", 1, 0, 1)]);
        let cut_off = READY.to_owned() + "10  munmap(0x1000, 4096 <unfinished ...>\n";
        assert_eq!(counts(&cut_off), [("munmap", 1, 0, 1)]);
        let dumped = READY.to_owned() + "10  +++ killed by SIGSEGV (core dumped) +++\n";
        assert_eq!(counts(&dumped), []);
        assert_eq!(count(&dumped).unwrap().threads_cut, 1);
    }

    #[test]
    fn a_thread_that_exits_is_not_cut() {
        let log = READY.to_owned() + "10  exit(0)                           = ?\n10  +++ exited with 0 +++\n";
        assert_eq!(counts(&log), []);
        assert_eq!(count(&log).unwrap().threads_cut, 0);
    }

    #[test]
    fn a_call_that_the_kernel_restarts_counts_once() {
        let log = READY.to_owned()
            + "10  clone(child_stack=NULL, flags=SIGCHLD, child_tidptr=0x7f4d2b363a10) = ? ERESTARTNOINTR (To be restarted)\n\
               10  munmap(0x1000, 4096)              = 0\n\
               10  clone(child_stack=NULL, flags=SIGCHLD, child_tidptr=0x7f4d2b363a10) = 14\n";
        assert_eq!(counts(&log), [("clone", 1, 0, 0), ("munmap", 1, 0, 0)]);
    }

    #[test]
    fn a_call_that_may_be_restarted_counts_once_or_failed() {
        let begun = "10  fallocate(3, 0, 0, 4096) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)\n";
        let again = READY.to_owned() + begun + "10  fallocate(3, 0, 0, 4096)          = 0\n";
        assert_eq!(counts(&again), [("fallocate", 1, 0, 0)]);
        let not = READY.to_owned() + begun + "10  brk(NULL)                         = 0x5600c9f3e000\n";
        assert_eq!(counts(&not), [("brk", 1, 0, 0), ("fallocate", 1, 1, 0)]);
    }

    #[test]
    fn a_break_that_does_not_move_is_told_apart() {
        let log = READY.to_owned()
            + "10  brk(NULL)                         = 0x5600c9f3e000\n\
               10  brk(0x5600c9f5f000)               = 0x5600c9f5f000\n\
               10  brk(0x7f00c9f5f000)               = 0x5600c9f5f000\n";
        assert_eq!(counts(&log), [("brk", 3, 0, 0)]);
        assert_eq!(count(&log).unwrap().brk_refused, 1);
    }

    #[test]
    fn an_id_that_is_used_again_is_somebody_else() {
        let log = "5  fork()                            = 10\n".to_owned()
            + READY
            + "10  fork()                            = 11\n\
               11  exit_group(0)                     = ?\n\
               11  +++ exited with 0 +++\n\
               5  fork()                            = 11\n\
               11  munmap(0x1000, 4096)              = 0\n";
        assert_eq!(counts(&log), [("exit_group", 1, 0, 0), ("fork", 1, 0, 0)]);
    }

    #[test]
    fn other_calls_and_signals_are_passed_over() {
        let log = READY.to_owned()
            + "10  mlock(0x1000, 4096)               = 0\n\
               10  --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=11} ---\n\
               10  ???( <unfinished ...>\n\
               10  <... ??? resumed>)                = ?\n\
               [pid    10] munmap(0x1000, 4096)              = 0\n";
        assert_eq!(counts(&log), [("munmap", 1, 0, 0)]);
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error() {
        for odd in ["strace: Process 10 attached", "10  munmap(0x1000, 4096)", "10  mun map(1) = 0", "10", ""]
        {
            let error = count(&format!("{READY}{odd}\n")).unwrap_err();
            assert!(error.starts_with("line 2 is not understood"), "{error}");
        }
    }
}
