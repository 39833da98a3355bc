#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod kernel;
mod observe;
mod op;
mod replay;
mod state;
mod trace;

pub use kernel::Kernel;
pub use observe::{
    Absent, Args, Bug, Call, CallKind, Context, Count, Deferral, Finish, Log, MmState, Observed, Resumed,
    Ret, Subs, Wait, Warning, Who,
};
pub use op::{
    AnswerLists, Blocking, Callback, Change, Class, Event, Failing, Ignored, Injection, IntervalClass, Op,
    Passes, Qualifying, Vma,
};
pub use replay::{Balance, Mismatch, Replay, Report, Step, replay};
pub use state::{Impossible, Machine};
pub use trace::{Header, Line, Profile, Trace, TraceError, Trait, split};

/// The recorded traces: a gzip file of all of them, one after the other, to be cut by [`split`].
/// `docs/golden.md` says where they come from.
pub const GOLDEN: &[u8] = include_bytes!("../golden/traces.jsonl.gz");
