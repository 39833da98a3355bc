//! All subscribers of the kernel, and the registration cache, told of the changes of one live process: this one.
//!
//! `cargo run --release -p mmu-notifier-secondary --example together [SECONDS]`
//!
//! Its memory is changed at random by several threads, in every way, by plain system calls; other threads use it through each
//! device; more devices come and go. Whatever a device finds is compared, while it uses it, with the page that the kernel has
//! there. Fails if one ever was another, or if anything is left open at the end.

mod all;

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |text| text.parse());
    let Ok(seconds) = seconds else {
        eprintln!("usage: together [SECONDS]");
        return ExitCode::from(2);
    };
    match all::run(Duration::from_secs(seconds)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
