//! The registration cache beside its peers: the same work on all of them, in turn, in one process.
//!
//! ```text
//! peers [ROUNDS [THREADS [COUNT...]]]    everything, or cells of 1 or 2 threads only (0: both), or with so many entries
//! peers bytes NAME LEN STRIDE COUNT      resident bytes an entry, of one contender in a process of its own
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::cells::{Cell, cells};
use crate::contenders::Contender;
use crate::contenders::floor::{Count, Fence};
use crate::contenders::maps::{Ranges, Skip, Tree};
use crate::contenders::ours::Ours;
#[cfg(ucx)]
use crate::contenders::ucx::{Ucx, version, without_hooks};
use crate::layout::Layout;
use crate::measure::{Distance, Helper};

mod cells;
mod contenders;
mod layout;
mod measure;

const OURS: &str = "ours";

const ROUNDS: usize = 60;
const COUNTS: [usize; 4] = [1, 1_000, 100_000, 1_000_000];

/// Rounds end when a table has taken so long: where other work runs most of it is waiting.
const LIMIT: Duration = Duration::from_secs(16);
/// No further table is begun after that.
const WHOLE: Duration = Duration::from_secs(240);
/// Undisturbed windows without which a figure says nothing.
const ENOUGH: usize = 5;

/// One contender, whatever its type.
struct Peer {
    name: &'static str,
    cells: fn(&Layout, Option<&Arc<Helper>>) -> Vec<Cell>,
    bytes: fn(&Layout) -> Result<f64, Box<dyn Error>>,
}

impl Peer {
    fn of<C: Contender>() -> Peer {
        Peer { name: C::NAME, cells: cells::<C>, bytes: bytes::<C> }
    }
}

fn peers() -> Vec<Peer> {
    vec![
        Peer::of::<Ours>(),
        #[cfg(ucx)]
        Peer::of::<Ucx>(),
        Peer::of::<Tree>(),
        Peer::of::<Ranges>(),
        Peer::of::<Skip>(),
        Peer::of::<Count>(),
        Peer::of::<Fence>(),
    ]
}

/// The memory of this process. The short way, `/proc/self/statm`, may be off by a hundred pages.
fn resident() -> Result<usize, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).ok_or("smaps_rollup has no Rss")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<usize>()? * 1024)
}

fn bytes<C: Contender>(layout: &Layout) -> Result<f64, Box<dyn Error>> {
    resident()?;
    let before = resident()?;
    let contender = C::filled(layout);
    let after = resident()?;
    drop(contender);
    Ok((after.saturating_sub(before)) as f64 / layout.count as f64)
}

/// Nothing if there are too few to say anything.
fn median(mut values: Vec<f64>, enough: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    if values.len() < enough { None } else { values.get(values.len() / 2).copied() }
}

/// Figures by cell, in the order of the cells, and by contender.
type Table = Vec<(String, Vec<Option<f64>>)>;

/// All cells of all contenders in turn, forwards and backwards.
fn measure(
    peers: &[Peer],
    layout: &Layout,
    helper: Option<&Arc<Helper>>,
    threads: usize,
    rounds: usize,
) -> Table {
    let mut all: Vec<_> = peers.iter().map(|peer| (peer.cells)(layout, helper)).collect();
    all.iter_mut().for_each(|cells| cells.retain(|cell| threads == 0 || cell.threads == threads));
    let names: Vec<_> = all[0].iter().map(|cell| cell.names.clone()).collect();
    // Number of the cell, of the figure, distance, contender.
    let mut seen: BTreeMap<(usize, usize, Distance), Vec<Vec<f64>>> = BTreeMap::new();
    let began = Instant::now();
    for round in 0..rounds {
        if round >= ENOUGH && began.elapsed() > LIMIT {
            println!("{round} rounds instead of {rounds}, for lack of time");
            break;
        }
        for at in 0..names.len() {
            let mut turn: Vec<_> = all.iter_mut().map(|cells| &mut cells[at]).enumerate().collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for (who, cell) in turn {
                let Some((distance, values)) = cell.run.as_mut().and_then(|run| run()) else {
                    continue;
                };
                for (figure, value) in values.into_iter().enumerate() {
                    let row = seen.entry((at, figure, distance));
                    row.or_insert_with(|| vec![Vec::new(); peers.len()])[who].push(value);
                }
            }
        }
    }
    let mut table = Table::new();
    for ((at, figure, distance), row) in seen {
        let name = &names[at][figure];
        let name = match distance {
            Distance::None => name.clone(),
            Distance::Near => format!("{name}/near"),
            Distance::Far => format!("{name}/far"),
        };
        let row: Vec<_> = row.into_iter().map(|values| median(values, ENOUGH.min(rounds))).collect();
        if row.iter().any(Option::is_some) {
            table.push((name, row));
        }
    }
    table
}

