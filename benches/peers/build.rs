//! UCX takes part where its headers are: `apt-get install libucx-dev`.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ucx)");
    println!("cargo::rerun-if-changed=src/contenders/ucx.c");
    let header = "/usr/include/ucs/memory/rcache.h";
    println!("cargo::rerun-if-changed={header}");
    if !Path::new(header).exists() {
        println!("cargo::warning=UCX is left out: there is no {header} (Debian's libucx-dev)");
        return;
    }
    println!("cargo::rustc-cfg=ucx");
    cc::Build::new().file("src/contenders/ucx.c").compile("bench_ucx");
    println!("cargo::rustc-link-lib=ucs");
    println!("cargo::rustc-link-lib=ucm");
}
