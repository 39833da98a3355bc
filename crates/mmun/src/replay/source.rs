//! Where a trace comes from: a file (compressed or not), stdin, the golden archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::bufread::MultiGzDecoder;
use mmu_notifier_model::{Trace, TraceError, split};

use super::golden;

/// The most that is read; all golden traces together have less than a tenth of it.
const LIMIT: u64 = 64 << 20;

/// The text of one trace, and where it lies in its file.
#[derive(Debug)]
pub(super) struct Piece {
    file: String,
    pub(super) lines_before: usize,
    text: String,
}

impl Piece {
    /// Reads the trace, and whether what it does can be done at all.
    pub(super) fn trace(&self) -> Result<Trace, TraceError> {
        let checked = Trace::read(&self.file, &self.text).and_then(|trace| trace.check().map(|()| trace));
        checked.map_err(|error| TraceError { line: error.line + self.lines_before, ..error })
    }
}

/// The traces of a file, one after the other.
pub(super) fn read(name: &OsStr) -> Result<Vec<Piece>> {
    if let Some(golden) = name.to_str().and_then(|name| name.strip_prefix("golden:")) {
        let traces = golden::named(golden)?.into_iter();
        return Ok(traces.map(|(file, text)| Piece { file, lines_before: 0, text }).collect());
    }
    let (file, bytes) = match name == "-" {
        true => ("stdin".to_owned(), bytes_of(io::stdin().lock())),
        false => (Path::new(name).display().to_string(), open(Path::new(name)).and_then(bytes_of)),
    };
    let text = text_of(&file, bytes.with_context(|| file.clone())?)?;
    let mut lines_before = 0;
    let piece = |text: &str| {
        let piece = Piece { file: file.clone(), lines_before, text: text.to_owned() };
        lines_before += text.lines().count();
        piece
    };
    Ok(split(&text).into_iter().map(piece).collect())
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!("there is no such file; golden:NAME is a golden trace"),
        _ => error.into(),
    })?;
    if file.metadata()?.is_dir() {
        bail!("it is a directory; give the traces in it");
    }
    Ok(file)
}

fn bytes_of(mut file: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.by_ref().take(LIMIT + 1).read_to_end(&mut bytes).context("cannot read it")?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut packed = BufReader::new(bytes.as_slice().chain(file));
        let mut unpacked = Vec::new();
        let damaged = "the compressed data are damaged or cut off";
        MultiGzDecoder::new(&mut packed).take(LIMIT + 1).read_to_end(&mut unpacked).context(damaged)?;
        bytes = unpacked;
    }
    if bytes.len() as u64 > LIMIT {
        bail!("more than {} MiB are too much for a trace", LIMIT >> 20);
    }
    Ok(bytes)
}

fn text_of(file: &str, bytes: Vec<u8>) -> Result<String, TraceError> {
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
        let problem = format!("byte {column} of the line is not UTF-8");
        TraceError { file: file.to_owned(), line, field: String::new(), problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_none_is_found() {
        let error = text_of("f", b"first\nsec\xffond".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "f:2: byte 4 of the line is not UTF-8");
    }
}
