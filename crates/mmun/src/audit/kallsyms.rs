//! Names of the kernel's functions.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, bail};

/// The functions of the running kernel and its modules, by address.
#[derive(Debug)]
pub struct Kallsyms {
    functions: Vec<(u64, Box<str>)>,
}

impl Kallsyms {
    /// Reads `/proc/kallsyms`.
    pub fn read() -> Result<Kallsyms> {
        let text = fs::read_to_string("/proc/kallsyms")
            .context("cannot read the kernel's symbols: /proc/kallsyms (CONFIG_KALLSYMS)")?;
        let symbols = Kallsyms::parse(&text);
        if symbols.functions.iter().all(|(address, _)| *address == 0) {
            bail!(
                "the kernel hides its symbols (/proc/kallsyms has no addresses): run as root, with sysctl \
                 kernel.kptr_restrict=1 or 0"
            );
        }
        Ok(symbols)
    }

    fn parse(text: &str) -> Kallsyms {
        let mut functions: Vec<_> = text.lines().filter_map(function).collect();
        functions.sort();
        Kallsyms { functions }
    }

    /// The function that `address` is in, without what compilers append to names.
    pub fn name(&self, address: u64) -> Option<&str> {
        let after = self.functions.partition_point(|(start, _)| *start <= address);
        let (_, name) = self.functions.get(after.checked_sub(1)?)?;
        Some(name)
    }

    /// Where these functions are.
    pub fn places(&self, names: &[&str]) -> Vec<Range<u64>> {
        let behind =
            |at: usize| self.functions[at..].iter().map(|f| f.0).find(|next| *next > self.functions[at].0);
        let found = self.functions.iter().enumerate().filter(|(_, (_, name))| names.contains(&&**name));
        found.map(|(at, (start, _))| *start..behind(at).unwrap_or(u64::MAX)).collect()
    }

    /// The functions of a call chain, innermost first.
    pub fn names<'a>(&'a self, chain: &'a [u64]) -> impl Iterator<Item = &'a str> + Clone {
        chain.iter().filter_map(|address| self.name(*address))
    }
}

fn function(line: &str) -> Option<(u64, Box<str>)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    if !matches!(words.next()?, "t" | "T" | "w" | "W") {
        return None;
    }
    let name = words.next()?;
    // `name.isra.0`, `name.cold` and the like.
    Some((address, name.split('.').next().filter(|name| !name.is_empty()).unwrap_or(name).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffffffff81000000 T start\nffffffff81000100 t do_wp_page.isra.0\n\
        ffffffff81000200 d data\nffffffffa0000000 t in_module\t[kvm]\n";

    #[test]
    fn names_are_found() {
        let symbols = Kallsyms::parse(TEXT);
        assert_eq!(symbols.name(0xffff_ffff_8100_0100), Some("do_wp_page"));
        assert_eq!(symbols.name(0xffff_ffff_8100_00ff), Some("start"));
        assert_eq!(symbols.name(0xffff_ffff_a000_0005), Some("in_module"));
        assert_eq!(symbols.name(5), None);
        assert_eq!(symbols.places(&["start", "no"]), vec![0xffff_ffff_8100_0000..0xffff_ffff_8100_0100; 1]);
    }
}
