/* Installs and uninstalls while threads map and unmap: what begins while it is installed is told, what begins while it is not,
 * is not.
 *
 *   cycles CYCLES [THREADS]
 *
 * Every other cycle the subscription stays. Prints "ok" and how many changes could be judged. */
#include "mmu_notifier.h"
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s (errno %d)\n", __LINE__, #what, errno), exit(1)))
#define ADD(x, more) __atomic_add_fetch(&(x), more, __ATOMIC_SEQ_CST)
#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)

/* Modulo 4: 1 while it is surely on, 3 while it is surely off, even while it is being switched. */
static long epoch = 3;
static int stop;
static long starts, ends, told_on, told_off;
static __thread char *mine;
static __thread int starts_of_mine, ends_of_mine;

static void start(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    ADD(starts, 1);
    starts_of_mine += change->start == (size_t)mine;
}
static void end(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    ADD(ends, 1);
    ends_of_mine += change->start == (size_t)mine;
}

static void *work(void *unused) {
    (void)unused;
    long on = 0, off = 0, rounds = 0;
    while (!GET(stop)) {
        mine = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mine != MAP_FAILED);
        mine[0] = 1;
        starts_of_mine = ends_of_mine = 0;
        long before = GET(epoch);
        CHECK(munmap(mine, 2 * PAGE) == 0);
        long after = GET(epoch);
        if (before == after && before % 4 == 1) {
            CHECK(starts_of_mine == 1 && ends_of_mine == 1);
            on++;
        } else if (before == after && before % 4 == 3) {
            CHECK(starts_of_mine == 0);
            off++;
        }
        /* So that two processors do for all. */
        usleep(500 + rounds++ % 7 * 200);
    }
    ADD(told_on, on);
    ADD(told_off, off);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    long cycles = atol(argv[1]);
    int threads = argc > 2 ? atoi(argv[2]) : 64;
    pthread_t made[256];
    struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription = NULL;
    long unended = 0;
    CHECK(mmu_notifier_uninstall() == -ENODEV);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_create(&made[at], NULL, work, NULL) == 0);
    for (long cycle = 0; cycle < cycles; cycle++) {
        ADD(epoch, 1);
        CHECK(mmu_notifier_install() == 0);
        if (!subscription)
            CHECK(mmu_notifier_subscribe(&ops, sizeof ops, NULL, &subscription) == 0);
        ADD(epoch, 1);
        long seen = GET(starts);
        void *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(page != MAP_FAILED && munmap(page, PAGE) == 0 && GET(starts) > seen);
        /* Twice is as good as once. */
        CHECK(mmu_notifier_install() == 0 && mmu_notifier_uninstall() == 0);
        usleep(100);
        ADD(epoch, 1);
        if (cycle % 2) {
            mmu_notifier_unsubscribe(subscription);
            subscription = NULL;
        }
        CHECK(mmu_notifier_uninstall() == 0);
        /* What was being announced is ended a moment later. Who unsubscribes has no end of what is open then. */
        while (subscription && GET(starts) - GET(ends) != unended)
            usleep(100);
        unended = GET(starts) - GET(ends);
        ADD(epoch, 1);
        usleep(100);
    }
    CHECK(mmu_notifier_uninstall() == -ENODEV);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_join(made[at], NULL) == 0);
    CHECK(told_on > 0 && told_off > 0);
    printf("ok: %ld cycles, %d threads, %ld starts, %ld ends; judged: %ld changes while on, %ld while off\n", cycles,
           threads, starts, ends, told_on, told_off);
    return 0;
}
