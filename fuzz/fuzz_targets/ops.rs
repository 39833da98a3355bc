//! Any operations, under all settings of the model: never a panic, and what is impossible changes nothing.
//! Operations that keep the rules: the repaired kernel keeps the invariants.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/mmu-notifier-model/tests/it/bystander.rs"]
mod bystander;
#[path = "../../crates/mmu-notifier-model/tests/it/random.rs"]
mod random;

fuzz_target!(|bytes: &[u8]| {
    random::any_operations(bytes).unwrap_or_else(|what| panic!("{what}"));
    random::lawful_operations(bytes).unwrap_or_else(|what| panic!("{what}"));
});
