//! Any bytes, read as a trace: never a panic, and an error says where. What can be read is the same when it
//! is written and read again, and can be replayed as every kernel.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

#[path = "../../crates/mmu-notifier-model/tests/it/reading.rs"]
mod reading;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    // What is no text is refused before it comes to the reader.
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    reading::any_text(text).unwrap_or_else(|what| panic!("{what}"));
    Corpus::Keep
});
