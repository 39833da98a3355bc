//! Where pressure is heard of: which sources there are, and which is the best one here.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::StartError;
use super::group::{Group, Version, number};
use super::watch::{Alarm, Killer, Watch};
use crate::gate::safe;

/// What says that memory runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel tells when the memory of a control group (version 1) grows over a threshold: `memory.usage_in_bytes` through
    /// `cgroup.event_control`. It does so while it charges the page, microseconds later.
    Threshold,
    /// The kernel stops whoever meets the limit of a control group (version 1) instead of killing, and tells:
    /// `memory.oom_control` with `oom_kill_disable`. Nobody can be too late. But it is for the whole group, so nobody chooses it
    /// but by name; and what the kernel charges for itself fails instead of waiting (short reads, `ENOMEM`).
    ///
    /// If nothing can be reaped any more and the group is still stopped, the killer is switched on again.
    OomControl,
    /// The kernel tells when the memory of a control group (version 2) grows over `memory.high`: `memory.events`.
    Events,
    /// The memory in use of a control group is read once a millisecond. Comes too late now and then.
    Polling,
    /// The kernel tells when tasks of the machine wait for memory: `/proc/pressure/memory`. A hint only: before a limit is met
    /// hardly anybody waits, and without `CAP_SYS_RESOURCE` it looks every two seconds.
    #[doc(alias = "PSI")]
    Pressure,
}

/// Which source a reaper listens to.
#[derive(Debug, Default)]
pub enum Trigger {
    /// The best there is: [`Threshold`](Source::Threshold), [`Events`](Source::Events), [`Polling`](Source::Polling),
    /// [`Pressure`](Source::Pressure).
    #[default]
    Best,
    /// This one.
    Source(Source),
    /// Whatever is read from a descriptor means pressure: an eventfd, or a pipe, of the caller's own.
    Descriptor(OwnedFd),
    /// Nothing: the program calls [`reap`](super::Reaper::reap).
    Hand,
}

/// Which source a reaper listens to, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Armed {
    /// The source; `None` if it was given a descriptor, or nothing.
    pub source: Option<Source>,
    /// The directory of the control group.
    pub group: Option<PathBuf>,
    /// From how many bytes in use on there is pressure, if that is known.
    pub level: Option<u64>,
    /// Sources that might be better, and why they are not used.
    pub passed_over: Vec<(Source, String)>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Threshold => "usage threshold",
            Source::OomControl => "oom control",
            Source::Events => "memory events",
            Source::Polling => "polling",
            Source::Pressure => "pressure stall information",
        })
    }
}

/// One line, and one for each source that was passed over.
impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => source.fmt(f)?,
            None => f.write_str("told by the program")?,
        }
        if let Some(group) = &self.group {
            write!(f, " of {}", group.display())?;
        }
        if let Some(level) = self.level {
            write!(f, " at {level} bytes")?;
        }
        self.passed_over.iter().try_for_each(|(source, why)| write!(f, "\nnot {source}: {why}"))
    }
}

/// Opens what `trigger` names. `group`: `None` for that of this process; `percent` of its limit is pressure.
pub(super) fn arm(trigger: Trigger, group: Option<&Path>, percent: u8) -> Result<(Armed, Watch), StartError> {
    let group = match group {
        Some(path) => Group::at(path),
        None => Group::of_this_process(),
    };
    let place = Place { group, percent };
    let none = Armed { source: None, group: None, level: None, passed_over: Vec::new() };
    match trigger {
        Trigger::Hand => Ok((none, Watch::default())),
        Trigger::Descriptor(descriptor) => {
            let alarm = Alarm::Given(descriptor);
            Ok((none, Watch { alarm: Some(alarm), ..Watch::default() }))
        }
        Trigger::Source(source) => {
            let watch = place.open(source).map_err(|why| StartError::Source { wanted: source, why })?;
            Ok((place.armed(source, &watch, Vec::new()), watch))
        }
        Trigger::Best => {
            let why = "it stops everybody in the group, so it is used if it is asked for".to_owned();
            let mut passed_over = vec![(Source::OomControl, why)];
            for source in [Source::Threshold, Source::Events, Source::Polling, Source::Pressure] {
                match place.open(source) {
                    Ok(watch) => return Ok((place.armed(source, &watch, passed_over), watch)),
                    Err(why) => passed_over.push((source, why)),
                }
            }
            Err(StartError::NoSource { passed_over })
        }
    }
}

struct Place {
    group: Option<Group>,
    percent: u8,
}

impl Place {
    fn armed(&self, source: Source, watch: &Watch, passed_over: Vec<(Source, String)>) -> Armed {
        let is_of_a_group = source != Source::Pressure;
        let group = self.group.as_ref().filter(|_| is_of_a_group).map(|group| group.path.clone());
        Armed { source: Some(source), group, level: watch.level(), passed_over }
    }

    fn group(&self, version: Option<Version>) -> Result<&Group, String> {
        let group = self.group.as_ref().ok_or("no memory control group with a limit")?;
        match version {
            Some(Version::V1) if group.version != Version::V1 => {
                Err("the control group is of version 2".into())
            }
            Some(Version::V2) if group.version != Version::V2 => {
                Err("the control group is of version 1".into())
            }
            _ => Ok(group),
        }
    }

