// Makes memory system calls whose number is known to the last one and prints `call count failed` for
// each of the table. Everything goes through inline assembly or syscall(), so no allocator adds to it.
// With the argument `marker` it shows the marker call itself before it begins.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L

static const char *const names[] = {
    "mmap", "munmap", "mremap", "brk", "madvise", "process_madvise", "mprotect", "pkey_mprotect", "shmat",
    "shmdt", "remap_file_pages", "ftruncate", "truncate", "fallocate", "fork", "vfork", "clone", "clone3",
    "execve", "execveat", "exit_group",
};
enum { CALLS = sizeof names / sizeof *names };
static int made[CALLS], failed[CALLS];

static long call(const char *name, long number, long a, long b, long c, long d, long e, long f)
{
    long result = syscall(number, a, b, c, d, e, f);
    for (int i = 0; i < CALLS; i++)
        if (!strcmp(names[i], name)) {
            made[i]++;
            failed[i] += result == -1;
        }
    return result;
}

#define CALL(name, a, b, c, d, e, f) \
    call(#name, SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static void count(const char *name, int times)
{
    for (int i = 0; i < CALLS; i++)
        if (!strcmp(names[i], name))
            made[i] += times;
}

static void reap(long child)
{
    int status;
    if (child <= 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "child %ld failed: %d\n", child, errno);
        exit(1);
    }
}

// The child of vfork shares this stack, so nothing here may be kept on it across the call.
static __attribute__((noinline)) long vfork_true(void)
{
    static char *const argv[] = {"true", NULL};
    pid_t child = vfork();
    if (child == 0) {
        syscall(SYS_execve, "/bin/true", argv, argv + 1);
        _exit(1);
    }
    return child;
}

int main(int argc, char **argv)
{
    static char out[1 << 12];
    setvbuf(stdout, out, _IOFBF, sizeof out);
    if (argc > 1 && !strcmp(argv[1], "marker"))
        syscall(SYS_munmap, 0x6d6d756e0000L, 0L);

    for (int i = 0; i < 5; i++) {
        char *p = (char *)CALL(mmap, 0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 1, 4 * PAGE);
        CALL(mprotect, p, PAGE, PROT_READ, 0, 0, 0);
        CALL(pkey_mprotect, p + PAGE, PAGE, PROT_READ, -1, 0, 0);
        CALL(madvise, p + 2 * PAGE, PAGE, MADV_DONTNEED, 0, 0, 0);
        p = (char *)CALL(mremap, p + 2 * PAGE, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0, 0);
        CALL(munmap, p, 4 * PAGE, 0, 0, 0, 0);
    }
    CALL(mmap, 0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CALL(munmap, 1, PAGE, 0, 0, 0, 0);
    CALL(mprotect, 1, PAGE, 0, 0, 0, 0);
    CALL(madvise, 0, PAGE, 999, 0, 0, 0);
    CALL(mremap, 1, PAGE, PAGE, 0, 0, 0);
    CALL(brk, 0, 0, 0, 0, 0, 0);

    int self = syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec piece = {0, 0};
    CALL(process_madvise, self, &piece, 1, 999, 0, 0);

    int segment = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    long attached = CALL(shmat, segment, 0, 0, 0, 0, 0);
    CALL(shmdt, attached, 0, 0, 0, 0, 0);
    CALL(shmdt, 16, 0, 0, 0, 0, 0);
    shmctl(segment, IPC_RMID, NULL);

    int file = memfd_create("file", 0);
    CALL(ftruncate, file, 4 * PAGE, 0, 0, 0, 0);
    CALL(ftruncate, -1, 4 * PAGE, 0, 0, 0, 0);
    CALL(fallocate, file, 3, PAGE, PAGE, 0, 0);
    CALL(fallocate, -1, 3, PAGE, PAGE, 0, 0);
    CALL(truncate, "/nowhere/at) = all", 0, 0, 0, 0, 0);
    long shared = CALL(mmap, 0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CALL(remap_file_pages, shared, PAGE, 0, 1, 0, 0);
    CALL(munmap, shared, 4 * PAGE, 0, 0, 0, 0);

    fflush(stdout);
    for (int i = 0; i < 3; i++) {
        long child = CALL(fork, 0, 0, 0, 0, 0, 0);
        if (child == 0) {
            syscall(SYS_munmap, 0x10000000L, PAGE);
            syscall(SYS_exit_group, 0);
        }
        reap(child);
    }
    long child = CALL(clone, SIGCHLD, 0, 0, 0, 0, 0);
    if (child == 0)
        syscall(SYS_exit, 0);
    reap(child);
    struct clone_args how = {.exit_signal = SIGCHLD};
    child = CALL(clone3, &how, sizeof how, 0, 0, 0, 0);
    if (child == 0)
        syscall(SYS_execve, "/bin/true", (char *[]){"true", NULL}, NULL);
    reap(child);
    child = CALL(clone3, &how, sizeof how, 0, 0, 0, 0);
    if (child == 0)
        syscall(SYS_execveat, AT_FDCWD, "/bin/true", (char *[]){"true", NULL}, NULL, 0);
    reap(child);
    CALL(clone3, 0, 0, 0, 0, 0, 0);
    reap(vfork_true());
    CALL(execve, "/nowhere/at = all", 0, 0, 0, 0, 0);
    CALL(execveat, -1, "nothing", 0, 0, 0, 0);

    count("munmap", 3);
    count("exit_group", 4);
    count("vfork", 1);
    count("execve", 2);
    count("execveat", 1);
    for (int i = 0; i < CALLS; i++)
        printf("%s %d %d\n", names[i], made[i], failed[i]);
    fflush(stdout);
    syscall(SYS_exit_group, 0);
}
