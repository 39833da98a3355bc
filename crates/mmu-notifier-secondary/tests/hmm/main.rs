//! The behaviours of the kernel's own tests of HMM (`tools/testing/selftests/mm/hmm-tests.c`), under their names, by a
//! [`Mirror`](mmu_notifier_secondary::mirror::Mirror) of real memory of this process.
//!
//! | file | what |
//! | --- | --- |
//! | `buffer.rs` | memory of each kind, and this process's page table |
//! | `access.rs` | a device at the program's memory: reading, writing, rights, children, tearing down, snapshots |
//! | `device_memory.rs`, `alone.rs` | a device with memory of its own, and with pages for itself: migration, exclusive access |
//! | `storm.rs` | everything at once |
//!
//! Each runs with its changes in brackets, and in an intercepted process, where nobody announces anything by hand.

mod access;
mod alone;
mod buffer;
#[expect(dead_code, reason = "one kind of child is not needed here")]
#[path = "../io_uring/child.rs"]
mod child;
mod device_memory;
#[path = "../io_uring/own_process.rs"]
mod own_process;
mod storm;
#[path = "../io_uring/world.rs"]
mod world;

macro_rules! behaviours {
    ($($module:ident::$name:ident,)*) => {
        mod by_hand {
            use mmu_notifier::AddressSpace;

            $(#[test]
            fn $name() {
                crate::$module::$name(&crate::world::World::ByHand(AddressSpace::new()));
            })*
        }

        mod intercepted {
            use mmu_notifier_primary::{Options, Primary};

            $(#[test]
            fn $name() {
                crate::own_process::run(
                    concat!("intercepted::", stringify!($name)),
                    |_| (),
                    || {
                        let primary = Primary::install(&Options::default()).expect("installed");
                        crate::$module::$name(&crate::world::World::Intercepted(primary.space().clone()));
                    },
                );
            })*
        }
    };
}

behaviours! {
    access::anon_read,
    access::anon_read_prot,
    access::anon_read_multiple,
    access::anon_write,
    access::anon_write_prot,
    access::anon_write_child,
    access::anon_write_child_shared,
    access::anon_write_huge,
    access::anon_write_hugetlbfs,
    access::file_read,
    access::file_write,
    access::anon_teardown,
    access::snapshot,
    access::double_map,
    alone::exclusive,
    alone::exclusive_mprotect,
    alone::migrate,
    alone::migrate_fault,
    alone::migrate_multiple,
    alone::migrate_release,
    storm::under_load,
}
