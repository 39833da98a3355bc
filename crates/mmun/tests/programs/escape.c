// Changes memory by system calls that no rewriting can reach: from code that is made at run time. For each kind of
// change it does as many as asked, in this process and in a forked child, and says how many that were.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
typedef long (*raw)(long number, long a, long b, long c, long d, long e);

// mov rax, rdi; mov rdi, rsi; mov rsi, rdx; mov rdx, rcx; mov r10, r8; mov r8, r9; syscall; ret
static const unsigned char code[] = {
    0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0x48, 0x89,
    0xca, 0x4d, 0x89, 0xc2, 0x4d, 0x89, 0xc8, 0x0f, 0x05, 0xc3,
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

// A page that is a mapping of its own: its neighbours are of other rights.
static char *page(void)
{
    char *p = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE))
        fail("mmap");
    p[PAGE] = 1;
    return p + PAGE;
}

static void escape(raw call, int times)
{
    for (int i = 0; i < times; i++) {
        if (call(SYS_munmap, (long)page(), PAGE, 0, 0, 0))
            fail("munmap");
        if (call(SYS_madvise, (long)page(), PAGE, MADV_DONTNEED, 0, 0))
            fail("madvise");
        if (call(SYS_mprotect, (long)page(), PAGE, PROT_READ, 0, 0))
            fail("mprotect");
    }
}

int main(int argc, char **argv)
{
    int times = argc > 1 ? atoi(argv[1]) : 1, status;
    raw call = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (call == MAP_FAILED)
        fail("mmap");
    memcpy(call, code, sizeof code);
    escape(call, times);
    pid_t child = fork();
    if (child == 0) {
        escape(call, times);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child || status)
        fail("waitpid");
    printf("%d escaped\n", 2 * 3 * times);
    return 0;
}
