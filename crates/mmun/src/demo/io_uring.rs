//! Fixed buffers of `io_uring` whose memory changes: registered once, and through a cache that is told.

use anyhow::Context;
use mmu_notifier_primary::{Options, Primary};
use mmu_notifier_secondary::cache::{self, Access, Cache};
use mmu_notifier_secondary::io_uring::FixedBuffers;

use super::fixed::{Buffer, Child, Desk, FILE, LEN, Rights};
use crate::cli::IoUring;
use crate::page::{self, Page};
use crate::report::fit::folded;
use crate::report::paint::Tone;
use crate::report::units::count;

const WIDTH: usize = 80;
const LABEL: usize = 26;
const COLUMN: usize = 24;

/// What happens to the buffer between two reads.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    change: fn(&mut Buffer) -> anyhow::Result<Option<Child>>,
    rights: Rights,
}

const ROWS: &[Row] = &[
    Row { name: "nothing", change: |_| Ok(None), rights: Rights::ReadWrite },
    Row {
        name: "munmap, mmap",
        change: |buffer| buffer.map_anew().map(|()| None),
        rights: Rights::ReadWrite,
    },
    Row {
        name: "madvise(MADV_DONTNEED)",
        change: |buffer| buffer.discard().map(|()| None),
        rights: Rights::ReadWrite,
    },
    Row {
        name: "mremap elsewhere, mmap",
        change: |buffer| buffer.move_away().map(|()| None),
        rights: Rights::ReadWrite,
    },
    Row {
        name: "mprotect(PROT_READ)",
        change: |buffer| buffer.protect(Rights::ReadOnly).map(|()| None),
        rights: Rights::ReadOnly,
    },
    Row { name: "fork", change: |_| Child::new().map(Some), rights: Rights::ReadWrite },
];

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// The data is there.
    Right,
    /// Success was reported, and something else is there.
    Lost(u8),
    /// Success was reported, and data was written where nothing may be written.
    Trespass,
    /// It was refused, as it should be.
    Refused,
}

impl Read {
    fn is_right(self) -> bool {
        matches!(self, Read::Right | Read::Refused)
    }

    fn text(self) -> String {
        match self {
            Read::Right => format!("{}  right", FILE as char),
            Read::Lost(0) => "0  LOST".to_owned(),
            Read::Lost(byte) => format!("{}  LOST", byte as char),
            Read::Trespass => format!("{}  THROUGH PROTECTION", FILE as char),
            Read::Refused => "EFAULT  right".to_owned(),
        }
    }
}

/// Who finds the buffer for the second read.
enum Registered {
    Once,
    Through(Cache<FixedBuffers>),
}

/// Reads twice, and changes the buffer in between.
fn read_twice(row: &Row, desk: &mut Desk, registered: &Registered) -> anyhow::Result<Read> {
    let mut buffer = Buffer::new()?;
    if let Registered::Once = registered {
        desk.register(&buffer)?;
    }
    read(desk, registered, &buffer)?.context("the first read")?;
    let _child = (row.change)(&mut buffer)?;
    let result = read(desk, registered, &buffer)?;
    buffer.protect(Rights::ReadWrite)?;
    let byte = buffer.byte()?;
    Ok(match (result, row.rights) {
        (Ok(_), Rights::ReadOnly) => Read::Trespass,
        (Ok(LEN), Rights::ReadWrite) if byte == FILE => Read::Right,
        (Ok(_), Rights::ReadWrite) => Read::Lost(byte),
        (Err(error), Rights::ReadOnly) if error.raw_os_error() == Some(libc::EFAULT) => Read::Refused,
        (Err(error), _) => return Err(error).context(row.name),
    })
}

fn read(desk: &mut Desk, registered: &Registered, buffer: &Buffer) -> anyhow::Result<std::io::Result<usize>> {
    match registered {
        Registered::Once => desk.read_fixed(0, buffer),
        Registered::Through(cache) => match cache.get(buffer.range(), Access::Write) {
            Ok(registration) => desk.read_fixed(registration.handle().index(), buffer),
            // What cannot be registered is read into by its address.
            Err(_) => desk.read(buffer),
        },
    }
}

/// The reads of each row: registered once, and through a cache.
fn reads() -> anyhow::Result<Vec<[Read; 2]>> {
    // First, so that who has no io_uring gets to know that.
    drop(Desk::new()?);
    let primary = Primary::install(&Options::default()).context("cannot intercept our own system calls")?;
    let pair = |row: &Row| {
        let once = read_twice(row, &mut Desk::new()?, &Registered::Once)?;
        let mut desk = Desk::new()?;
        let options = cache::Options { entries: 16, ..cache::Options::default() };
        let cache = Cache::new(primary.space(), desk.fixed_buffers()?, options);
        let through = read_twice(row, &mut desk, &Registered::Through(cache))?;
        Ok([once, through])
    };
    ROWS.iter().map(pair).collect()
}

/// Runs the experiment and shows it; gives the exit status.
pub fn show(options: &IoUring) -> i32 {
    let reads = match reads() {
        Ok(reads) => reads,
        Err(error) => {
            crate::complain(&error);
            return 2;
        }
    };
    let mut page = Page::on_stdout(options.color);
    let written = write(&mut page, &reads).and_then(|()| page.flush());
    page::status(written.map(|()| i32::from(!is_as_it_should_be(&reads))))
}

fn is_as_it_should_be(reads: &[[Read; 2]]) -> bool {
    reads.iter().all(|[_, through]| through.is_right()) && reads.iter().any(|[once, _]| !once.is_right())
}

fn write(page: &mut Page, reads: &[[Read; 2]]) -> std::io::Result<()> {
    let question = format!(
        "A buffer is read into twice, as a fixed buffer of io_uring, from a file full of {}. In between its memory \
         changes, by a plain system call. What is in it after the second read, for which the kernel reports {} bytes \
         or the error named:",
        FILE as char,
        count(LEN as u64)
    );
    sentences(page, Tone::Plain, &question)?;
    page.line("")?;
    let paint = page.paint;
    let head = format!("{:<LABEL$}{:<COLUMN$}{}", "in between", "registered once", "through mmu-notifier");
    page.line(&paint.tone(Tone::Strong, &head))?;
    for (row, [once, through]) in ROWS.iter().zip(reads) {
        let tone = |read: &Read| if read.is_right() { Tone::Good } else { Tone::Bad };
        let cell = |read: &Read, width: usize| paint.tone(tone(read), &format!("{:<width$}", read.text()));
        page.line(&format!("{:<LABEL$}{}{}", row.name, cell(once, COLUMN), cell(through, 0)))?;
    }
    page.line("")?;
    let wrong = |which: usize| reads.iter().filter(|reads| !reads[which].is_right()).count();
    let verdict = match (wrong(0), wrong(1)) {
        (0, _) => "Nothing was lost without mmu-notifier: this kernel is not what this is about.".to_owned(),
        (lost, 0) => format!(
            "Registered once: {lost} of {} reads went wrong, without an error. Through mmu-notifier: none.",
            reads.len()
        ),
        (_, wrong) => format!("Through mmu-notifier, {wrong} reads went wrong. They should not have."),
    };
    let tone = if is_as_it_should_be(reads) { Tone::Good } else { Tone::Bad };
    sentences(page, tone, &verdict)
}

fn sentences(page: &mut Page, tone: Tone, text: &str) -> std::io::Result<()> {
    let paint = page.paint;
    let width = page.width.unwrap_or(WIDTH).min(WIDTH);
    folded(text, width).iter().try_for_each(|line| page.line(&paint.tone(tone, line)))
}
