//! The doctor's child: a program that makes every kind of call, and is told of what is announced.

use std::io::Write;

use anyhow::Result;
use mmu_notifier::{AddressSpace, Change, Subscriber};
use mmu_notifier_primary::probe::{SHOTS, Scope, Shot, fire, fire_in_net, time};
use mmu_notifier_primary::userfault::Net;

use super::What;
use super::findings::{Finding, Findings, Origin, Place, Time};
use super::hook::{self, Told};
use super::{origins, others};

static TOLD: Told = Told::new();

/// Makes the calls, writes what was found to standard output.
pub fn be(what: What) -> Result<()> {
    let mut findings = Findings { hooked: hook::is_preloaded(), ..Findings::default() };
    if findings.hooked {
        hook::subscribe(&TOLD)?;
    }
    match what {
        What::All => examine(&mut findings)?,
        What::Net => findings.calls = in_a_net()?,
        What::Times => findings.times = times([Origin::Libc, Origin::Syscall]),
        What::MadeTimes => {
            origins::make_code()?;
            findings.times = times([Origin::Made; 2]);
        }
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &findings)?;
    out.flush()?;
    Ok(())
}

fn examine(findings: &mut Findings) -> Result<()> {
    findings.notes = hook::check()?;
    origins::make_code()?;
    let (loaded, library) = others::load(&TOLD)?;
    for origin in Origin::ALL {
        let outcomes = SHOTS.iter().filter_map(|shot| fire(shot, origins::make(origin), &TOLD.watch));
        findings.calls.extend(outcomes.map(|outcome| Finding::new(origin, &outcome, place(outcome.site))));
    }
    let others = [
        others::free(&TOLD)?,
        others::thread(&TOLD)?,
        loaded,
        others::unload(&TOLD, library),
        others::exec()?,
        others::exit()?,
    ];
    findings.others.extend(others);
    findings.alone = Some(others::run_alone()?);
    for note in hook::check()? {
        if !findings.notes.contains(&note) {
            findings.notes.push(note);
        }
    }
    Ok(())
}

/// Calls of which nobody is told but by a net of userfaultfd; none if there is no such thing.
fn in_a_net() -> Result<Vec<Finding>> {
    struct Caught;
    impl Subscriber for Caught {
        fn start(&self, change: &Change) {
            TOLD.watch.start(&change.range(), || 0);
        }
        fn end(&self, change: &Change) {
            TOLD.watch.end(&change.range());
        }
    }
    let space = AddressSpace::new();
    let _subscription = space.subscribe(Caught);
    origins::make_code()?;
    let unmap = SHOTS.iter().find(|shot| shot.name == "munmap");
    // A net for each: it announces again what was discarded a moment ago, where there is something else by now.
    let fire = |shot| {
        let net = Net::new(&space).ok()?;
        let fire = |shot| fire_in_net(shot, origins::make(Origin::Made), &TOLD.watch, &net);
        // Its thread maps memory when it begins to run: not where something has just gone.
        unmap.and_then(fire);
        fire(shot)
    };
    let outcomes = SHOTS.iter().filter_map(fire);
    Ok(outcomes.map(|outcome| Finding::new(Origin::Made, &outcome, None)).collect())
}

/// How long the calls take, by the first of these that offers it.
fn times([first, second]: [Origin; 2]) -> Vec<Time> {
    let took = |shot: &Shot| {
        let rounds = if shot.scope == Scope::Process || shot.name.contains("COLLAPSE") { 31 } else { 201 };
        let by = |origin| time(shot, origins::make(origin), rounds);
        let ns = by(first).or_else(|| by(second))?;
        Some(Time { event: shot.name.to_owned(), ns })
    };
    SHOTS.iter().filter_map(took).collect()
}

/// Which file an address is in.
pub fn place(address: usize) -> Option<Place> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok().filter(|_| address != 0)?;
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        let offset = words.nth(1).and_then(hex)?;
        let file = words.skip(2).collect::<Vec<_>>().join(" ");
        (start..end).contains(&address).then_some(Place { file, offset: address - start + offset })
    })
}
