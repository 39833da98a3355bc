// A munmap whose instructions cannot be rewritten: nothing of five bytes before it, no padding near it. unfit COUNT
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

long unfit(void *at, size_t len);
asm(".text\n.globl unfit\n.type unfit, @function\nunfit:\n.cfi_startproc\n"
    ".rept 200\n nop\n .endr\n"
    " push $11\n .cfi_adjust_cfa_offset 8\n pop %rax\n .cfi_adjust_cfa_offset -8\n syscall\n"
    ".rept 200\n nop\n .endr\n"
    " ret\n.cfi_endproc\n.size unfit, .-unfit\n");

static int count;

static void *work(void *unused)
{
    for (int i = 0; i < count; i++) {
        void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED || unfit(at, 4096))
            exit(1);
    }
    return unused;
}

int main(int argc, char **argv)
{
    count = argc > 1 ? atoi(argv[1]) : 1;
    pthread_t thread;
    if (pthread_create(&thread, 0, work, 0))
        return 1;
    work(0);
    pthread_join(thread, 0);
    puts("unfit ok");
    return 0;
}
