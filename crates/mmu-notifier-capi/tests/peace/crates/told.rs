//! What whoever comes later is told of, and refuses.

// UNSAFETY: calls functions of the objects.
#![expect(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use mmu_notifier::{Blocking, Change, Event, Range, Refuser, Subscriber, WouldBlock};
use mmu_notifier_primary::{InstallError, Options, Primary, Undeliverable, Wanted};

use super::{
    CChange, Counts, EAGAIN, Object, PAGE, RefuserOps, alone, install, map, subscribe, try_announce, unmap,
    unmap_one,
};

/// The C object comes after the crate: it is told by that, of the same, once.
#[test]
fn the_object_is_told_by_the_crate() {
    alone("told::the_object_is_told_by_the_crate", |copy| {
        let primary = install();
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let (here, there) = (Counts::new(), Counts::new());
        let _here = subscribe(primary, here);
        let subscription = object.count(there);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
        assert_eq!(object.problems(), 0);
        assert!(primary.check().expect("looked").is_sound());
        object.unsubscribe(subscription);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (0, 0)));
    });
}

/// The crate comes after the C object, as under `mmun run`.
#[test]
fn the_crate_is_told_by_the_object() {
    alone("told::the_crate_is_told_by_the_object", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        assert_eq!(Primary::install(&Options::default()).unwrap_err(), InstallError::Twice);
        let (here, there) = (Counts::new(), Counts::new());
        let _here = subscribe(primary, here);
        object.count(there);
        unmap_one(&[here, there]);
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
        let check = primary.check().expect("looked");
        assert!(check.is_sound() && check.calls.len() > 10 && check.intact == 0, "{check:#?}");
        assert!(check.calls.iter().filter(|call| call.changes).all(|call| call.site != 0), "{check:#?}");
        // What cannot be delivered, the copy at work knows.
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Ok(()));
        let error = primary.can_deliver(&[Wanted::MadeCode]).expect_err("no strict mode");
        assert_eq!(error, Undeliverable::Elsewhere { text: Undeliverable::MadeCode.to_string() });
        // What the program announces itself, everybody hears.
        let pages = Range::new(0x1000, 0x2000).expect("a range");
        for counts in [here, there] {
            counts.only.store(0x1000, SeqCst);
            counts.take();
        }
        let change = Change::new(pages, Event::Unmap, Blocking::Allowed);
        assert_eq!(primary.announce(change, || primary.space().is_changing()), Ok(true));
        assert_eq!((here.take(), there.take()), ((1, 1), (1, 1)));
    });
}

/// A told copy knows whose change it is, whether it is switched on, and when the process exits.
#[test]
fn a_told_copy_knows_the_owner_whether_it_is_on_and_the_exit() {
    static OWNER: AtomicUsize = AtomicUsize::new(0);
    struct Hears;
    impl Subscriber for Hears {
        fn start(&self, change: &Change) {
            if change.range().start() == PAGE {
                OWNER.store(change.owner(), SeqCst);
            }
        }
        fn end(&self, _: &Change) {}
        fn release(&self) {
            const TEXT: &[u8] = b"the told copy is released\n";
            // SAFETY: writes a static.
            unsafe { libc::write(1, TEXT.as_ptr().cast(), TEXT.len()) };
        }
    }
    let said = alone("told::a_told_copy_knows_the_owner_whether_it_is_on_and_the_exit", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        std::mem::forget(primary.space().subscribe(Hears));
        let page = Range::with_len(PAGE, PAGE).expect("a range");
        let change = Change::new(page, Event::Unmap, Blocking::Allowed).with_owner(77);
        assert_eq!(primary.announce(change, || OWNER.load(SeqCst)), Ok(77));
        assert!(primary.uninstall());
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Err(Undeliverable::Uninstalled));
        install();
        assert_eq!(primary.can_deliver(&[Wanted::Event(Event::Unmap)]), Ok(()));
    });
    assert!(said.is_empty() || said.contains("the told copy is released"), "{said}");
}

/// Refuses what must not wait, as long as it is told to.
struct Refusing {
    refuses: AtomicBool,
    refused: AtomicU64,
}

static REFUSING: Refusing = Refusing { refuses: AtomicBool::new(false), refused: AtomicU64::new(0) };

