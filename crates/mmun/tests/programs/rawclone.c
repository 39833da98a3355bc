// clone and clone3 by hand, with and without shared memory, on stacks of their own; the thread pointer
// stays the parent's. The child changes memory and its mappings.
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define STACK (64 * 1024L)

// long raw_clone(flags, top of the stack, which holds function and argument); long raw_clone3(args, size)
asm(".text\n"
    ".globl raw_clone\n.type raw_clone,@function\nraw_clone:\n"
    " xor %edx, %edx; xor %r10d, %r10d; xor %r8d, %r8d\n"
    " mov $56, %eax\n syscall\n"
    " test %rax, %rax\n jz 1f\n ret\n"
    ".globl raw_clone3\n.type raw_clone3,@function\nraw_clone3:\n"
    " mov $435, %eax\n syscall\n"
    " test %rax, %rax\n jz 1f\n ret\n"
    "1: xor %ebp, %ebp\n pop %rax\n pop %rdi\n call *%rax\n"
    " mov %eax, %edi\n mov $60, %eax\n syscall\n hlt\n");
long raw_clone(unsigned long flags, void *top);
long raw_clone3(struct clone_args *args, size_t size);

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
    long result;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return result;
}

struct job {
    char *page;
    volatile int done;
};

// What the child does. Returns its exit status.
static int child(struct job *job)
{
    for (int i = 0; i < 20; i++) {
        long p = call(SYS_mmap, 0, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p < 0)
            return 101;
        *(volatile char *)p = 1;
        if (call(SYS_munmap, p, 4 * PAGE, 0, 0, 0, 0))
            return 102;
        // The C library's own functions too: they share the parent's thread-local errno.
        char *q = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (q == MAP_FAILED || munmap(q, PAGE))
            return 103;
    }
    if (job->page[0] != 1)
        return 104;
    job->page[0] = 2;
    if (call(SYS_madvise, (long)job->page + PAGE, PAGE, MADV_DONTNEED, 0, 0, 0) || job->page[PAGE])
        return 105;
    job->done = 1;
    return 42;
}

static int reap(const char *what, long pid)
{
    int status;
    if (pid <= 0 || waitpid(pid, &status, __WALL) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 42) {
        printf("%s: pid %ld, status %x\n", what, pid, status);
        exit(1);
    }
    return 0;
}

int main(void)
{
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct job *job = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    job->page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void **top = (void **)(stack + STACK - 16);
    static const struct {
        const char *name;
        int clone3, own_stack;
        unsigned long flags;
    } ways[] = {
        {"clone, shared memory", 0, 1, CLONE_VM},
        {"clone, shared memory, parent waits", 0, 1, CLONE_VM | CLONE_VFORK},
        {"clone, shared memory and files", 0, 1, CLONE_VM | CLONE_FS | CLONE_FILES},
        {"clone, own memory", 0, 1, 0},
        {"clone, own memory, same stack", 0, 0, 0},
        {"clone3, shared memory", 1, 1, CLONE_VM},
        {"clone3, shared memory, parent waits", 1, 1, CLONE_VM | CLONE_VFORK},
        {"clone3, own memory", 1, 1, 0},
        {"clone3, own memory, same stack", 1, 0, 0},
    };
    for (int round = 0; round < 50; round++)
        for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
            top[0] = (void *)child;
            top[1] = job;
            job->page[0] = job->page[PAGE] = 1;
            job->done = 0;
            struct clone_args args = {.flags = ways[i].flags, .exit_signal = SIGCHLD};
            long pid;
            if (ways[i].own_stack) {
                args.stack = (uintptr_t)stack;
                args.stack_size = STACK - 16;
                pid = ways[i].clone3 ? raw_clone3(&args, sizeof args) : raw_clone(ways[i].flags | SIGCHLD, top);
            } else {
                pid = ways[i].clone3 ? syscall(SYS_clone3, &args, sizeof args)
                                     : syscall(SYS_clone, ways[i].flags | SIGCHLD, 0, 0, 0, 0);
                if (pid == 0)
                    _exit(child(job));
            }
            reap(ways[i].name, pid);
            int shared = !!(ways[i].flags & CLONE_VM);
            if (job->done != shared || job->page[0] != (shared ? 2 : 1) || job->page[PAGE] != (shared ? 0 : 1)) {
                printf("%s: memory is %d %d %d\n", ways[i].name, job->done, job->page[0], job->page[PAGE]);
                return 1;
            }
        }
    puts("rawclone ok");
    return 0;
}
