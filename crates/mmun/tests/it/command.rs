//! Running commands with a deadline, and `mmun run` with its report read back.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The command under test.
pub(crate) const MMUN: &str = env!("CARGO_BIN_EXE_mmun");

/// How long a program may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// How a command ended and what it said.
#[derive(PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ended {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub(crate) fn assert_success(&self) -> &Ended {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// Exits with `code` because of `mmun` itself: one line that begins with `mmun: `.
    pub(crate) fn assert_refused(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        let said = self.stderr();
        assert_eq!(said.lines().count(), 1, "one line, not: {self:?}");
        assert!(said.starts_with("mmun: ") && said.ends_with('\n'), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        writeln!(f, "--- stdout\n{}", last_lines(&self.stdout()))?;
        write!(f, "--- stderr\n{}", last_lines(&self.stderr()))
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Starts a command in a process group of its own, its output going to files in `dir`.
pub(crate) fn start(command: &mut Command, dir: &Path, label: &str) -> Started {
    let stdout = dir.join(format!("{label}.stdout"));
    let stderr = dir.join(format!("{label}.stderr"));
    command
        .stdout(File::create(&stdout).expect("a file for stdout"))
        .stderr(File::create(&stderr).expect("a file for stderr"))
        .process_group(0);
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Started { child, stdout, stderr, what: format!("{command:?}") }
}

/// Runs a command to its end, with nothing to read, its output kept in files in `dir`.
pub(crate) fn run(command: &mut Command, dir: &Path, label: &str) -> Ended {
    command.stdin(Stdio::null());
    start(command, dir, label).wait()
}

/// A command that runs.
pub(crate) struct Started {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    what: String,
}

impl Started {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the whole group, as a terminal does.
    pub(crate) fn signal_group(&self, signal: &str) {
        let group = format!("-{}", self.child.id());
        let sent = Command::new("sh").args(["-c", "kill -s \"$0\" -- \"$1\"", signal, &group]).status();
        assert!(sent.expect("sh runs").success(), "cannot signal {}", self.what);
    }

    /// Waits until the command has written `text` to its standard output.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let begun = Instant::now();
        loop {
            let said = fs::read(&self.stdout).expect("stdout is readable");
            if String::from_utf8_lossy(&said).contains(text) {
                return;
            }
            let ended = self.child.try_wait().expect("it can be waited for");
            assert!(ended.is_none(), "{} ended before it said {text:?}: {ended:?}", self.what);
            self.check_deadline(begun);
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end; a command that takes too long is killed with its group and fails the test.
    pub(crate) fn wait(mut self) -> Ended {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            self.check_deadline(begun);
            thread::sleep(Duration::from_millis(5));
        };
        Ended {
            status,
            stdout: fs::read(&self.stdout).expect("stdout is readable"),
            stderr: fs::read(&self.stderr).expect("stderr is readable"),
        }
    }

    fn check_deadline(&mut self, begun: Instant) {
        if begun.elapsed() > DEADLINE {
            self.signal_group("KILL");
            let status = self.child.wait().expect("it can be waited for");
            let [stdout, stderr] =
                [&self.stdout, &self.stderr].map(|path| fs::read(path).unwrap_or_default());
            let ended = Ended { status, stdout, stderr };
            panic!("{} did not end in {DEADLINE:?}\n{ended:?}", self.what);
        }
    }
}

/// `mmun run` with its JSON report in `dir`.
pub(crate) struct Mmun<'a> {
    dir: &'a Path,
    label: String,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    from: Option<PathBuf>,
}

impl<'a> Mmun<'a> {
    pub(crate) fn new(dir: &'a Path) -> Mmun<'a> {
        Mmun { dir, label: "mmun".into(), options: Vec::new(), environment: Vec::new(), from: None }
    }

    /// Another name for the files of this run.
    pub(crate) fn label(mut self, label: &str) -> Mmun<'a> {
        self.label = label.into();
        self
    }

    /// One more option of `mmun run`.
    pub(crate) fn option(mut self, option: impl Into<String>) -> Mmun<'a> {
        self.options.push(option.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Mmun<'a> {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs in this directory instead of the test's.
    pub(crate) fn from(mut self, dir: &Path) -> Mmun<'a> {
        self.from = Some(dir.into());
        self
    }

    /// The file that the report goes to.
    pub(crate) fn json(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.label))
    }

    /// The whole command line: what is before `mmun` (a tracer, say), `mmun run` and the program.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, before: &[S], program: &[impl AsRef<OsStr>]) -> Command {
        let mut words: Vec<&OsStr> = before.iter().map(AsRef::as_ref).collect();
        words.push(OsStr::new(MMUN));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["run", "--quiet", "--json"]).arg(self.json());
        command.args(&self.options).arg("--").args(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.from.as_deref().unwrap_or(self.dir));
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, program: &[impl AsRef<OsStr>]) -> (Ended, Report) {
        let ended = run(&mut self.command::<&str>(&[], program), self.dir, &self.label);
        let report = Report::read(&self.json(), &ended);
        (ended, report)
    }
}

