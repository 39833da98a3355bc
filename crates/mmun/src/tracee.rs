//! A process that is traced for a moment: its registers, its memory, and calls that it is made to make.

// UNSAFETY: ptrace.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

/// Makes the calling process, which is about to exec, one that its parent traces.
pub fn be_traced() -> io::Result<()> {
    // SAFETY: changes how this process is looked at, nothing else.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process that is traced and stopped, at its first instruction.
#[derive(Debug)]
pub struct Tracee {
    pid: i32,
    memory: File,
    /// Signals that came meanwhile, for later.
    signals: Vec<i32>,
}

impl Tracee {
    /// A child that has asked to [be traced](be_traced) and has exec'ed.
    pub fn of_child(pid: i32) -> Result<Tracee> {
        let mut tracee = Tracee::stopped(pid)?;
        tracee.wait()?;
        Ok(tracee)
    }

    /// A program that has exec'ed and is stopped.
    pub fn stopped(pid: i32) -> Result<Tracee> {
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"));
        Ok(Tracee { pid, memory: memory.context("cannot open its memory")?, signals: Vec::new() })
    }

    /// Ends it.
    pub fn kill(&self) {
        // SAFETY: a process that this one traces, so that its id is nobody else's.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }

    /// Waits until it traps.
    fn wait(&mut self) -> Result<()> {
        loop {
            let mut status = 0;
            // SAFETY: writes `status`.
            let waited = unsafe { libc::waitpid(self.pid, &mut status, 0) };
            if waited != self.pid {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error).context("cannot wait for it");
            }
            ensure!(libc::WIFSTOPPED(status), "it has ended");
            match libc::WSTOPSIG(status) {
                libc::SIGTRAP => return Ok(()),
                signal @ (libc::SIGSEGV | libc::SIGILL | libc::SIGBUS) => bail!("it got signal {signal}"),
                signal => {
                    self.signals.push(signal);
                    self.request(libc::PTRACE_CONT, std::ptr::null_mut())?;
                }
            }
        }
    }

    fn request(&self, request: libc::c_uint, data: *mut c_void) -> Result<()> {
        // SAFETY: `data` is what the request takes, as every caller sees to.
        let answer = unsafe { libc::ptrace(request, self.pid, std::ptr::null_mut::<c_void>(), data) };
        if answer == -1 { Err(io::Error::last_os_error()).context("ptrace") } else { Ok(()) }
    }

    pub fn registers(&self) -> Result<libc::user_regs_struct> {
        // SAFETY: a structure of integers, for which zeroes are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, (&raw mut registers).cast())?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> Result<()> {
        self.request(libc::PTRACE_SETREGS, std::ptr::from_ref(registers).cast_mut().cast())
    }

    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write_all_at(bytes, at).with_context(|| format!("cannot write its memory at {at:#x}"))
    }

    /// Runs the process from `change`d registers with two bytes of code, and puts both back. The registers it ends with.
    fn run(
        &mut self,
        code: [u8; 2],
        how: libc::c_uint,
        change: impl FnOnce(&mut libc::user_regs_struct),
    ) -> Result<libc::user_regs_struct> {
        let before = self.registers()?;
        let mut original = [0; 2];
        self.memory.read_exact_at(&mut original, before.rip).context("cannot read its code")?;
        self.write(before.rip, &code)?;
        let mut registers = before;
        // No system call that would be made again.
        registers.orig_rax = u64::MAX;
        change(&mut registers);
        self.set_registers(&registers)?;
        self.request(how, std::ptr::null_mut())?;
        self.wait()?;
        let after = self.registers()?;
        self.write(before.rip, &original)?;
        self.set_registers(&before)?;
        Ok(after)
    }

    /// Has it make a system call.
    pub fn system_call(&mut self, number: i64, args: [u64; 6]) -> Result<u64> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let after = self.run(SYSCALL, libc::PTRACE_SINGLESTEP, |registers| {
            registers.rax = number as u64;
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = args;
        })?;
        let answer = after.rax.cast_signed();
        if (-4095..0).contains(&answer) {
            return Err(io::Error::from_raw_os_error(-answer as i32))
                .with_context(|| format!("system call {number} failed in it"));
        }
        Ok(after.rax)
    }

    /// Has it call a function, with the stack below `stack`.
    pub fn call(&mut self, function: u64, stack: u64, args: [u64; 3]) -> Result<()> {
        const TRAP: [u8; 2] = [0xcc, 0xcc];
        let back = self.registers()?.rip;
        let stack = (stack & !63) - 8;
        self.write(stack, &back.to_le_bytes())?;
        let after = self.run(TRAP, libc::PTRACE_CONT, |registers| {
            registers.rip = function;
            registers.rsp = stack;
            [registers.rdi, registers.rsi, registers.rdx] = args;
        })?;
        ensure!(after.rip == back + 1, "its start has not come back: it is at {:#x}", after.rip);
        Ok(())
    }

    /// Lets it run, untraced.
    pub fn let_go(self) -> Result<()> {
        for signal in &self.signals {
            // SAFETY: a process of ours.
            unsafe { libc::kill(self.pid, *signal) };
        }
        self.request(libc::PTRACE_DETACH, std::ptr::null_mut())
    }
}
