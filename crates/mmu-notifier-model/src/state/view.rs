//! The state as a trace shows it.

use super::{Machine, Subscriptions};
use crate::observe::{Count, Deferral, Finish, MmState, Subs};
use crate::op::Callback;
use crate::replay::Balance;

impl Machine {
    /// An address space, or `None` if there never was one of this number.
    pub fn state(&self, m: u64) -> Option<MmState> {
        let mm = self.mms.get(&m)?;
        if mm.freed {
            return Some(MmState::Freed { m });
        }
        let subs = mm.subs.as_ref().map(|subs| self.subs_view(m, subs));
        Some(MmState::Live { m, users: mm.users, count: mm.count, subs })
    }

    fn subs_view(&self, m: u64, subs: &Subscriptions) -> Subs {
        let deferral = |&i: &u64| match subs.tree.contains(&i) {
            true => Deferral::Remove(i),
            false => Deferral::Insert(i),
        };
        let present = self.intervals.iter().filter(|(_, interval)| interval.mm == m && interval.present);
        let of_mm = self.subscribers.iter().filter(|(_, subscriber)| subscriber.mm == m && !subscriber.freed);
        Subs {
            seq: subs.seq,
            active: subs.active,
            has_itree: subs.has_itree,
            list: subs.list.clone(),
            tree: subs.tree.clone(),
            deferred: subs.deferred.iter().map(deferral).collect(),
            stored: present.map(|(&i, interval)| (i, interval.seq)).collect(),
            counts: of_mm
                .map(|(&s, subscriber)| Count {
                    s,
                    users: u64::from(subscriber.users),
                    linked: subs.list.contains(&s),
                    started: subscriber.started,
                    failed: subscriber.failed,
                    ended: subscriber.ended,
                })
                .collect(),
            pending_frees: self.pending_frees.len() as u64,
        }
    }

    /// What is left over: who still waits, which pairs are open, every address space.
    pub fn finish(&self) -> Finish {
        Finish {
            stuck: self.waiters.iter().map(|w| (w.task, w.op(), w.waits_for())).collect(),
            open: self.pairs.iter().filter(|(_, pair)| pair.open).map(|(&r, _)| r).collect(),
            mms: self.mms.keys().filter_map(|&m| self.state(m)).collect(),
        }
    }

    /// Starts and ends of every hlist subscriber there ever was, by number.
    pub fn balances(&self) -> Vec<Balance> {
        let balance = |(&s, subscriber): (&u64, &super::Subscriber)| {
            let class = &self.classes[&subscriber.class];
            Balance {
                s,
                m: subscriber.mm,
                is_paired: class.has(Callback::Start) && class.has(Callback::End),
                started: subscriber.started,
                failed: subscriber.failed,
                ended: subscriber.ended,
                freed: subscriber.freed,
            }
        };
        self.subscribers.iter().map(balance).collect()
    }
}
