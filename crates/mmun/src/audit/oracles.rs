//! The virtual machines that make the kernel tell: watched processes send them here.

// UNSAFETY: receives a descriptor in a message, which the standard library cannot.
#![expect(unsafe_code)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result};
use mmu_notifier_primary::session::audit_socket;

/// The socket, and who closes machines: that takes the kernel milliseconds.
#[derive(Debug)]
pub struct Oracles {
    socket: UnixDatagram,
    key: u64,
    closer: Option<Sender<OwnedFd>>,
}

/// A process's machine.
#[derive(Debug)]
pub struct Sent {
    /// Index of the process's entry in the session.
    pub index: u64,
    /// Ticks just before it was made.
    pub ticks: u64,
    /// Who sent it, in this process's pid namespace.
    pub pid: u32,
    /// The machine.
    pub machine: OwnedFd,
}

impl Oracles {
    /// Checks that machines can be made here, and listens.
    pub fn listen() -> Result<Oracles> {
        check()?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let key = u64::from(std::process::id()) << 32 | u64::from(now.subsec_nanos()) | 1;
        let address = SocketAddr::from_abstract_name(audit_socket(key)).context("a name for a socket")?;
        let socket = UnixDatagram::bind_addr(&address).context("cannot listen for oracles")?;
        socket.set_nonblocking(true).context("cannot listen for oracles without waiting")?;
        let on: libc::c_int = 1;
        // SAFETY: reads the number only.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PASSCRED,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("cannot be told who sends oracles");
        }
        Ok(Oracles { socket, key, closer: None })
    }

    /// What processes find it by.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The next machine that has come, without waiting.
    pub fn next(&self) -> Option<Sent> {
        let mut message = [0u8; 16];
        let mut vector = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
        // Room for a descriptor and for who sends it.
        let mut control = [0u64; 16];
        // SAFETY: a plain structure of integers and pointers.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_iov = &mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: writes into `message`, `control` and `header`.
        let read = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) };
        let (mut machine, mut pid) = (None, None);
        // SAFETY: walks what the kernel has written into `control`, as long as that says.
        let mut next = if read < 0 { std::ptr::null_mut() } else { unsafe { libc::CMSG_FIRSTHDR(&header) } };
        while !next.is_null() {
            // SAFETY: as above, not null.
            let (kind, data) = unsafe { ((*next).cmsg_type, libc::CMSG_DATA(next)) };
            if kind == libc::SCM_RIGHTS {
                // SAFETY: such a message holds at least one descriptor, which is new and nobody else's.
                machine = Some(unsafe { OwnedFd::from_raw_fd(data.cast::<i32>().read_unaligned()) });
            } else if kind == libc::SCM_CREDENTIALS {
                // SAFETY: such a message holds the structure.
                pid = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() }.pid as u32);
            }
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(&header, next) };
        }
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        match (read, machine, pid) {
            (16, Some(machine), Some(pid)) => Some(Sent { index: word(0), ticks: word(8), pid, machine }),
            (..0, ..) => None,
            // Somebody else's joke.
            _ => self.next(),
        }
    }

    /// Closes a machine, later and by another thread.
    pub fn close(&mut self, machine: OwnedFd) {
        let closer = self.closer.get_or_insert_with(|| {
            let (closer, closing) = channel::<OwnedFd>();
            // Not joined: what it has not come to is closed when this process ends.
            let _ =
                thread::Builder::new().name("close".into()).spawn(move || closing.into_iter().for_each(drop));
            closer
        });
        // Without the thread it is closed at once.
        let _ = closer.send(machine);
    }
}

/// Makes a machine and drops it.
fn check() -> Result<()> {
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let device = device.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::Error::new(error).context(
            "the audit needs KVM: there is no /dev/kvm; modprobe kvm_intel or kvm_amd, or let this machine's host allow \
             nested virtualisation",
        ),
        _ => anyhow::Error::new(error).context("the audit needs KVM: cannot open /dev/kvm; run it as root"),
    })?;
    // SAFETY: no memory of this process is involved.
    let machine = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM, 0) };
    if machine < 0 {
        return Err(io::Error::last_os_error())
            .context("the audit needs KVM: it makes no virtual machine (KVM_CREATE_VM)");
    }
    // SAFETY: a new descriptor that nothing else owns.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(())
}
