//! The hole between the event and the system call, step by step: in a cache that is told once, and closed.

mod timeline;
mod told_once;
mod watched;

use std::sync::{Arc, Barrier};
use std::thread;

use anyhow::{Context, ensure};
use mmu_notifier::{AddressSpace, Event};
use mmu_notifier_secondary::cache::{Access, Cache, Options};

use super::fixed::{Buffer, Desk, FILE, LEN, NEW};
use crate::cli::Hole;
use crate::page::{self, Page};
use crate::report::fit::folded;
use crate::report::paint::Tone;
use crate::report::units::count;
use timeline::{Step, Timeline, Who};
use told_once::ToldOnce;
use watched::{Pause, Watched};

const WIDTH: usize = 80;

/// How it went with one cache.
struct Course {
    title: &'static str,
    steps: Vec<Step>,
    /// What is in the buffer after a read of the file.
    byte: u8,
    /// Whether this is how it should go.
    is_as_it_should_be: bool,
}

/// Thread A does `change` with `between` in its middle, when everybody has been told.
fn change(
    space: &AddressSpace,
    timeline: &Timeline,
    buffer: &Buffer,
    between: impl FnOnce(),
) -> anyhow::Result<()> {
    timeline.say(Who::A, "is about to munmap: tells everybody");
    space.invalidate(buffer.range(), Event::Unmap, || {
        between();
        buffer.map_anew()?;
        timeline.say(Who::A, "munmap, mmap: other memory, full of N");
        Ok(())
    })
}

/// Thread A reads the file into the buffer, as registered in `slot`; what is there then.
fn read(desk: &mut Desk, timeline: &Timeline, buffer: &Buffer, slot: u16) -> anyhow::Result<u8> {
    let bytes = desk.read_fixed(slot, buffer)?.context("reading into a fixed buffer")?;
    timeline.say(Who::A, format!("reads the file: {} bytes read", count(bytes as u64)));
    ensure!(bytes == LEN, "{bytes} bytes of {LEN} read");
    let byte = buffer.byte()?;
    match byte {
        FILE => timeline.say_well(Who::A, "the buffer is full of B: right"),
        byte => timeline.say_badly(Who::A, format!("the buffer is full of {}: STALE", byte as char)),
    }
    Ok(byte)
}

/// Runs `work` as thread B.
fn thread_b<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> anyhow::Result<thread::ScopedJoinHandle<'scope, T>> {
    thread::Builder::new()
        .name(Who::B.name().to_owned())
        .spawn_scoped(scope, work)
        .context("cannot start a thread")
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The peers' way.
fn told_once() -> anyhow::Result<Course> {
    let (mut desk, buffer, space) = (Desk::new()?, Buffer::new()?, AddressSpace::new());
    let timeline = Arc::new(Timeline::default());
    let cache = Arc::new(ToldOnce::new(desk.fixed_buffers()?, timeline.clone()));
    let _subscription = space.subscribe(cache.clone());
    cache.get(buffer.range())?;
    let turn = Barrier::new(2);
    thread::scope(|scope| {
        let other = thread_b(scope, || {
            turn.wait();
            let registered = cache.get(buffer.range());
            turn.wait();
            registered
        })?;
        change(&space, &timeline, &buffer, || {
            turn.wait();
            turn.wait();
        })?;
        joined(other)
    })?;
    let slot = cache.get(buffer.range())?;
    let byte = read(&mut desk, &timeline, &buffer, slot)?;
    Ok(Course {
        title: "A cache that is told once, before the call:",
        steps: timeline.steps(),
        byte,
        is_as_it_should_be: byte == NEW,
    })
}

fn cache(
    desk: &Desk,
    space: &AddressSpace,
    timeline: &Arc<Timeline>,
    pause: Option<Pause>,
) -> anyhow::Result<Cache<Watched>> {
    let watched = Watched::new(desk.fixed_buffers()?, timeline.clone(), pause);
    Ok(Cache::new(space, watched, Options { entries: 16, ..Options::default() }))
}

/// Thread A finds what is registered, and reads.
fn find_and_read(
    desk: &mut Desk,
    timeline: &Timeline,
    buffer: &Buffer,
    cache: &Cache<Watched>,
) -> anyhow::Result<u8> {
    let registration = cache.get(buffer.range(), Access::Write)?;
    timeline.say(Who::A, format!("wants the buffer: {} is in the cache", registration.handle()));
    read(desk, timeline, buffer, registration.handle().index())
}

