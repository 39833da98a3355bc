//! Names for the places that make system calls.
//!
//! A process lists its executable mappings in the session; the symbol tables of those files are read
//! when the first address in them is asked for, and kept. A place is one entry in one table for the
//! whole run, so that records name it by a small number.

use std::collections::HashMap;
use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use mmu_notifier_primary::session::{MODULES, Process};
use object::{Object, ObjectSegment, ObjectSymbol, ReadCache};

use crate::summary::Caller;
use crate::totals;

/// All places seen so far.
#[derive(Debug)]
pub struct Symbols {
    callers: Vec<Caller>,
    indices: HashMap<Caller, u32>,
    processes: HashMap<usize, Mappings>,
    files: HashMap<String, Rc<Table>>,
}

/// What is mapped where in one process, and the addresses of it that were looked up.
#[derive(Debug)]
struct Mappings {
    born: u64,
    pid: u32,
    used: u64,
    modules: Vec<Module>,
    known: HashMap<u64, u32>,
}

#[derive(Debug)]
struct Module {
    start: u64,
    end: u64,
    offset: u64,
    file: String,
}

/// The symbols of a file.
#[derive(Debug, Default)]
struct Table {
    /// File offset, size and address of what is loaded.
    segments: Vec<(u64, u64, u64)>,
    /// Address, size and name of functions, by address.
    functions: Vec<(u64, u64, Box<str>)>,
}

impl Default for Symbols {
    fn default() -> Symbols {
        let mut symbols = Symbols {
            callers: Vec::new(),
            indices: HashMap::new(),
            processes: HashMap::new(),
            files: HashMap::new(),
        };
        symbols.intern(Caller { symbol: "unknown".to_owned(), file: String::new() });
        symbols
    }
}

impl Symbols {
    /// The index of the place `address` in the process with entry `entry`. 0 is the unknown place.
    pub fn caller(&mut self, entry: usize, process: &Process, address: u64) -> u32 {
        if address == 0 {
            return 0;
        }
        self.look_at(entry, process);
        let mappings = &self.processes[&entry];
        if let Some(index) = mappings.known.get(&address) {
            return *index;
        }
        let caller = resolve(&mut self.files, mappings, address);
        let index = self.intern(caller);
        if let Some(mappings) = self.processes.get_mut(&entry) {
            mappings.known.insert(address, index);
        }
        index
    }

    /// The file that is mapped executable at `address` in the process with entry `entry`, and where in it that is.
    pub fn in_file(&mut self, entry: usize, process: &Process, address: u64) -> Option<(&str, u64)> {
        self.look_at(entry, process);
        let module = self.processes[&entry].module(address)?;
        Some((&module.file, (address - module.start).wrapping_add(module.offset)))
    }

    /// Makes the process's mappings known as they are now.
    fn look_at(&mut self, entry: usize, process: &Process) {
        // Pairs with the Release of the process, which lists a mapping before it counts it.
        let used = process.modules_used.load(Ordering::Acquire);
        let born = process.born.load(Ordering::Relaxed);
        let pid = process.pid.load(Ordering::Relaxed);
        let current = |m: &Mappings| (m.born, m.pid, m.used) == (born, pid, used);
        if !self.processes.get(&entry).is_some_and(current) {
            let modules = read_modules(process, used);
            self.processes.insert(entry, Mappings { born, pid, used, modules, known: HashMap::new() });
        }
    }

    /// The place with that index.
    pub fn get(&self, index: u32) -> &Caller {
        &self.callers[index as usize]
    }

    /// All places, by index.
    pub fn into_callers(self) -> Vec<Caller> {
        self.callers
    }

    fn intern(&mut self, caller: Caller) -> u32 {
        let next = self.callers.len() as u32;
        let index = *self.indices.entry(caller.clone()).or_insert(next);
        if index == next {
            self.callers.push(caller);
        }
        index
    }
}

impl Mappings {
    /// The latest of what was mapped there.
    fn module(&self, address: u64) -> Option<&Module> {
        self.modules.iter().rev().find(|m| (m.start..m.end).contains(&address))
    }
}

fn read_modules(process: &Process, used: u64) -> Vec<Module> {
    let used = used.min(MODULES as u64) as usize;
    let read = |module: &mmu_notifier_primary::session::Module| Module {
        start: module.start.load(Ordering::Relaxed),
        end: module.end.load(Ordering::Relaxed),
        offset: module.offset.load(Ordering::Relaxed),
        file: totals::path(&module.file),
    };
    process.modules[..used].iter().map(read).collect()
}

