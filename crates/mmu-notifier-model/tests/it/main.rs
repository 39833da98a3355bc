//! The model against the recorded behaviour of the kernels, and against what it promises itself.
//!
//! | file | what is shown |
//! | --- | --- |
//! | `golden.rs` | every observation of every trace matches, and the archive is complete |
//! | `mutation.rs` | an observation that is changed is noticed, and where |
//! | `facts.rs` | each fact in which the kernels differ is needed; replay as another kernel |
//! | `repaired.rs` | the repaired kernel differs where the defects are, and nowhere else |
//! | `edge_cases.rs` | the edge cases of the subsystem, each with the scenario that shows it |
//! | `random.rs`, `reading.rs` | what must hold of any operations and of any text; `fuzz/` uses them, too |
//! | `strict.rs` | what is not a trace is refused, with file, line and field |
//! | `invariants.rs` | generated operations: the invariants of the subsystem, and no panic (`bystander.rs` keeps the books) |

mod bystander;
mod edge_cases;
mod facts;
mod golden;
mod invariants;
mod mutation;
mod random;
mod reading;
mod repaired;
mod strict;

/// A generator of random numbers that gives the same ones every time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..bound`.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