/// Thread B comes when everybody has been told.
fn in_the_middle() -> anyhow::Result<Course> {
    let (mut desk, buffer, space) = (Desk::new()?, Buffer::new()?, AddressSpace::new());
    let timeline = Arc::new(Timeline::default());
    let cache = cache(&desk, &space, &timeline, None)?;
    drop(cache.get(buffer.range(), Access::Write)?);
    let turn = Barrier::new(2);
    thread::scope(|scope| {
        let other = thread_b(scope, || {
            turn.wait();
            timeline.say(Who::B, "wants the buffer: it is changing, waits");
            turn.wait();
            cache.get(buffer.range(), Access::Write).map(drop).context("thread B")
        })?;
        change(&space, &timeline, &buffer, || {
            turn.wait();
            turn.wait();
        })?;
        joined(other)
    })?;
    let byte = find_and_read(&mut desk, &timeline, &buffer, &cache)?;
    let registered = cache.stats().registered;
    Ok(Course {
        title: "This library's, which is told before and after. Who comes in between waits:",
        steps: timeline.steps(),
        byte,
        is_as_it_should_be: byte == FILE && registered == 2,
    })
}

/// Thread B has begun when everybody is told.
fn begun_before() -> anyhow::Result<Course> {
    let (mut desk, buffer, space) = (Desk::new()?, Buffer::new()?, AddressSpace::new());
    let timeline = Arc::new(Timeline::default());
    let pause = Pause::default();
    let cache = cache(&desk, &space, &timeline, Some(pause.clone()))?;
    thread::scope(|scope| {
        let other =
            thread_b(scope, || cache.get(buffer.range(), Access::Write).map(drop).context("thread B"))?;
        pause.until_reached();
        let changed = change(&space, &timeline, &buffer, || ());
        pause.end();
        joined(other).and(changed)
    })?;
    let byte = find_and_read(&mut desk, &timeline, &buffer, &cache)?;
    let retries = cache.stats().retries;
    Ok(Course {
        title: "And who had begun before is refused, and tries again:",
        steps: timeline.steps(),
        byte,
        is_as_it_should_be: byte == FILE && retries == 1,
    })
}

/// Runs the experiment and shows it; gives the exit status.
pub fn show(options: &Hole) -> i32 {
    let courses = told_once().and_then(|first| Ok([first, in_the_middle()?, begun_before()?]));
    let courses = match courses {
        Ok(courses) => courses,
        Err(error) => {
            crate::complain(&error);
            return 2;
        }
    };
    let mut page = Page::on_stdout(options.color);
    let written = write(&mut page, &courses).and_then(|()| page.flush());
    let is_as_it_should_be = courses.iter().all(|course| course.is_as_it_should_be);
    page::status(written.map(|()| i32::from(!is_as_it_should_be)))
}

fn write(page: &mut Page, courses: &[Course; 3]) -> std::io::Result<()> {
    let question = "Two threads use a buffer through a registration cache: fixed buffers of io_uring, a file full of B. \
                    Thread A gives the memory back, and maps other memory there. Thread B wants the buffer just then. \
                    Time goes downwards.";
    sentences(page, Tone::Plain, question)?;
    for course in courses {
        page.line("")?;
        sentences(page, Tone::Strong, course.title)?;
        page.line(&page.paint.tone(Tone::Faint, &timeline::head()))?;
        for step in &course.steps {
            page.line(&step.line(page.paint))?;
        }
    }
    page.line("")?;
    let text = |course: &Course| match course.byte {
        FILE => "right",
        _ => "STALE",
    };
    let [once, middle, before] = courses.each_ref().map(text);
    let is_as_it_should_be = courses.iter().all(|course| course.is_as_it_should_be);
    let verdict = format!("Told once: {once}. Told before and after: {middle}, {before}.");
    sentences(page, if is_as_it_should_be { Tone::Good } else { Tone::Bad }, &verdict)?;
    match is_as_it_should_be {
        true => Ok(()),
        false => sentences(page, Tone::Bad, "It did not go as it should."),
    }
}

fn sentences(page: &mut Page, tone: Tone, text: &str) -> std::io::Result<()> {
    let paint = page.paint;
    let width = page.width.unwrap_or(WIDTH).min(WIDTH);
    folded(text, width).iter().try_for_each(|line| page.line(&paint.tone(tone, line)))
}
