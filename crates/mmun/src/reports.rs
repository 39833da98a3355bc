//! Where a run is reported to.
//!
//! All files are opened before the program starts: a wrong path costs nobody a long run.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::report::html::Html;
use crate::report::trace::Trace;
use crate::report::{json, text};
use crate::summary::{Caller, Record, Summary};

/// The reports of a run, besides the text on the terminal.
#[derive(Debug)]
pub struct Reports {
    json: Option<Output>,
    trace: Option<(PathBuf, Trace<BufWriter<File>>)>,
    html: Option<(Output, Html)>,
}

/// A file that is opened before the program starts and written when it has ended.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    fn write(self, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
        let mut out = BufWriter::new(emptied(self.file));
        write(&mut out).and_then(|()| out.flush()).with_context(|| cannot_write(&self.path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

impl Reports {
    /// Opens all of them. `json` may be `-` for stdout.
    pub fn open(json: Option<&Path>, trace: Option<&Path>, html: Option<&Path>) -> Result<Reports> {
        let json = json.map(|path| if path == "-" { Path::new("/dev/stdout") } else { path });
        let mut files = HashMap::new();
        let mut open = |option: &'static str, path: Option<&Path>| {
            path.map(|path| open_once(&mut files, option, path)).transpose()
        };
        let json = open("--json", json)?;
        let trace = open("--trace", trace)?;
        let html = open("--report", html)?;
        let trace = trace.map(|output| {
            let out = BufWriter::new(emptied(output.file));
            let trace = Trace::create(out).with_context(|| cannot_write(&output.path))?;
            anyhow::Ok((output.path, trace))
        });
        Ok(Reports { json, trace: trace.transpose()?, html: html.map(|output| (output, Html::new())) })
    }

    /// Whether single calls are to be recorded.
    pub fn want_records(&self) -> bool {
        self.trace.is_some() || self.html.is_some()
    }

    /// Takes one system call.
    pub fn record(&mut self, record: &Record, caller: &Caller) -> Result<()> {
        if let Some((_, html)) = &mut self.html {
            html.record(record);
        }
        if let Some((path, trace)) = &mut self.trace {
            trace.record(record, caller).with_context(|| cannot_write(path))?;
        }
        Ok(())
    }

    /// Writes what is written at the end.
    pub fn finish(self, summary: &Summary, callers: &[Caller]) -> Result<()> {
        if let Some((path, trace)) = self.trace {
            trace.finish(summary).with_context(|| cannot_write(&path))?;
        }
        if let Some((output, html)) = self.html {
            output.write(|out| html.write(out, summary, callers))?;
        }
        if let Some(output) = self.json {
            output.write(|out| json::write(summary, out))?;
        }
        Ok(())
    }
}

/// Opens for writing, and leaves what is there until there is something to replace it; a file that another option
/// has is an error.
fn open_once(
    files: &mut HashMap<(u64, u64), &'static str>,
    option: &'static str,
    path: &Path,
) -> Result<Output> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("cannot write {option} {}", path.display()))?;
    let kind = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    // Two reports into /dev/null are fine.
    if kind.is_file()
        && let Some(other) = files.insert((kind.dev(), kind.ino()), option)
    {
        bail!("{other} and {option} are the same file {}: give each its own", path.display());
    }
    Ok(Output { path: path.to_owned(), file })
}

/// The file without what was in it. A terminal or a pipe cannot be emptied, and need not be.
fn emptied(file: File) -> File {
    let _ = file.set_len(0);
    file
}

/// The summary for people, on stderr.
pub fn write_text(summary: &Summary, color: bool) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::io::stderr().lock());
    text::write(summary, &mut out, color)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tried_first() {
        let folder = std::env::temp_dir().join(format!("mmun-reports-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (a, b) = (folder.join("a"), folder.join("b"));
        assert!(Reports::open(Some(&a), Some(&b), None).unwrap().want_records());
        assert!(!Reports::open(Some(&a), None, None).unwrap().want_records());
        let same = Reports::open(Some(&a), None, Some(&folder.join("./a"))).unwrap_err();
        assert!(same.to_string().starts_with("--json and --report are the same file"), "{same}");
        let null = Path::new("/dev/null");
        assert!(Reports::open(Some(null), Some(null), None).is_ok());
        let error = Reports::open(None, Some(&folder.join("no/c")), None).unwrap_err();
        assert!(error.to_string().starts_with("cannot write --trace "), "{error}");
        assert!(Reports::open(None, None, Some(&folder)).is_err(), "a folder");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
