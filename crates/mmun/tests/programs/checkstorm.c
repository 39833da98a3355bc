/* Threads that register buffers and make mistakes with some of them, while signals come and children are forked. Prints how many
   mistakes were made: each is a stale registration. */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 16

static int rounds;
static long mistakes;
static long signals;

/* A memory call inside of whatever is going on. */
static void on_signal(int number) {
    (void)number;
    void *at = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at, PAGE);
    __atomic_add_fetch(&signals, 1, __ATOMIC_RELAXED);
}

static void *work(void *number) {
    unsigned seed = (unsigned)(uintptr_t)number;
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    int ring = syscall(SYS_io_uring_setup, 4, &parameters);
    if (ring < 0) exit(99);
    for (int round = 0; round < rounds; round++) {
        char *at = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        struct iovec vectors[4];
        for (int nth = 0; nth < 4; nth++) vectors[nth] = (struct iovec){at + 4 * nth * PAGE, 4 * PAGE};
        if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, vectors, 4) != 0) exit(98);
        int what = rand_r(&seed) % 4;
        char *page = at + rand_r(&seed) % PAGES * PAGE;
        if (what == 0) {
            madvise(page, PAGE, MADV_DONTNEED);
            __atomic_add_fetch(&mistakes, 1, __ATOMIC_RELAXED);
        } else if (what == 1) {
            madvise(page, PAGE, MADV_FREE);
        } else if (what == 2 && round % 8 == 0) {
            pid_t child = fork();
            if (child == 0) {
                madvise(at, PAGES * PAGE, MADV_DONTNEED);
                munmap(at, PAGES * PAGE);
                _exit(0);
            }
            while (waitpid(child, 0, 0) < 0) {}
        }
        if (syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, 0, 0) != 0) exit(97);
        munmap(at, PAGES * PAGE);
    }
    close(ring);
    return 0;
}

/* Something low stays registered, so that whatever a signal handler maps lies between registrations. */
static void stay_registered(void) {
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    int ring = syscall(SYS_io_uring_setup, 4, &parameters);
    void *low = mmap((void *)0x10000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    struct iovec vector = {low, PAGE};
    if (low == MAP_FAILED || syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &vector, 1) != 0) exit(95);
}

int main(int argc, char **argv) {
    stay_registered();
    rounds = argc > 1 ? atoi(argv[1]) : 200;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    struct itimerval often = {{0, 100}, {0, 100}};
    setitimer(ITIMER_REAL, &often, 0);
    pthread_t threads[8];
    for (uintptr_t nth = 0; nth < 8; nth++) pthread_create(&threads[nth], 0, work, (void *)(nth + 1));
    /* They come to those who work. */
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, 0);
    for (int nth = 0; nth < 8; nth++) pthread_join(threads[nth], 0);
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, 0);
    printf("%ld\n", mistakes);
    return signals > 0 ? 0 : 96;
}
