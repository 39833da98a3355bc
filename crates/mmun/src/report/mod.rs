//! Reports: the same [`Summary`](crate::summary::Summary) for people, pictures, tools and scripts.
//!
//! | module | for | wants |
//! | --- | --- | --- |
//! | [`text`] | a person at the terminal | the summary |
//! | [`json`] | scripts, `docs/json.md` | the summary |
//! | [`html`] | a person with a browser, `docs/report.md` | the summary and every record, of which it keeps little |
//! | [`trace`] | Perfetto and `chrome://tracing` | every record, of which it keeps nothing |
//!
//! Nothing here reads the session or knows where a summary comes from. All names (programs, files,
//! symbols) are other people's text: each report makes them harmless in its own way, those for a terminal with
//! [`fit`]. [`paint`], [`bar`] and [`units`] are how text is written for people, also by the other commands.

mod audit;
pub mod bar;
mod check;
pub mod fit;
pub mod html;
pub mod json;
pub mod paint;
pub mod text;
pub mod trace;
pub mod units;
mod words;

#[cfg(test)]
mod sample;
