//! A device for tests: knows what is registered with it, and does what a test wants.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mmu_notifier::{AddressSpace, Event, Range};
use mmu_notifier_secondary::cache::{Access, Cache, Options, RegisterError, Registrar, Wait};

pub(crate) type Hook = Box<dyn Fn(Range) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Device {
    pub(crate) next: AtomicU64,
    pub(crate) registered: Mutex<BTreeMap<u64, (Range, Access)>>,
    /// Calls of `register` that came through.
    pub(crate) registrations: AtomicUsize,
    /// So many bytes at most, if not 0.
    pub(crate) capacity: AtomicUsize,
    /// Writing is refused at and above this address, if not 0.
    pub(crate) read_only_from: AtomicUsize,
    /// Whether `try_deregister` can.
    pub(crate) is_quick: AtomicBool,
    /// Whether a change waits for users.
    pub(crate) waits: bool,
    /// Whether what is registered is good for any access.
    pub(crate) grants_all: bool,
    pub(crate) alignment: Option<usize>,
    pub(crate) max_len: Option<usize>,
    /// Event that registrations survive.
    pub(crate) survives: Option<Event>,
    pub(crate) on_register: Mutex<Option<Arc<Hook>>>,
    pub(crate) on_deregister: Mutex<Option<Arc<Hook>>>,
    pub(crate) on_hurry: Mutex<Option<Arc<Hook>>>,
}

impl Device {
    pub(crate) fn registered(&self) -> Vec<(Range, Access)> {
        self.registered.lock().unwrap().values().copied().collect()
    }

    pub(crate) fn ranges(&self) -> Vec<Range> {
        self.registered().into_iter().map(|(range, _)| range).collect()
    }

    pub(crate) fn is_registered(&self, handle: u64) -> bool {
        self.registered.lock().unwrap().contains_key(&handle)
    }

    pub(crate) fn registrations(&self) -> usize {
        self.registrations.load(Ordering::SeqCst)
    }

    /// Runs inside `register`, before anything is registered.
    pub(crate) fn on_register(&self, hook: impl Fn(Range) + Send + Sync + 'static) {
        *self.on_register.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    pub(crate) fn on_deregister(&self, hook: impl Fn(Range) + Send + Sync + 'static) {
        *self.on_deregister.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    pub(crate) fn on_hurry(&self, hook: impl Fn(Range) + Send + Sync + 'static) {
        *self.on_hurry.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    pub(crate) fn do_nothing_else(&self) {
        for hook in [&self.on_register, &self.on_deregister, &self.on_hurry] {
            *hook.lock().unwrap() = None;
        }
    }

    fn call(hook: &Mutex<Option<Arc<Hook>>>, range: Range) {
        let hook = hook.lock().unwrap().clone();
        if let Some(hook) = hook {
            hook(range);
        }
    }

    fn remove(&self, range: Range, handle: u64) {
        let (was, _) = self.registered.lock().unwrap().remove(&handle).expect("deregistered twice");
        assert_eq!(was, range, "deregistered as something else");
    }
}

impl Registrar for Device {
    type Handle = u64;

    fn register(&self, range: Range, access: Access) -> Result<u64, RegisterError> {
        Device::call(&self.on_register, range);
        let limit = self.read_only_from.load(Ordering::SeqCst);
        if limit > 0 && access.includes(Access::Write) && range.end() > limit {
            return Err(io::Error::from_raw_os_error(libc::EFAULT).into());
        }
        let mut registered = self.registered.lock().unwrap();
        let capacity = self.capacity.load(Ordering::SeqCst);
        let bytes = || registered.values().map(|(range, _)| range.len()).sum::<usize>();
        if capacity > 0 && bytes() + range.len() > capacity {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM).into());
        }
        let handle = self.next.fetch_add(1, Ordering::SeqCst) + 1;
        registered.insert(handle, (range, access));
        self.registrations.fetch_add(1, Ordering::SeqCst);
        Ok(handle)
    }

    fn deregister(&self, range: Range, handle: u64) {
        Device::call(&self.on_deregister, range);
        self.remove(range, handle);
    }

    fn try_deregister(&self, range: Range, handle: u64) -> Result<(), u64> {
        if !self.is_quick.load(Ordering::SeqCst) {
            return Err(handle);
        }
        Device::call(&self.on_deregister, range);
        self.remove(range, handle);
        Ok(())
    }

    fn wait(&self) -> Wait {
        if self.waits { Wait::UntilUnused } else { Wait::ForNothing }
    }

    fn hurry(&self, range: Range, handle: &u64) {
        assert!(self.is_registered(*handle), "hurried after it was deregistered");
        Device::call(&self.on_hurry, range);
    }

    fn survives(&self, event: Event) -> bool {
        self.survives == Some(event)
    }

    fn grants(&self, access: Access) -> Access {
        if self.grants_all { Access::ReadWrite } else { access }
    }

    fn alignment(&self) -> usize {
        self.alignment.unwrap_or(mmu_notifier::PAGE_SIZE)
    }

    fn max_len(&self) -> usize {
        self.max_len.unwrap_or(usize::MAX)
    }
}

/// A cache of its own with its device and address space.
pub(crate) struct Rig {
    pub(crate) space: AddressSpace,
    pub(crate) device: Arc<Device>,
    pub(crate) cache: Cache<Arc<Device>>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(Device::default(), Options::default())
    }

    pub(crate) fn with(device: Device, options: Options) -> Rig {
        let (space, device) = (AddressSpace::new(), Arc::new(device));
        let cache = Cache::new(&space, device.clone(), options);
        Rig { space, device, cache }
    }

    /// The handle for these pages, let go of at once.
    #[track_caller]
    pub(crate) fn get(&self, pages: std::ops::Range<usize>) -> u64 {
        *self.cache.get(range(pages), Access::Read).unwrap().handle()
    }

    /// A change that may wait.
    pub(crate) fn unmap(&self, pages: std::ops::Range<usize>) {
        self.space.invalidate(range(pages), Event::Unmap, || ());
    }

    /// A change that must not wait; whether it took place.
    pub(crate) fn try_unmap(&self, pages: std::ops::Range<usize>) -> bool {
        self.space.try_invalidate(range(pages), Event::Unmap, || ()).is_ok()
    }
}

/// Pages by number, far from everything.
pub(crate) fn range(pages: std::ops::Range<usize>) -> Range {
    const BASE: usize = 0x10_0000_0000;
    Range::new(BASE + pages.start * 4096, BASE + pages.end * 4096).unwrap()
}

/// Runs it with 0, 1, .. for as long as `MMU_STRESS_SECONDS` says (`ci/stress-cache.sh`), but once at least.
pub(crate) fn again_and_again(mut run: impl FnMut(usize)) {
    let seconds = std::env::var("MMU_STRESS_SECONDS").ok();
    let seconds = seconds.map_or(0, |text| text.parse().expect("MMU_STRESS_SECONDS is a number of seconds"));
    let began = std::time::Instant::now();
    for round in 0.. {
        run(round);
        if began.elapsed().as_secs() >= seconds {
            println!("{} rounds in {:.0?}", round + 1, began.elapsed());
            return;
        }
    }
}
