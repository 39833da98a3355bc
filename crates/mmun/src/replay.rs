//! `mmun replay`: recorded traces through the model, step by step.
//!
//! | file | what |
//! | --- | --- |
//! | `source.rs` | where a trace comes from: a file, stdin, the golden archive |
//! | `golden.rs` | the golden archive: what is in it, what it is called |
//! | `text.rs` | a replay as a person reads it |

mod golden;
mod source;
mod text;

use std::io;

use anyhow::Error;
use mmu_notifier_model::{Replay as Replaying, Trace};

use crate::cli::Replay;
use crate::complain;
use crate::page::{self, Page};
use text::{Count, Total};

/// Replays, and gives the exit status: 0 if all is as recorded, 1 if something differs, 2 for what is no
/// trace.
pub fn replay(options: &Replay) -> i32 {
    let mut page = Page::on_stdout(options.color);
    let written = match options.list {
        true => text::list(&mut page, &golden::all()).map(|()| 0),
        false => every(options, &mut page),
    };
    page::status(written.and_then(|status| page.flush().map(|()| status)))
}

fn every(options: &Replay, page: &mut Page) -> io::Result<i32> {
    let mut total = Total::default();
    for name in &options.files {
        let pieces = match source::read(name) {
            Ok(pieces) => pieces,
            Err(error) => {
                refuse(page, &error)?;
                total.unreadable += 1;
                continue;
            }
        };
        for piece in pieces {
            match piece.trace() {
                Ok(trace) => {
                    if total.traces > 0 && !options.quiet {
                        page.line("")?;
                    }
                    total.add(one(options, page, &trace, piece.lines_before)?);
                }
                Err(error) => {
                    refuse(page, &error.into())?;
                    total.unreadable += 1;
                }
            }
        }
    }
    if total.traces > 1 && !options.quiet {
        page.line("")?;
    }
    if total.traces > 1 || total.traces == 1 && options.quiet {
        text::total(page, total)?;
    }
    Ok(match total {
        Total { unreadable: 1.., .. } => 2,
        Total { differing: 1.., .. } => 1,
        _ => 0,
    })
}

fn refuse(page: &mut Page, error: &Error) -> io::Result<()> {
    page.flush()?;
    complain(error);
    Ok(())
}

/// Replays one trace that begins `lines_before` lines into its file.
fn one(options: &Replay, page: &mut Page, trace: &Trace, lines_before: usize) -> io::Result<Count> {
    let kernel = options.kernel.unwrap_or(trace.header.kernel);
    let mut replay = Replaying::new(trace, kernel);
    if !options.quiet {
        text::headline(page, trace, kernel)?;
    }
    let mut count = Count::default();
    if let Some(mut mismatch) = replay.header() {
        mismatch.line += lines_before;
        count.observations += 1;
        match options.quiet {
            true => text::mismatches(page, &[mismatch])?,
            false => text::header(page, &mismatch)?,
        }
    }
    for mut step in replay.by_ref() {
        for mismatch in &mut step.mismatches {
            mismatch.line += lines_before;
        }
        count.steps += 1;
        count.differing += u64::from(!step.mismatches.is_empty());
        count.observations += step.mismatches.len() as u64;
        let line = step.line.number + lines_before;
        match options.quiet {
            true => text::mismatches(page, &step.mismatches)?,
            false => text::step(page, line, &step)?,
        }
    }
    if !options.quiet {
        text::result(page, trace.header.kernel, count)?;
        text::balance(page, &replay.machine().balances())?;
    }
    Ok(count)
}
