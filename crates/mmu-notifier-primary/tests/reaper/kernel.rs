//! The kernel's own reaper.
