//! The cure, with this process's own system calls intercepted: nobody announces anything by hand. A process has one
//! primary MMU for its whole life, so each test has a process of its own.

use mmu_notifier_primary::{Options, Primary};

use crate::world::World;
use crate::{cure, own_process, pins, storm};

fn intercepted(test: &str, inside: impl FnOnce(&World)) {
    own_process::run(
        &format!("intercepted::{test}"),
        |_| (),
        || {
            let primary = Primary::install(&Options::default()).expect("installed");
            inside(&World::Intercepted(primary.space().clone()));
        },
    );
}

#[test]
fn what_is_read_is_there() {
    intercepted("what_is_read_is_there", cure::what_is_read_is_there);
}

#[test]
fn what_is_written_is_what_is_there() {
    intercepted("what_is_written_is_what_is_there", cure::what_is_written_is_what_is_there);
}

#[test]
fn a_child_has_no_part_in_the_cache() {
    intercepted("a_child_has_no_part_in_the_cache", cure::a_child_has_no_part_in_the_cache);
}

#[test]
fn under_load_every_byte_is_right() {
    intercepted("under_load_every_byte_is_right", |world| storm::storm("intercepted", world));
}

#[test]
fn under_load_what_is_held_stays() {
    intercepted("under_load_what_is_held_stays", |world| pins::storm("intercepted", world));
}
