// Threads that nobody joins: the last thing that one of musl does is to unmap its own stack. detached COUNT
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sched.h>
static atomic_int done;
static void *work(void *unused) {
    void *at = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || munmap(at, 8192)) exit(1);
    free(malloc(100000));
    done++;
    return unused;
}
int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 10;
    pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < count; i++) { pthread_t t; if (pthread_create(&t, &a, work, 0)) return 1; while (done <= i) sched_yield(); }
    /* Until all are gone, and their stacks: a directory of threads has a link for each, and two more. */
    struct stat threads;
    do sched_yield(); while (!stat("/proc/self/task", &threads) && threads.st_nlink > 3);
    puts("detached ok");
    return 0;
}
