//! Gives the object its name for the dynamic linker: a program that is linked with it and run under `mmun`, which
//! preloads a copy, gets one of them, not both. And other copies find the first one by it (`src/loader.rs`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Rewritten code jumps into this object: closing it must not unload it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmmu_notifier_capi.so");
}
