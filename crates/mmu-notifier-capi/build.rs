//! Gives the object its name for the dynamic linker: a program that is linked with it and run under `mmun`, which
//! preloads a copy, gets one of them, not both.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmmu_notifier_capi.so");
}
