/* System calls of code that this program makes itself, in anonymous memory. jit WHAT [COUNT] */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* call(number, a, b, c, d, e, f): what libc's syscall() does, but for errno. */
static const unsigned char code[] = {
    0x48, 0x89, 0xf8,             /* mov %rdi,%rax */
    0x48, 0x89, 0xf7,             /* mov %rsi,%rdi */
    0x48, 0x89, 0xd6,             /* mov %rdx,%rsi */
    0x48, 0x89, 0xca,             /* mov %rcx,%rdx */
    0x4d, 0x89, 0xc2,             /* mov %r8,%r10 */
    0x4d, 0x89, 0xc8,             /* mov %r9,%r8 */
    0x4c, 0x8b, 0x4c, 0x24, 0x08, /* mov 8(%rsp),%r9 */
    0x0f, 0x05,                   /* syscall */
    0xc3,                         /* ret */
};

/* vfork() in place: the return address must not lie on the stack that the child uses. */
static const unsigned char vfork_code[] = {
    0x5a,                         /* pop %rdx */
    0xb8, 58, 0, 0, 0,            /* mov $58,%eax */
    0x0f, 0x05,                   /* syscall */
    0x52,                         /* push %rdx */
    0xc3,                         /* ret */
};

typedef long call_type(long, ...);
static call_type *call;
static long (*jit_vfork)(void);

static void die(const char *what) { perror(what); exit(1); }

static void *make(const unsigned char *bytes, size_t len, size_t room)
{
    unsigned char *at = mmap(0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    memcpy(at, bytes, len);
    if (mprotect(at, room, PROT_READ | PROT_EXEC))
        die("mprotect");
    return at;
}

/* One page, mapped and unmapped: one munmap that is not libc's. */
static void unmap_one(void)
{
    long at = call(SYS_mmap, 0L, 4096L, (long)(PROT_READ | PROT_WRITE), (long)(MAP_PRIVATE | MAP_ANONYMOUS), -1L, 0L);
    if (at < 0)
        die("jit mmap");
    *(volatile char *)at = 1;
    if (call(SYS_munmap, at, 4096L, 0L, 0L, 0L, 0L))
        die("jit munmap");
}

static void unmap_many(int count)
{
    for (int i = 0; i < count; i++)
        unmap_one();
}

static int count;

static void *thread(void *unused)
{
    (void)unused;
    unmap_many(count);
    return 0;
}

int shares(void *unused)
{
    (void)unused;
    unmap_many(count);
    call(SYS_exit, 0L, 0L, 0L, 0L, 0L, 0L);
    return 0;
}

static void reap(pid_t pid, int expected)
{
    int status;
    if (pid < 0 || waitpid(pid, &status, __WALL) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != expected)
        die("child");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    count = argc > 2 ? atoi(argv[2]) : 1;
    call = (call_type *)make(code, sizeof code, 4096);
    jit_vfork = (long (*)(void))make(vfork_code, sizeof vfork_code, 4096);
    if (!strcmp(what, "unmap")) {
        unmap_many(count);
    } else if (!strcmp(what, "threads")) {
        pthread_t threads[8];
        for (int i = 0; i < 8; i++)
            if (pthread_create(&threads[i], 0, thread, 0))
                die("pthread_create");
        for (int i = 0; i < 8; i++)
            pthread_join(threads[i], 0);
    } else if (!strcmp(what, "fork")) {
        long pid = call(SYS_fork, 0L, 0L, 0L, 0L, 0L, 0L);
        if (!pid) {
            unmap_many(count);
            call(SYS_exit_group, 3L, 0L, 0L, 0L, 0L, 0L);
        }
        reap(pid, 3);
    } else if (!strcmp(what, "libc-fork")) {
        pid_t pid = fork();
        if (!pid) {
            unmap_many(count);
            _exit(4);
        }
        reap(pid, 4);
    } else if (!strcmp(what, "vfork")) {
        long pid = jit_vfork();
        if (!pid) {
            unmap_many(count);
            call(SYS_exit, 5L, 0L, 0L, 0L, 0L, 0L);
        }
        reap(pid, 5);
    } else if (!strcmp(what, "clone")) {
        /* libc's clone, whose child shares the memory and has no thread storage of its own. */
        static char stack[1 << 16] __attribute__((aligned(16)));
        reap(clone(shares, stack + sizeof stack, CLONE_VM | CLONE_VFORK, 0), 0);
    } else if (!strcmp(what, "clone3-cleared")) {
        /* A child without the signal handlers of its parent. */
        struct clone_args args = { .flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND, .exit_signal = SIGCHLD };
        static char stack[1 << 16] __attribute__((aligned(16)));
        args.stack = (unsigned long)stack;
        args.stack_size = sizeof stack;
        /* The child goes on with an empty stack: it may not return from here. */
        long pid;
        register struct clone_args *pointer __asm__("rdi") = &args;
        register long size __asm__("rsi") = sizeof args;
        __asm__ volatile("syscall\n\ttest %%rax,%%rax\n\tjnz 1f\n\txor %%edi,%%edi\n\tcall shares\n\tud2\n1:"
                         : "=a"(pid), "+r"(pointer), "+r"(size) : "0"((long)SYS_clone3)
                         : "rcx", "r11", "rdx", "r8", "r9", "r10", "memory");
        reap(pid, 0);
    } else if (!strcmp(what, "exec")) {
        char number[16];
        snprintf(number, sizeof number, "%d", count);
        char *next[] = { argv[0], "unmap", number, 0 }, *environment[] = { 0 };
        call(SYS_execve, (long)argv[0], (long)next, (long)environment, 0L, 0L, 0L);
        die("jit execve");
    } else if (!strcmp(what, "failed-exec")) {
        char *next[] = { "x", 0 };
        if (call(SYS_execve, (long)"/nowhere", (long)next, (long)next, 0L, 0L, 0L) != -ENOENT)
            die("jit execve");
        unmap_many(count);
    } else if (!strcmp(what, "places")) {
        /* Many instructions. */
        static const unsigned char one[] = { 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3 }; /* getpid */
        unsigned char *all = malloc(count * sizeof one);
        for (int i = 0; i < count; i++)
            memcpy(all + i * sizeof one, one, sizeof one);
        char *made = make(all, count * sizeof one, (count * sizeof one + 4095) & -4096);
        for (int i = 0; i < count; i++)
            if (((long (*)(void))(made + i * sizeof one))() != getpid())
                die("getpid");
        unmap_one();
    } else {
        return 2;
    }
    printf("%s %d\n", what, count);
    return 0;
}
