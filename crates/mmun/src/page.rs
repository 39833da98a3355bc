//! Text on standard output: as wide as the terminal, in colour if that is wanted.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use crate::cli::Color;
use crate::report::paint::Paint;
use crate::signals;

/// Standard output.
#[derive(Debug)]
pub struct Page {
    out: BufWriter<StdoutLock<'static>>,
    /// The colours.
    pub paint: Paint,
    /// How many characters fit into a line; `None` if it is no terminal.
    pub width: Option<usize>,
}

impl Page {
    /// A page on standard output.
    pub fn on_stdout(color: Color) -> Page {
        let stdout = io::stdout();
        let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
        let paint = Paint::new(color.on(&stdout));
        Page { out: BufWriter::new(stdout.lock()), paint, width }
    }

    /// One line. A long one is left to the reader, who may have a pager.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Everything is out, for what is written elsewhere to come after it.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The exit status after writing; who has closed our stdout (`| head`) ends us as it ends everyone.
pub fn status(written: io::Result<i32>) -> i32 {
    match written {
        Ok(status) => status,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => signals::die_of(libc::SIGPIPE),
        Err(error) => {
            crate::complain(&anyhow::Error::new(error).context("cannot write to standard output"));
            2
        }
    }
}
