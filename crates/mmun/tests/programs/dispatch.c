// What strict mode has for itself: the thread's dispatch, the bit of SIGSYS in a mask, room on the stack; and
// system calls of 32 bits. dispatch own|mask|stack|compat
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static void own(void)
{
    static volatile char selector;
    int on = prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector), error = errno;
    if (!on)
        prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0);
    printf("dispatch: %s\n", on ? strerror(error) : "own");
}

static void mask(void)
{
    sigset_t all, now;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, 0);
    sigprocmask(SIG_SETMASK, 0, &now);
    printf("SIGSYS: %s\n", sigismember(&now, SIGSYS) ? "blocked" : "not blocked");
}

// getppid by code made at run time, with 64 bytes of stack above memory without access.
static void stack(void)
{
    static const unsigned char bytes[] = {0xb8, SYS_getppid, 0, 0, 0, 0x0f, 0x05, 0xc3};
    char *at = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at, 4096, PROT_NONE))
        return;
    char *code = at + 2 * 4096, *top = at + 4096 + 64;
    memcpy(code, bytes, sizeof bytes);
    if (mprotect(code, 4096, PROT_READ | PROT_EXEC))
        return;
    long result;
    asm volatile("mov %%rsp, %%r12\n\tmov %[top], %%rsp\n\tcall *%[code]\n\tmov %%r12, %%rsp"
                 : "=a"(result)
                 : [top] "r"(top), [code] "r"(code)
                 : "r12", "rcx", "r11", "rdi", "rsi", "rdx", "r8", "r9", "r10", "memory", "cc");
    printf("stack: %s\n", result == getppid() ? "enough" : "lost");
}

static int compat_call(int number, long first, long second)
{
    int result;
    asm volatile("xchg %%rbx, %1\n\tint $0x80\n\txchg %%rbx, %1"
                 : "=a"(result), "+r"(first)
                 : "a"(number), "c"(second)
                 : "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

// getpid and munmap; ends in SIGSEGV where there are no such calls.
static void compat(void)
{
    char *at = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int right = at != MAP_FAILED;
    for (int i = 0; i < 100; i++)
        right &= compat_call(20, 0, 0) == getpid();
    right &= !compat_call(91, (long)at, 4096) && mprotect(at, 4096, PROT_READ) && errno == ENOMEM;
    printf("compat: %s\n", right ? "right" : "wrong");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "own"))
        own();
    if (!strcmp(what, "mask"))
        mask();
    if (!strcmp(what, "stack"))
        stack();
    if (!strcmp(what, "compat"))
        compat();
    return 0;
}
