//! What two threads do, in the order in which they do it.

use std::sync::{Mutex, PoisonError};

use crate::report::paint::{Paint, Tone};

/// How wide the column of thread A is.
const COLUMN: usize = 38;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    A,
    B,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Who::A => "thread A",
            Who::B => "thread B",
        }
    }

    /// The calling thread.
    pub fn is_calling() -> Who {
        match std::thread::current().name() {
            Some(name) if name == Who::B.name() => Who::B,
            _ => Who::A,
        }
    }
}

/// Something that one of them did.
#[derive(Clone, Debug)]
pub struct Step {
    who: Who,
    tone: Tone,
    text: String,
}

impl Step {
    /// In the column of its thread.
    pub fn line(&self, paint: Paint) -> String {
        let indent = match self.who {
            Who::A => 2,
            Who::B => 2 + COLUMN,
        };
        format!("{}{}", " ".repeat(indent), paint.tone(self.tone, &self.text))
    }
}

/// The line above the steps.
pub fn head() -> String {
    format!("  {:<COLUMN$}{}", Who::A.name(), Who::B.name())
}

/// Steps, as they come.
#[derive(Debug, Default)]
pub struct Timeline {
    steps: Mutex<Vec<Step>>,
}

impl Timeline {
    pub fn say(&self, who: Who, text: impl Into<String>) {
        self.add(who, Tone::Plain, text.into());
    }

    pub fn say_well(&self, who: Who, text: impl Into<String>) {
        self.add(who, Tone::Good, text.into());
    }

    pub fn say_badly(&self, who: Who, text: impl Into<String>) {
        self.add(who, Tone::Bad, text.into());
    }

    fn add(&self, who: Who, tone: Tone, text: String) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(Step { who, tone, text });
    }

    /// What was done so far.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
