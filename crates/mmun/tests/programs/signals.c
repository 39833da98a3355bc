// A storm of SIGALRM whose handler makes memory calls, over a thread that makes memory calls: plain, on
// an alternate stack, and with a jump out of the handler.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#define PAGE 4096L

enum mode { PLAIN, ALTERNATE, JUMP };
static volatile enum mode mode;
static volatile sig_atomic_t handled, armed;
static sigjmp_buf out;

static void fail(const char *what)
{
    write(1, what, strlen(what));
    write(1, "\n", 1);
    _exit(1);
}

static void on_alarm(int signal)
{
    (void)signal;
    handled++;
    char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        fail("mmap in the handler");
    p[0] = p[2 * PAGE] = 1;
    if (mprotect(p, PAGE, PROT_READ) || madvise(p + 2 * PAGE, PAGE, MADV_DONTNEED) || p[2 * PAGE] != 0)
        fail("mprotect or madvise in the handler");
    if (munmap(p, 3 * PAGE))
        fail("munmap in the handler");
    if (mode == JUMP && armed)
        siglongjmp(out, 1);
}

static void every(long microseconds)
{
    struct itimerval when = {{0, microseconds}, {0, microseconds}};
    setitimer(ITIMER_REAL, &when, NULL);
}

// All in a place of its own: a jump out of the middle leaves nothing that is not mapped over again.
static void change(char *place, unsigned round)
{
    char *p = mmap(place, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (p != place)
        fail("mmap at a fixed place");
    for (int i = 0; i < 8; i++)
        p[i * PAGE] = (char)(round + i);
    if (madvise(p, 2 * PAGE, MADV_DONTNEED) || p[0] || p[PAGE])
        fail("madvise");
    if (mprotect(p + 2 * PAGE, PAGE, PROT_NONE) || munmap(p + 3 * PAGE, PAGE))
        fail("mprotect or munmap");
    for (int i = 4; i < 8; i++)
        if (p[i * PAGE] != (char)(round + i))
            fail("memory changed");
}

int main(int argc, char **argv)
{
    int signals = argc > 1 ? atoi(argv[1]) : 600;
    char *place = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    for (mode = PLAIN; mode <= JUMP; mode++) {
        if (mode == ALTERNATE && sigaltstack(&stack, NULL))
            fail("sigaltstack");
        if (mode == JUMP) {
            stack.ss_flags = SS_DISABLE;
            sigaltstack(&stack, NULL);
        }
        struct sigaction action = {.sa_handler = on_alarm};
        action.sa_flags = SA_RESTART | (mode == ALTERNATE ? SA_ONSTACK : 0);
        sigaction(SIGALRM, &action, NULL);
        handled = 0;
        volatile unsigned round = 0;
        every(300);
        if (mode == JUMP)
            sigsetjmp(out, 1);
        armed = 1;
        while (handled < signals)
            change(place, round++);
        armed = 0;
        every(0);
    }
    puts("signals ok");
    return 0;
}
