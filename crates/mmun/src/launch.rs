//! Starts the program and waits for it.
//!
//! The program is started by `fork` and `execve` while mmun has one thread: in its process group, with
//! the terminal, descriptors, signal mask and dispositions that mmun was started with. A failed `execve`
//! comes back through a pipe that a successful one closes.

// UNSAFETY: fork, exec and wait.
#![expect(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};

use crate::inject::{Injection, Otherwise};
use crate::signals::{self, Arrived, Found};
use crate::summary::Outcome;
use crate::tracee::{self, Tracee};

/// The running program.
#[derive(Debug)]
pub struct Child {
    pid: i32,
}

/// A change of the child's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Ended(Outcome),
    Stopped(i32),
    None,
}

/// Starts `program` with these arguments (the first is its name) and with these variables besides our own.
/// The inner error is that of `execve`.
pub fn start(
    program: &Path,
    arguments: &[OsString],
    variables: &[(&str, OsString)],
    injection: Option<&Injection>,
    found: &Found,
) -> Result<io::Result<Child>> {
    let file = terminated(program.as_os_str().to_owned())?;
    let arguments = arguments.iter().cloned().map(terminated).collect::<Result<Vec<_>>>()?;
    let environment = environment(variables)?;
    let argv = pointers(&arguments);
    let envp = pointers(&environment);
    let (mut reader, writer) = io::pipe().context("cannot make a pipe")?;

    // SAFETY: this process has one thread, so that the child finds no lock held; it makes plain system
    // calls until it becomes another program or exits.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot start a process (fork)"),
        0 => {
            found.restore();
            let traced = injection.map_or(Ok(()), |_| tracee::be_traced());
            if traced.is_ok() {
                // SAFETY: terminated strings in terminated lists, made before.
                unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            }
            let error = traced.err().unwrap_or_else(io::Error::last_os_error);
            let error = error.raw_os_error().unwrap_or(0).to_ne_bytes();
            // SAFETY: writes four bytes that are there.
            unsafe { libc::write(writer.as_raw_fd(), error.as_ptr().cast(), error.len()) };
            // SAFETY: ends the child without anything that belongs to the parent (buffers, exit functions).
            unsafe { libc::_exit(127) };
        }
        pid => {
            drop(writer);
            let child = Child { pid };
            let mut error = [0; 4];
            if reader.read_exact(&mut error).is_err() {
                // Closed without a word: it is another program now.
                let put_in = injection.map(|injection| {
                    Tracee::of_child(pid).and_then(|tracee| injection.put_into(tracee, Otherwise::Kill))
                });
                if let Some(Err(error)) = put_in {
                    child.reap();
                    return Err(error);
                }
                return Ok(Ok(child));
            }
            child.reap();
            Ok(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error))))
        }
    }
}

impl Child {
    /// Waits until the program has ended; meanwhile passes signals on to it and stops when it stops.
    pub fn wait(self) -> Outcome {
        loop {
            let arrived = signals::next();
            if let Some(signal) = forwarded(arrived)
                && (signal != libc::SIGCONT || is_stopped(self.pid))
            {
                signals::send(self.pid, signal);
            }
            if arrived.signal != libc::SIGCHLD {
                continue;
            }
            loop {
                match self.change() {
                    Change::Ended(outcome) => return outcome,
                    // The terminal's stop signals: whoever does job control with us is to see it. A plain
                    // SIGSTOP is somebody else's business with the program alone.
                    Change::Stopped(signal @ (libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)) => {
                        signals::suffer(signal);
                        if is_stopped(self.pid) {
                            signals::send(self.pid, libc::SIGCONT);
                        }
                    }
                    Change::Stopped(_) => {}
                    Change::None => break,
                }
            }
        }
    }

    fn change(&self) -> Change {
        let mut status = 0;
        // SAFETY: writes `status`.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG | libc::WUNTRACED) };
        if pid != self.pid {
            Change::None
        } else if libc::WIFSTOPPED(status) {
            Change::Stopped(libc::WSTOPSIG(status))
        } else if libc::WIFSIGNALED(status) {
            Change::Ended(Outcome::Killed(libc::WTERMSIG(status)))
        } else {
            Change::Ended(Outcome::Exited(libc::WEXITSTATUS(status)))
        }
    }

    fn reap(&self) {
        // SAFETY: with a null pointer nothing is written.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// What the program is to get of a signal that mmun got. What terminal and kernel send, they send to the
/// program too.
fn forwarded(arrived: Arrived) -> Option<i32> {
    match arrived.signal {
        libc::SIGCHLD => None,
        signal if arrived.sent => Some(signal),
        _ => None,
    }
}

fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 1);
    stat[after..].trim_ascii_start().first() == Some(&b'T')
}

/// Our environment with some variables set.
fn environment(variables: &[(&str, OsString)]) -> Result<Vec<CString>> {
    let kept = std::env::vars_os().filter(|(name, _)| !variables.iter().any(|(other, _)| name == other));
    let set = variables.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    kept.chain(set)
        .map(|(mut line, value)| {
            line.push(OsStr::from_bytes(b"="));
            line.push(value);
            terminated(line)
        })
        .collect()
}

fn terminated(text: OsString) -> Result<CString> {
    CString::new(text.into_vec()).context("an argument contains a zero byte")
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_is_passed_on() {
        let sent = |signal| forwarded(Arrived { signal, sent: true });
        assert_eq!(sent(libc::SIGTERM), Some(libc::SIGTERM));
        assert_eq!(sent(libc::SIGINT), Some(libc::SIGINT));
        assert_eq!(sent(libc::SIGCHLD), None);
        assert_eq!(forwarded(Arrived { signal: libc::SIGINT, sent: false }), None, "control-C");
        assert_eq!(forwarded(Arrived { signal: libc::SIGHUP, sent: false }), None, "terminal gone");
    }

    #[test]
    fn variables_replace_those_that_were_there() {
        let lines = environment(&[("PATH", "/nowhere".into()), ("MMUN_TEST_NEW", "x".into())]).unwrap();
        let of =
            |name: &[u8]| lines.iter().filter(|line| line.as_bytes().starts_with(name)).collect::<Vec<_>>();
        assert_eq!(of(b"PATH="), [&c"PATH=/nowhere".to_owned()]);
        assert_eq!(of(b"MMUN_TEST_NEW="), [&c"MMUN_TEST_NEW=x".to_owned()]);
    }
}
