// What system calls cost, in nanoseconds each: the fastest of many rounds. One line for each way to make one.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const unsigned char code[] = {
    0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0x48, 0x89, 0xca, 0x4d, 0x89,
    0xc2, 0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05,
    // With these behind it, a jump leads 800 MiB down, where nothing is.
    0xc3, 0xcc, 0xcc,
};
// In memory that can be written, and that cannot.
static long (*writable)(long, ...), (*made)(long, ...);

static void libc_nothing(void) { getppid(); }
static void libc_unmap(void) { munmap((void *)4096, 0); }
static void made_nothing(void) { made(SYS_getppid, 0L, 0L, 0L, 0L, 0L, 0L); }
static void made_unmap(void) { made(SYS_munmap, 4096L, 0L, 0L, 0L, 0L, 0L); }
static void writable_nothing(void) { writable(SYS_getppid, 0L, 0L, 0L, 0L, 0L, 0L); }
static void writable_unmap(void) { writable(SYS_munmap, 4096L, 0L, 0L, 0L, 0L, 0L); }
static void handler(int number) { (void)number; }
static void signal_self(void) { raise(SIGUSR1); }

static void measure(const char *what, void (*call)(void))
{
    enum { ROUNDS = 200, CALLS = 500 };
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (int i = 0; i < CALLS; i++)
            call();
        clock_gettime(CLOCK_MONOTONIC, &to);
        double each = ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / CALLS;
        if (each < best)
            best = each;
    }
    printf("%-46s %6.0f\n", what, best);
}

static long (*make(int protection))(long, ...)
{
    void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return 0;
    memcpy(at, code, sizeof code);
    return mprotect(at, 4096, protection) ? 0 : (long (*)(long, ...))at;
}

int main(void)
{
    writable = make(PROT_READ | PROT_WRITE | PROT_EXEC);
    made = make(PROT_READ | PROT_EXEC);
    if (!writable || !made)
        return 1;
    signal(SIGUSR1, handler);
    measure("getppid of the C library", libc_nothing);
    measure("munmap of nothing, of the C library", libc_unmap);
    measure("getppid of code made at run time", made_nothing);
    measure("munmap of nothing, of code made at run time", made_unmap);
    measure("getppid of code that can be written", writable_nothing);
    measure("munmap of nothing, of code that can be written", writable_unmap);
    measure("raise, and a signal handler that returns", signal_self);
    return 0;
}
