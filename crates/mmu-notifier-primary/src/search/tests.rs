use super::*;

/// A file of this machine and what is found in it.
fn sites(path: &str) -> Vec<Found> {
    let bytes = std::fs::read(path).unwrap();
    let image = Image::parse(&bytes).unwrap();
    let mut sites = Vec::new();
    search(&image, &bytes, 0, Wanted::Only(Calls::Memory), &mut Flow::new(), |site| sites.push(site));
    sites
}

#[test]
fn the_c_library_can_be_rewritten_completely() {
    let sites = sites("/lib/x86_64-linux-gnu/libc.so.6");
    let unfit: Vec<_> =
        sites.iter().filter(|site| site.shape.is_err() && site.number != Number::Unknown).collect();
    assert!(unfit.is_empty(), "{unfit:x?}");
    for call in
        [Syscall::Mmap, Syscall::Munmap, Syscall::Mremap, Syscall::Brk, Syscall::Madvise, Syscall::Mprotect]
    {
        assert!(sites.iter().any(|site| site.number == Number::Known(call.number())), "{}", call.name());
    }
}