    fn level(&self, group: &Group) -> u64 {
        group.limit / 100 * u64::from(self.percent)
    }

    /// Opens that source, or says why not.
    fn open(&self, source: Source) -> Result<Watch, String> {
        match source {
            Source::Threshold => {
                let group = self.group(Some(Version::V1))?;
                let (level, usage) = (self.level(group), open(&group.usage())?);
                let counter = counter()?;
                // One at the level, and more above it: who is over it once passes no threshold by growing on.
                const THRESHOLDS: u64 = 5;
                for step in 0..THRESHOLDS {
                    let bytes = level + (group.limit - level) / THRESHOLDS * step;
                    register(&group.path, &counter, &usage, &bytes.to_string())?;
                }
                let (alarm, usage) = (Some(Alarm::Counter(counter)), Some((usage, level)));
                Ok(Watch { alarm, usage, ..Watch::default() })
            }
            Source::OomControl => {
                let group = self.group(Some(Version::V1))?;
                let path = group.path.join("memory.oom_control");
                let control = open_writable(&path)?;
                let counter = counter()?;
                register(&group.path, &counter, &control, "")?;
                let killer = Killer::stop(control)
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                let (alarm, killer) = (Some(Alarm::Counter(counter)), Some(killer));
                Ok(Watch { alarm, killer, ..Watch::default() })
            }
            Source::Events => {
                let group = self.group(Some(Version::V2))?;
                let high = group.path.join("memory.high");
                number(&high).ok_or_else(|| format!("no limit in {}: set one", high.display()))?;
                let alarm = Some(Alarm::Notified(open(&group.path.join("memory.events"))?));
                Ok(Watch { alarm, ..Watch::default() })
            }
            Source::Polling => {
                let group = self.group(None)?;
                let usage = Some((open(&group.usage())?, self.level(group)));
                Ok(Watch { usage, every: Some(Duration::from_millis(1)), ..Watch::default() })
            }
            Source::Pressure => {
                let path = Path::new("/proc/pressure/memory");
                let file = open_writable(path)?;
                // A tenth of two seconds; anything finer needs a privilege. Ends with a zero, which the kernel overwrites.
                let trigger = b"some 200000 2000000\0";
                (&file)
                    .write_all(trigger)
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                Ok(Watch { alarm: Some(Alarm::Pressure(file)), ..Watch::default() })
            }
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

fn open_writable(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn counter() -> Result<safe::File, String> {
    safe::File::counter().map_err(|errno| format!("no eventfd: {}", io::Error::from_raw_os_error(errno.0)))
}

/// Makes the kernel count when something happens in a file of a group of the first version.
fn register(group: &Path, counter: &safe::File, file: &File, argument: &str) -> Result<(), String> {
    let path = group.join("cgroup.event_control");
    let line = format!("{} {} {argument}", counter.descriptor(), file.as_raw_fd());
    let written = OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.trim().as_bytes()));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a control group; nothing in it tells anybody anything.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str, files: &[(&str, &str)]) -> Directory {
            let path = std::env::temp_dir().join(format!("mmu-notifier-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            for (file, text) in files {
                std::fs::write(path.join(file), text).unwrap();
            }
            Directory(path)
        }

        fn arm(&self, trigger: Trigger) -> Result<(Armed, Watch), StartError> {
            arm(trigger, Some(&self.0), 80)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_best_there_is_is_chosen_and_the_rest_is_explained() {
        let v1 = [("memory.limit_in_bytes", "1000000"), ("memory.usage_in_bytes", "1")];
        let group = Directory::new("v1", &[&v1[..], &[("cgroup.event_control", "")]].concat());
        let (armed, watch) = group.arm(Trigger::Best).unwrap();
        assert_eq!((armed.source, armed.level), (Some(Source::Threshold), Some(800_000)));
        assert_eq!(watch.is_pressed(), Some(false));
        assert!(armed.to_string().contains("\nnot oom control: it stops everybody"), "{armed}");

        let group = Directory::new("v1-closed", &v1);
        let (armed, _) = group.arm(Trigger::Best).unwrap();
        assert_eq!(armed.source, Some(Source::Polling));
        let text = armed.to_string();
        assert!(
            text.contains("not usage threshold: cannot write") && text.contains("event_control"),
            "{text}"
        );
        assert!(text.contains("not memory events: the control group is of version 1"), "{text}");

        let v2 = [("memory.max", "1000000"), ("memory.current", "900000"), ("memory.events", "high 0\n")];
        let group = Directory::new("v2", &[&v2[..], &[("memory.high", "900000")]].concat());
        assert_eq!(group.arm(Trigger::Best).unwrap().0.source, Some(Source::Events));
        let group = Directory::new("v2-without-high", &[&v2[..], &[("memory.high", "max")]].concat());
        let (armed, watch) = group.arm(Trigger::Best).unwrap();
        assert_eq!((armed.source, watch.is_pressed()), (Some(Source::Polling), Some(true)));
        assert!(armed.to_string().contains("memory.high: set one"), "{armed}");
    }

    #[test]
    fn what_is_asked_for_and_is_not_there_is_an_error_that_says_so() {
        let group = Directory::new("none", &[]);
        let error = group.arm(Trigger::Source(Source::OomControl)).unwrap_err();
        assert_eq!(error.to_string(), "no oom control: no memory control group with a limit");
    }
}
