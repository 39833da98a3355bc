//! Starting: what is refused, what is inherited, what is returned.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::shell::{mmun, mmun_sh, sh, stderr, stdout};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mmun-it-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn passes_the_status_through() {
    for status in [0, 1, 7, 125, 126, 127, 255] {
        let output = mmun_sh(&format!("exit {status}")).output().unwrap();
        assert_eq!(output.status.code(), Some(status));
    }
}

#[test]
fn dies_of_what_the_program_died_of() {
    for signal in [1, 2, 6, 9, 13, 15, 34] {
        let output = mmun_sh(&format!("ulimit -c 0; kill -{signal} $$")).output().unwrap();
        assert_eq!(output.status.signal(), Some(signal));
        assert!(!output.status.core_dumped());
    }
}

#[test]
fn refuses_with_one_line() {
    let refused = |arguments: &[&str], status, words: &str| {
        let output = mmun(arguments).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.starts_with("mmun: ") && text.lines().count() == 1, "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?}: {text}");
    };
    refused(&["run", "no-such-program"], 127, "not found in PATH");
    refused(&["run", "./no-such-program"], 127, "no such file");
    refused(&["run", "/"], 126, "folder");
    refused(&["run", "/etc/passwd"], 126, "chmod +x");
    refused(&["run", "--json", "/nonexistent/x", "true"], 125, "cannot write --json /nonexistent/x");
    for wrong in
        [&["run"][..], &["run", "--refuse", "2", "true"], &["run", "--buffer", "1", "true"], &["walk"]]
    {
        assert_eq!(mmun(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(mmun(&["--help"]).output().unwrap().status.code(), Some(0));
    assert!(stdout(&mmun(&["run", "--help"]).output().unwrap()).contains("EXAMPLES:"));
    assert!(stdout(&mmun(&["--version"]).output().unwrap()).starts_with("mmun 0."));
}

#[test]
fn a_report_that_cannot_be_written_stops_before_the_program() {
    let folder = folder("reports");
    let ran = folder.join("ran");
    for option in ["--json", "--trace", "--report"] {
        let path = folder.join("no/such/folder");
        let status = mmun(&["run", option]).arg(&path).arg("touch").arg(&ran).output().unwrap().status;
        assert_eq!(status.code(), Some(125));
    }
    assert!(!ran.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_program_inherits_what_mmun_was_given() {
    // Signal mask, dispositions, descriptors, group, limits: as without mmun.
    let look = "exec 2>&1; grep -E 'SigBlk|SigIgn|SigCgt' /proc/self/status; ls /proc/self/fd; ulimit -a; umask; pwd";
    for before in [
        "",
        "trap '' INT PIPE HUP TSTP; ",
        "exec <&-; ",
        "exec 2>&-; ",
        "exec 7</dev/null; ",
        "ulimit -S -f 1; umask 77; ",
    ] {
        let plain = sh(&format!("{before} sh -c \"{look}\""));
        let under = sh(&format!("{before} $MMUN sh -c \"{look}\""));
        assert_eq!(stdout(&under), stdout(&plain), "{before}: {}", stderr(&under));
    }
    let groups = sh("$MMUN sh -c 'ps -o pgid= -p $$; ps -o pgid= -p $PPID'");
    let text = stdout(&groups);
    let mut lines = text.lines();
    assert_eq!(lines.next(), lines.next(), "one process group");
}

#[test]
fn works_where_little_is_given() {
    // No standard descriptors at all, no SIGCHLD, nothing in the environment.
    assert_eq!(sh("$MMUN sh -c 'exit 5' <&- >&- 2>&-").status.code(), Some(5));
    let ignored = sh("command -v perl >/dev/null || exit 6; \
        perl -e '$SIG{CHLD} = \"IGNORE\"; exec(split(/ /, $ENV{MMUN}), \"sh\", \"-c\", \"exit 6\")'");
    assert_eq!(ignored.status.code(), Some(6), "{}", stderr(&ignored));
    let bare = mmun(&["run", "-q", "sh", "-c", "exit 8"]).env_clear().output().unwrap();
    assert_eq!(bare.status.code(), Some(8), "{}", stderr(&bare));
    let limited = sh("ulimit -f 1; $MMUN true");
    assert_eq!(limited.status.code(), Some(125));
    assert!(stderr(&limited).contains("ulimit -f"), "{}", stderr(&limited));
    let limited = sh("ulimit -S -f 1; $MMUN true");
    assert_eq!(limited.status.code(), Some(0), "a soft limit is not meant: {}", stderr(&limited));
}

#[test]
fn tells_the_program_where_to_report() {
    let home = folder("home");
    // The object takes what is meant for it out of the environment; the kernel still has what the program was given.
    let given = "given() { tr '\\0' '\\n' </proc/$$/environ | sed -n \"s/^$1=//p\"; }";
    let script = &format!("{given}; stat -L -c %F $(given MMUN_SESSION); given LD_PRELOAD; echo $0 $1");
    let mut command = mmun(&["run", "-q", "--", "sh", "-c", script, "name", "--json"]);
    command.env("HOME", &home).env_remove("XDG_CACHE_HOME").env("LD_PRELOAD", "libc.so.6");
    let text = stdout(&command.output().unwrap());
    let lines: Vec<_> = text.lines().collect();
    let object = Path::new(lines[1].strip_suffix(":libc.so.6").unwrap());
    assert_eq!((lines[0], lines[2]), ("regular file", "name --json"));
    assert!(object.starts_with(home.join(".cache/mmun")) && object.is_file(), "{}", object.display());
    std::fs::remove_dir_all(&home).unwrap();

    let spaced = mmun(&["run", "-q", "sh", "-c", &format!("{given}; given LD_PRELOAD")])
        .env("XDG_CACHE_HOME", "/tmp/a b")
        .output();
    assert!(stdout(&spaced.unwrap()).starts_with("/tmp/mmun-"), "elsewhere if the cache cannot be named");
}

#[test]
fn does_not_wait_for_those_who_outlive_the_program() {
    let begin = Instant::now();
    let status = mmun_sh("sleep 20 >/dev/null 2>&1 </dev/null & exit 4").status().unwrap();
    assert_eq!(status.code(), Some(4));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn runs_itself() {
    assert_eq!(sh("$MMUN $MMUN $MMUN sh -c 'exit 3'").status.code(), Some(3));
}
