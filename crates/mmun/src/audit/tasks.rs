//! Which task has which address space, from what the kernel says of their beginnings and ends.

use std::collections::HashMap;

/// An address space, as long as a task has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(u64);

/// A task that descends from the program.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Its process.
    pub process: u32,
    /// Its address space.
    pub space: Space,
    /// The thread whose memory, stack and identity it has borrowed (`vfork`, `posix_spawn`), which waits for it.
    pub borrowed_from: Option<u32>,
}

/// All tasks that descend from the program.
#[derive(Debug)]
pub struct Tasks {
    /// This process, whose child the program is.
    watcher: u32,
    tasks: HashMap<u32, Task>,
    /// How many tasks have it.
    users: HashMap<Space, usize>,
    next: u64,
}

impl Tasks {
    const CLONE_VM: u64 = 0x100;
    const CLONE_VFORK: u64 = 0x4000;
    const CLONE_THREAD: u64 = 0x1_0000;

    /// None yet.
    pub fn new(watcher: u32) -> Tasks {
        Tasks { watcher, tasks: HashMap::new(), users: HashMap::new(), next: 0 }
    }

    /// The task, if it descends from the program.
    pub fn get(&self, tid: u32) -> Option<Task> {
        self.tasks.get(&tid).copied()
    }

    /// Thread `tid` of `process` has made `child` with these flags of `clone`.
    pub fn made(&mut self, process: u32, tid: u32, child: u32, flags: u64) {
        let parent = self.get(tid);
        let is_program = process == self.watcher && flags & (Self::CLONE_THREAD | Self::CLONE_VM) == 0;
        if parent.is_none() && !is_program {
            return;
        }
        let shared = parent.filter(|_| flags & Self::CLONE_VM != 0);
        let space = shared.map_or_else(|| self.new_space(), |parent| parent.space);
        let is_thread = flags & Self::CLONE_THREAD != 0;
        let borrowed_from = (shared.is_some() && flags & Self::CLONE_VFORK != 0).then_some(tid);
        let process = parent.filter(|_| is_thread).map_or(child, |parent| parent.process);
        *self.users.entry(space).or_default() += 1;
        self.tasks.insert(child, Task { process, space, borrowed_from });
    }

    /// Thread `tid`, which was `before`, has become another program. The space that nobody has any more, if it was the
    /// last.
    pub fn exec(&mut self, tid: u32, before: u32) -> Option<Space> {
        let old = self.tasks.remove(&before)?;
        let left = self.leave(old.space);
        let space = self.new_space();
        self.users.insert(space, 1);
        // Where another thread than the first does it, that one has ended; where it has not been seen to, it has now.
        let first = self.tasks.insert(tid, Task { process: tid, space, borrowed_from: None });
        let left_too = first.and_then(|first| self.leave(first.space));
        left.or(left_too)
    }

    /// Thread `tid` is at its end. The space that nobody has any more, if it was the last.
    pub fn exit(&mut self, tid: u32) -> Option<Space> {
        let task = self.tasks.remove(&tid)?;
        self.leave(task.space)
    }

    fn new_space(&mut self) -> Space {
        self.next += 1;
        Space(self.next)
    }

    fn leave(&mut self, space: Space) -> Option<Space> {
        let users = self.users.get_mut(&space)?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        self.users.remove(&space);
        Some(space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORK: u64 = 0;
    const THREAD: u64 = Tasks::CLONE_VM | Tasks::CLONE_THREAD;
    const VFORK: u64 = Tasks::CLONE_VM | Tasks::CLONE_VFORK;

    fn program() -> Tasks {
        let mut tasks = Tasks::new(1);
        tasks.made(1, 1, 10, FORK);
        tasks
    }

    #[test]
    fn only_what_descends_from_the_program_is_known() {
        let mut tasks = program();
        tasks.made(5, 5, 6, FORK);
        tasks.made(1, 1, 2, THREAD);
        assert!(tasks.get(6).is_none() && tasks.get(2).is_none());
        assert_eq!(tasks.get(10).map(|task| task.process), Some(10));
    }

    #[test]
    fn threads_share_and_children_do_not() {
        let mut tasks = program();
        tasks.made(10, 10, 11, THREAD);
        tasks.made(10, 11, 20, FORK);
        tasks.made(10, 11, 30, VFORK);
        let [main, thread, child, vforked] = [10, 11, 20, 30].map(|tid| tasks.get(tid).unwrap());
        assert_eq!((thread.process, thread.space), (10, main.space));
        assert_eq!((child.process, child.borrowed_from), (20, None));
        assert_ne!(child.space, main.space);
        assert_eq!((vforked.process, vforked.space, vforked.borrowed_from), (30, main.space, Some(11)));
    }

    #[test]
    fn a_space_ends_with_its_last_task() {
        let mut tasks = program();
        let space = tasks.get(10).unwrap().space;
        tasks.made(10, 10, 11, THREAD);
        assert_eq!(tasks.exit(10), None);
        assert_eq!(tasks.exit(11), Some(space));
        assert_eq!(tasks.exit(11), None, "not known any more");
    }

    #[test]
    fn exec_begins_a_new_space() {
        let mut tasks = program();
        let space = tasks.get(10).unwrap().space;
        assert_eq!(tasks.exec(10, 10), Some(space));
        let second = tasks.get(10).unwrap().space;
        assert_ne!(second, space);
        tasks.made(10, 10, 11, THREAD);
        assert_eq!(tasks.exit(10), None);
        assert_eq!(tasks.exec(10, 11), Some(second), "by another thread, which gets the id of the first");
        assert!(tasks.get(11).is_none());
        tasks.made(10, 10, 30, VFORK);
        assert_eq!(tasks.exec(30, 30), None, "the parent still has it");
        assert_eq!(tasks.get(30).unwrap().borrowed_from, None);
    }
}
