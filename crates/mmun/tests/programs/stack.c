// Memory calls with little stack: on an alternate signal stack of one page (more where the kernel's own
// frame wants more) and in a thread with the smallest stack. A page without access is below each.
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096L
static volatile int handled;

static void change(void)
{
    for (int i = 0; i < 20; i++) {
        char *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            abort();
        *(volatile char *)p = 1;
        if (mprotect(p, PAGE, PROT_READ) || madvise(p, 4 * PAGE, MADV_DONTNEED) || *(volatile char *)p)
            abort();
        p = mremap(p, 4 * PAGE, 2 * PAGE, 0);
        if (syscall(SYS_munmap, p, 2 * PAGE))
            abort();
    }
}

static void on_signal(int signal)
{
    (void)signal;
    change();
    handled++;
}

static void *small(void *unused)
{
    (void)unused;
    change();
    return NULL;
}

int main(void)
{
    // 1.5 KiB are left for the handler and whatever watches it, as in a page on a machine without AVX-512.
    unsigned long frame = getauxval(AT_MINSIGSTKSZ), size = PAGE;
    if (frame + 1536 > size)
        size = (frame + 1536 + PAGE - 1) & -PAGE;
    char *area = mmap(NULL, PAGE + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(area + PAGE, size, PROT_READ | PROT_WRITE);
    stack_t stack = {.ss_sp = area + PAGE, .ss_size = size};
    if (sigaltstack(&stack, NULL)) {
        perror("sigaltstack");
        return 1;
    }
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < 50; i++)
        raise(SIGUSR1);
    if (handled != 50)
        return 1;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN))
        return 1;
    for (int i = 0; i < 50; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, small, NULL))
            return 1;
        pthread_join(thread, NULL);
    }
    puts("stack ok");
    return 0;
}