impl Refusing {
    fn refuse(&self) -> bool {
        let refuses = self.refuses.load(SeqCst);
        self.refused.fetch_add(u64::from(refuses), SeqCst);
        refuses
    }
}

struct Refuse;

impl Refuser for Refuse {
    fn start(&self, _: &Change) {}

    fn try_start(&self, _: &Change) -> Result<(), WouldBlock> {
        if REFUSING.refuse() { Err(WouldBlock) } else { Ok(()) }
    }
}

/// Somebody refuses on either side: whoever was told of a start, on both sides, is told of its end.
#[test]
fn a_refusal_goes_through_and_leaves_nothing_open() {
    alone("told::a_refusal_goes_through_and_leaves_nothing_open", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let told = [Counts::new(), Counts::new(), Counts::new(), Counts::new()];
        // Around the relay, and around who refuses behind it.
        object.count(told[0]);
        let _before = subscribe(primary, told[1]);
        let refuser = primary.space().subscribe_refuser(Refuse);
        let _behind = subscribe(primary, told[2]);
        object.count(told[3]);
        for counts in told {
            counts.only.store(16 * PAGE, SeqCst);
        }
        assert!(try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4]);
        REFUSING.refuses.store(true, SeqCst);
        assert!(!try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4], "all were asked, and called off");
        assert!(!primary.space().is_changing());
        REFUSING.refuses.store(false, SeqCst);
        drop(refuser);
        // And from the other side.
        unsafe extern "C" fn start(_: *const CChange, _: *mut c_void) {}
        unsafe extern "C" fn try_start(_: *const CChange, _: *mut c_void) -> c_int {
            if REFUSING.refuse() { -EAGAIN } else { 0 }
        }
        let refuser =
            object.subscribe("subscribe_refuser", &RefuserOps { start, try_start, release: None }, 0);
        REFUSING.refuses.store(true, SeqCst);
        assert!(!try_announce(primary, 16 * PAGE));
        assert_eq!(told.map(Counts::take), [(1, 1); 4]);
        REFUSING.refuses.store(false, SeqCst);
        object.unsubscribe(refuser);
    });
}

/// Who is told by another copy refuses a call of the C library's: it is put off, and made when nobody minds.
#[test]
fn what_a_told_copy_refuses_is_put_off() {
    alone("told::what_a_told_copy_refuses_is_put_off", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let counts = Counts::new();
        let _first = subscribe(primary, counts);
        let _refuser = primary.space().subscribe_refuser(Refuse);
        let big = 1 << 20;
        // SAFETY: of this size the C library maps it, and unmaps it when it is freed: inside the allocator.
        let memory = unsafe { libc::malloc(big) };
        assert!(!memory.is_null());
        REFUSING.refuses.store(true, SeqCst);
        // SAFETY: allocated above.
        unsafe { libc::free(memory) };
        assert!(REFUSING.refused.load(SeqCst) > 0, "it was asked");
        REFUSING.refuses.store(false, SeqCst);
        let mut tries = 0;
        while primary.quarantined().0 > 0 || counts.open.load(SeqCst) != 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            tries += 1;
            assert!(tries < 30_000, "{:?}, {} open", primary.quarantined(), counts.open.load(SeqCst));
        }
        let (starts, ends) = counts.take();
        assert!(starts > 1 && starts == ends, "{starts} {ends}");
    });
}

/// A callback of a told copy makes a change: the others there are told of it, itself is not.
#[test]
fn changes_in_callbacks_of_a_told_copy_are_told_to_its_others() {
    struct Unmaps(&'static Counts);
    impl Subscriber for Unmaps {
        fn start(&self, change: &Change) {
            self.0.start(change.range().start());
            unmap(map());
        }
        fn end(&self, change: &Change) {
            self.0.end(change.range().start());
        }
    }
    alone("told::changes_in_callbacks_of_a_told_copy_are_told_to_its_others", |copy| {
        let object = Object::open(copy);
        assert_eq!(object.install(), 0);
        let primary = install();
        let told = [Counts::new(), Counts::new(), Counts::new()];
        object.count(told[0]);
        let _witness = subscribe(primary, told[1]);
        let _maker = primary.space().subscribe(Unmaps(told[2]));
        let at = map();
        for counts in told {
            counts.take();
        }
        unmap(at);
        assert_eq!(told.map(Counts::take), [(2, 2), (2, 2), (1, 1)]);
    });
}