/// Each contender in a process of its own, as memory that was freed is used again.
fn memory(peers: &[Peer], counts: &[usize]) -> Result<Table, Box<dyn Error>> {
    let mut table = Table::new();
    let (small, large) = (4 << 10, 2 << 20);
    let most = counts.iter().copied().max().unwrap_or(0);
    for (name, len, stride, count) in [
        ("4-KiB/every-8-KiB", small, 2 * small, most),
        ("4-KiB/every-64-KiB", small, 64 << 10, most.min(100_000)),
        ("4-KiB/every-2-MiB", small, large, most.min(100_000)),
        ("2-MiB/every-4-MiB", large, 2 * large, most),
    ] {
        let mut row = Vec::new();
        for peer in peers {
            let output = Command::new(env::current_exe()?)
                .args(["bytes", peer.name])
                .args([len, stride, count].map(|number| number.to_string()))
                .output()?;
            let text = String::from_utf8(output.stdout)?;
            row.push(text.trim().parse().ok());
        }
        table.push((format!("bytes/{count}/{name}"), row));
    }
    Ok(table)
}

fn print(peers: &[Peer], table: &Table) {
    print!("{:<44}", "");
    peers.iter().for_each(|peer| print!(" {:>11}", peer.name));
    println!();
    for (name, row) in table {
        print!("{name:<44}");
        for figure in row {
            match figure {
                Some(figure) if *figure < 100.0 => print!(" {figure:>11.1}"),
                Some(figure) => print!(" {figure:>11.0}"),
                None => print!(" {:>11}", "-"),
            }
        }
        println!();
    }
    println!();
}

/// Ours to each peer, and to what is possible.
fn print_ratios(peers: &[Peer], table: &Table) {
    let Some(ours) = peers.iter().position(|peer| peer.name == OURS) else {
        return;
    };
    for (name, row) in table {
        for (peer, figure) in peers.iter().zip(row).filter(|(peer, _)| peer.name != OURS) {
            if let (Some(ours), Some(theirs)) = (row[ours], figure) {
                println!("ratio {name}/ours-to-{} {:.3}", peer.name, ours / theirs);
            }
        }
    }
}

fn print_machine() {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("processor {}, Linux {}", model.trim_start_matches(['\t', ':', ' ']), kernel.trim());
    #[cfg(ucx)]
    println!("UCX {}", version());
    #[cfg(not(ucx))]
    println!("SKIPPED: UCX, as this was built without its headers (Debian's libucx-dev)");
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn main() -> Result<(), Box<dyn Error>> {
    #[cfg(ucx)]
    without_hooks()?;
    let peers = peers();
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let ["bytes", name, len, stride, count] = *arguments {
        let layout = Layout::new(number(len)?, number(stride)?, number(count)?);
        let peer = peers
            .iter()
            .find(|peer| peer.name == name)
            .ok_or_else(|| format!("nobody is called `{name}`"))?;
        println!("{:.1}", (peer.bytes)(&layout)?);
        return Ok(());
    }
    let rounds = arguments.first().map_or(Ok(ROUNDS), |text| number(text))?.max(2);
    let threads = arguments.get(1).map_or(Ok(0), |text| number(text))?;
    let counts: Vec<usize> = match arguments.get(2..) {
        Some(counts @ [_, ..]) => counts.iter().map(|text| number(text)).collect::<Result<_, _>>()?,
        _ => COUNTS.into(),
    };

    print_machine();
    let helper = Helper::start().map(Arc::new);
    if helper.is_none() {
        println!("SKIPPED: all cells of two threads, as there is one processor");
    }
    println!("nanoseconds an operation, of a thread; medians of {rounds} windows\n");
    let began = Instant::now();
    let mut whole = Table::new();
    for (size, len) in [("4-KiB", 4 << 10), ("2-MiB", 2 << 20)] {
        for &count in &counts {
            if began.elapsed() > WHOLE {
                println!("SKIPPED: {size}/{count}, for lack of time");
                continue;
            }
            let layout = Layout::new(len, 2 * len, count);
            let mut table = measure(&peers, &layout, helper.as_ref(), threads, rounds);
            table.iter_mut().for_each(|(name, _)| *name = format!("{size}/{count}/{name}"));
            print(&peers, &table);
            whole.append(&mut table);
        }
    }
    println!("resident bytes an entry, each contender in a process of its own\n");
    let mut table = memory(&peers, &counts)?;
    print(&peers, &table);
    whole.append(&mut table);
    print_ratios(&peers, &whole);
    Ok(())
}