fn resolve(files: &mut HashMap<String, Rc<Table>>, mappings: &Mappings, address: u64) -> Caller {
    // A return address may lie behind the function's last byte: ask for the call before it.
    let call = address - 1;
    let Some(module) = mappings.module(call) else {
        return Caller { symbol: format!("{address:#x}"), file: "anonymous code".to_owned() };
    };
    let table = match files.get(&module.file) {
        Some(table) => table.clone(),
        None => {
            let table = Rc::new(Table::read(&module.file).unwrap_or_default());
            files.insert(module.file.clone(), table.clone());
            table
        }
    };
    let in_file = (call - module.start).wrapping_add(module.offset);
    let symbol = match table.find(in_file) {
        Some((name, offset)) => format!("{}+{:#x}", demangle(name), offset + 1),
        None => format!("{:#x}", in_file.wrapping_add(1)),
    };
    Caller { symbol, file: module.file.clone() }
}

impl Table {
    fn read(path: &str) -> Option<Table> {
        let data = ReadCache::new(File::open(path).ok()?);
        let file = object::File::parse(&data).ok()?;
        let segment = |s: object::Segment<'_, '_, _>| (s.file_range().0, s.file_range().1, s.address());
        let segments = file.segments().map(segment).collect();
        let mut functions: Vec<_> = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|symbol| symbol.is_definition() && symbol.kind() == object::SymbolKind::Text)
            .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?.into())))
            .collect();
        // Of several names for one address, the one with a size and the fewest decorations.
        functions.sort_by(|a: &(u64, u64, Box<str>), b| {
            let key = |f: &(u64, u64, Box<str>)| (f.0, f.1 == 0, f.2.starts_with('_'), f.2.len());
            key(a).cmp(&key(b)).then_with(|| a.2.cmp(&b.2))
        });
        functions.dedup_by_key(|function| function.0);
        Some(Table { segments, functions })
    }

    /// The function at a place of the file, and how far into it.
    fn find(&self, in_file: u64) -> Option<(&str, u64)> {
        let within = |(start, size, _): &&(u64, u64, u64)| in_file.wrapping_sub(*start) < *size;
        let (start, _, loaded) = self.segments.iter().find(within)?;
        let address = (in_file - start).checked_add(*loaded)?;
        let after = self.functions.partition_point(|function| function.0 <= address);
        let (begin, size, name) = self.functions.get(after.checked_sub(1)?)?;
        let offset = address - begin;
        // Hand-written assembly has functions without a size: they reach to the next.
        (offset < *size || *size == 0).then_some((name, offset))
    }
}

fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && let Ok(text) = symbol.demangle()
    {
        return text;
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demangles() {
        assert_eq!(demangle("mmap64"), "mmap64");
        assert_eq!(demangle("_ZN3foo3barEv"), "foo::bar()");
        assert_eq!(demangle("_ZN4core3ptr4read17h0123456789abcdefE"), "core::ptr::read");
        assert_eq!(
            demangle("_ZNSt6vectorIiSaIiEE9push_backERKi"),
            "std::vector<int, std::allocator<int> >::push_back(int const&)"
        );
        assert_eq!(demangle("_Z"), "_Z");
    }

    #[test]
    fn finds_functions_of_libc() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc =
            maps.lines().find_map(|line| line.split_whitespace().last().filter(|p| p.contains("libc.so")));
        let table = Table::read(libc.expect("libc is mapped")).unwrap();
        let (address, _, _) = *table.functions.iter().find(|f| &*f.2 == "mmap64" || &*f.2 == "mmap").unwrap();
        let (start, _, loaded) =
            *table.segments.iter().find(|s| (s.2..s.2 + s.1).contains(&address)).unwrap();
        let (name, offset) = table.find(address - loaded + start + 4).unwrap();
        assert!(name.starts_with("mmap"), "{name}");
        assert_eq!(offset, 4);
    }

    #[test]
    fn a_file_that_is_none_has_no_symbols() {
        assert!(Table::read("/nonexistent").is_none());
        assert!(Table::read("/etc/passwd").is_none());
        assert!(Table::default().find(7).is_none());
    }
}
