//! All subscribers together, for a few seconds: the example `together`, whose process is this one.

#[path = "../examples/together/all/mod.rs"]
mod all;

use std::time::Duration;

/// `MMU_STRESS_SECONDS` is how long it takes (`ci/together.sh`).
#[test]
fn nothing_stale_is_used_and_nothing_is_left_open() {
    let seconds = std::env::var("MMU_STRESS_SECONDS").map_or(Ok(5), |text| text.parse());
    let report = all::run(Duration::from_secs(seconds.expect("MMU_STRESS_SECONDS is a number of seconds")));
    eprintln!("{}", report.expect("all came out even"));
}