/// Runs a program without `mmun`, under otherwise the same conditions.
pub(crate) fn run_plain(dir: &Path, program: &[impl AsRef<OsStr>]) -> Ended {
    let mut command = Command::new(program[0].as_ref());
    command.args(&program[1..]).current_dir(dir);
    run(&mut command, dir, "plain")
}

/// What `mmun run --json` wrote.
#[derive(Debug)]
pub(crate) struct Report {
    json: Value,
}

impl Report {
    pub(crate) fn read(path: &Path, ended: &Ended) -> Report {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("no report at {}: {error}\n{ended:?}", path.display()));
        let json: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{} is no JSON: {error}\n{text}", path.display()));
        assert_eq!(json["schema"], "mmun-run/1", "{}", path.display());
        Report { json }
    }

    /// What stands at a path like `audit.places`; null, if there is nothing.
    pub(crate) fn value(&self, path: &str) -> &Value {
        path.split('.').fold(&self.json, |value, key| &value[key])
    }

    /// The number at a path like `balance.starts`.
    pub(crate) fn number(&self, path: &str) -> u64 {
        let value = self.value(path);
        value.as_u64().unwrap_or_else(|| panic!("{path} is {value} in {:#}", self.json))
    }

    /// How often `call` was made.
    pub(crate) fn count(&self, call: &str) -> u64 {
        self.number(&format!("calls.{call}.count"))
    }

    /// How often `call` failed.
    pub(crate) fn failed(&self, call: &str) -> u64 {
        self.number(&format!("calls.{call}.failed"))
    }

    /// How often `call` announced a change.
    pub(crate) fn bracketed(&self, call: &str) -> u64 {
        self.number(&format!("calls.{call}.bracketed"))
    }

    /// Nothing was left unwatched.
    pub(crate) fn is_complete(&self) -> bool {
        let none = |key: &str| self.json[key].as_array().is_some_and(Vec::is_empty);
        none("unseen") && self.number("unseen_more") == 0
    }

    /// What is said about how the program ended, whatever its shape.
    pub(crate) fn outcome(&self) -> String {
        self.json["outcome"].to_string()
    }

    /// Every start has its end, or was cut short together with the process.
    pub(crate) fn assert_balanced(&self) -> &Report {
        let [starts, ends, cut_short] =
            ["starts", "ends", "cut_short"].map(|key| self.number(&format!("balance.{key}")));
        assert_eq!(starts, ends + cut_short, "starts != ends + cut short in {:#}", self.json["balance"]);
        self
    }

    /// A line with what is worth knowing about a run that passed.
    pub(crate) fn line(&self) -> String {
        let mut line = String::new();
        for key in ["processes", "threads", "balance.starts", "balance.cut_short", "balance.abandoned"] {
            let _ = write!(line, "{key} {}, ", self.number(key));
        }
        for key in ["hook.own_calls", "records.read", "records.dropped"] {
            let _ = write!(line, "{key} {}, ", self.number(key));
        }
        line.truncate(line.len() - 2);
        line
    }
}

/// Fails unless a program did the same with `mmun` as without.
pub(crate) fn assert_same(plain: &Ended, watched: &Ended) {
    assert_eq!(plain.status.into_raw(), watched.status.into_raw(), "plain {plain:?}\nwatched {watched:?}");
    assert!(plain.stdout == watched.stdout, "stdout differs\nplain {plain:?}\nwatched {watched:?}");
    assert!(plain.stderr == watched.stderr, "stderr differs\nplain {plain:?}\nwatched {watched:?}");
}
