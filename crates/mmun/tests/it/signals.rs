//! Signals and job control.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::shell::mmun_sh;

/// mmun in a process group of its own, with a program that has said its pid and is waiting.
struct Job {
    mmun: Child,
    program: u32,
}

impl Job {
    fn start(script: &str) -> Job {
        // It waits in the shell itself: a shell that is just starting a command by vfork cannot be stopped until
        // its child has come to the exec, and that has been stopped, too.
        let script = format!("{script}; sleep 30 >/dev/null 2>&1 & echo $$; wait");
        let mut mmun =
            mmun_sh(&script).process_group(0).stderr(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(mmun.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Job { mmun, program: line.trim().parse().unwrap() }
    }

    /// Sends to mmun, as `kill PID` does.
    fn to_mmun(&self, signal: &str) {
        kill(signal, &self.mmun.id().to_string());
    }

    /// Sends to all of the job, as a shell or a terminal does.
    fn to_all(&self, signal: &str) {
        kill(signal, &format!("-{}", self.mmun.id()));
    }

    fn end(mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.mmun.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "mmun does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn become_state(&self, mmun: char, program: char) {
        let begin = Instant::now();
        let states = || (state(self.mmun.id()), state(self.program));
        // The program is busy now and then. mmun sleeps only where it waits for the next signal: just
        // continued and still running, it has not yet blocked the next stop.
        let reached = |(m, p)| m == mmun && (p == program || (program == 'S' && matches!(p, 'R' | 'D')));
        while !reached(states()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "states are {:?}", states());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.mmun.try_wait().is_ok_and(|status| status.is_none()) {
            self.to_all("KILL");
        }
    }
}

fn kill(signal: &str, target: &str) {
    let status = Command::new("sh").args(["-c", "kill -s $0 -- $1", signal, target]).status().unwrap();
    assert!(status.success(), "kill -s {signal} -- {target}");
}

fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()).unwrap_or('-')
}

#[test]
fn are_passed_on() {
    for signal in ["TERM", "HUP", "USR1", "USR2", "INT", "QUIT", "ALRM"] {
        let job = Job::start(&format!("trap 'exit 9' {signal}"));
        job.to_mmun(signal);
        assert_eq!(job.end().code(), Some(9), "{signal}");
    }
    let job = Job::start(":");
    job.to_mmun("TERM");
    assert_eq!(job.end().signal(), Some(15), "and kill both if the program does nothing about it");
}

#[test]
fn of_the_terminal_do_not_end_mmun_before_the_program() {
    // The program takes its time to clean up.
    let job = Job::start("trap 'sleep 0.3; exit 3' INT");
    job.to_all("INT");
    assert_eq!(job.end().code(), Some(3));
    let job = Job::start("trap '' INT");
    job.to_all("INT");
    std::thread::sleep(Duration::from_millis(100));
    job.become_state('S', 'S');
    job.to_all("TERM");
    assert_eq!(job.end().signal(), Some(15));
}

#[test]
fn stop_and_continue_both() {
    let job = Job::start("trap 'exit 5' USR1");
    job.to_all("TSTP");
    job.become_state('T', 'T');
    job.to_all("CONT");
    job.become_state('S', 'S');
    // Again, and only mmun is told: the program follows.
    job.to_mmun("TSTP");
    job.become_state('T', 'T');
    job.to_mmun("CONT");
    job.become_state('S', 'S');
    job.to_mmun("USR1");
    assert_eq!(job.end().code(), Some(5));
}

#[test]
fn stopping_the_program_alone_stops_it_alone() {
    let job = Job::start("trap 'exit 5' USR1");
    kill("STOP", &job.program.to_string());
    job.become_state('S', 'T');
    std::thread::sleep(Duration::from_millis(100));
    job.become_state('S', 'T');
    job.to_mmun("CONT");
    job.become_state('S', 'S');
    job.to_mmun("USR1");
    assert_eq!(job.end().code(), Some(5));
}
