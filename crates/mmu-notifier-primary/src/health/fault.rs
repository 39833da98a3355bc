//! What can be wrong with a rewritten call site.

use core::fmt;
use std::path::PathBuf;

use crate::Syscall;

/// A rewritten call site that is not as it was written: its calls may not be announced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The call that is made there, if it is always the same one and one of these.
    pub call: Option<Syscall>,
    /// The number of the call that is made there; `None`: any, as by the function `syscall` of the C library.
    pub number: Option<usize>,
    /// The address of the `syscall` instruction.
    pub address: usize,
    /// The file it is in, and at which byte; empty, and the address: in none.
    pub file: PathBuf,
    /// See `file`.
    pub offset: usize,
}

/// What is wrong with a call site.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// There is other code where our jump was.
    Overwritten {
        /// The code, up to 16 bytes.
        found: Vec<u8>,
        /// Where it jumps to, if that can be seen.
        leads_to: Option<LeadsTo>,
    },
    /// The file's own code is there again: its calls are not announced.
    Restored,
    /// Our jump is there, but the code of its function before it was changed: calls may not come this far.
    Bypassed {
        /// The code, up to 16 bytes.
        found: Vec<u8>,
        /// Where it jumps to, if that can be seen.
        leads_to: Option<LeadsTo>,
    },
    /// Our jump is there, but not the code that it leads to: the next call crashes.
    StubGone,
}

/// Where foreign code leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeadsTo {
    /// The address.
    pub address: usize,
    /// The file that is mapped there; `None`: memory without a file.
    pub file: Option<PathBuf>,
}

impl Fault {
    /// Whether this call may be made there.
    pub fn may_make(&self, call: Syscall) -> bool {
        self.number.is_none_or(|number| number == call.number())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.call, self.number) {
            (Some(call), _) => f.write_str(call.name())?,
            (None, Some(number)) => write!(f, "system call {number}")?,
            (None, None) => f.write_str("a system call of any number")?,
        }
        if self.file.as_os_str().is_empty() {
            write!(f, " at {:#x}, in memory without a file: ", self.address)?;
        } else {
            write!(f, " at {}+{:#x}: ", self.file.display(), self.offset)?;
        }
        match &self.kind {
            FaultKind::Overwritten { found, leads_to } => {
                f.write_str("somebody has written over the jump to the hook")?;
                code(f, found, leads_to.as_ref())?;
                f.write_str(": install this library after whoever did, or have it told instead of patching")
            }
            FaultKind::Restored => f.write_str(
                "somebody has put the file's own code back, so this call is not announced (but in strict mode): \
                 keep whoever saves and restores code from running after this library is installed",
            ),
            FaultKind::Bypassed { found, leads_to } => {
                f.write_str("the code in front of it was changed, so calls may not come this far")?;
                code(f, found, leads_to.as_ref())?;
                f.write_str(": install this library after whoever did, or have it told instead of patching")
            }
            FaultKind::StubGone => f.write_str(
                "the memory that the jump leads to was unmapped or changed: \
                 the next such call crashes; whoever unmaps all that it does not know must leave it alone",
            ),
        }
    }
}

fn code(f: &mut fmt::Formatter<'_>, found: &[u8], leads_to: Option<&LeadsTo>) -> fmt::Result {
    match leads_to {
        Some(LeadsTo { file: Some(file), .. }) => write!(f, ", by a jump into {}", file.display()),
        Some(LeadsTo { address, file: None }) => {
            write!(f, ", by a jump to {address:#x}, memory without a file")
        }
        None => {
            f.write_str(", by")?;
            found.iter().take(8).try_for_each(|byte| write!(f, " {byte:02x}"))
        }
    }
}
