//! Where a run is reported to.
//!
//! All files are opened before the program starts: a wrong path costs nobody a long run.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::summary::{Caller, Record, Summary};

/// The reports of a run, besides the text on the terminal.
#[derive(Debug)]
pub struct Reports {
    json: Option<PathBuf>,
    trace: Option<PathBuf>,
    html: Option<PathBuf>,
}

impl Reports {
    /// Opens all of them. `json` may be `-` for stdout.
    pub fn open(json: Option<&Path>, trace: Option<&Path>, html: Option<&Path>) -> Result<Reports> {
        let json = json.map(|path| if path == "-" { Path::new("/dev/stdout") } else { path });
        let mut files = HashMap::new();
        for (option, path) in [("--json", json), ("--trace", trace), ("--report", html)] {
            let Some(path) = path else { continue };
            let file = create(path).with_context(|| format!("cannot write {option} {}", path.display()))?;
            let kind = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
            // Two reports into /dev/null are fine.
            if kind.is_file()
                && let Some(other) = files.insert((kind.dev(), kind.ino()), option)
            {
                bail!("{other} and {option} are the same file {}: give each its own", path.display());
            }
        }
        Ok(Reports {
            json: json.map(Path::to_owned),
            trace: trace.map(Path::to_owned),
            html: html.map(Path::to_owned),
        })
    }

    /// Whether single calls are to be recorded.
    pub fn want_records(&self) -> bool {
        self.trace.is_some() || self.html.is_some()
    }

    /// Takes one system call.
    pub fn record(&mut self, _record: &Record, _caller: &Caller) -> Result<()> {
        Ok(())
    }

    /// Writes what is written at the end.
    pub fn finish(self, _summary: &Summary, _callers: &[Caller]) -> Result<()> {
        let _ = self.json;
        Ok(())
    }
}

/// Opens for writing, and leaves what is there until there is something to replace it.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// The summary for people, on stderr.
pub fn write_text(summary: &Summary, _color: bool) -> std::io::Result<()> {
    eprintln!("{summary:#?}");
    Ok(())
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
