/* Subscribers that allocate and free under a lock of their own, while threads do the same; with whatever allocator is
 * preloaded.
 *
 *   allocator locks|half|none SECONDS [THREADS]
 *
 * `locks`: where it must not wait, it refuses if it cannot have the lock. `half`: it refuses every other time. `none`: never, to compare. Where it may wait it
 * takes the lock and allocates. Two phases: nobody refuses, then it refuses; afterwards as much memory is in use as after the
 * first, when the allocator has given back what it can. Prints "ok" and what has happened; a deadlock is for whoever runs it to notice. */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s (errno %d)\n", __LINE__, #what, errno), exit(1)))
#define ADD(x) __atomic_add_fetch(&(x), 1, __ATOMIC_SEQ_CST)
#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define SET(x, to) __atomic_store_n(&(x), to, __ATOMIC_SEQ_CST)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int half, none, refusing, stop;
static long asked, refused, waited, rounds, failures, most;

/* Each allocator's word for: give back what you do not need. */
extern void MallocExtension_ReleaseFreeMemory(void) __attribute__((weak));
extern void mi_collect(int) __attribute__((weak));
extern int mallctl(const char *, void *, size_t *, void *, size_t) __attribute__((weak));

static void told(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    CHECK(change->blocking);
    pthread_mutex_lock(&lock);
    free(malloc(3000));
    pthread_mutex_unlock(&lock);
    ADD(waited);
}

static int asks(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    CHECK(!change->blocking);
    long now = ADD(asked);
    if (GET(refusing)) {
        if (half ? now % 2 : pthread_mutex_trylock(&lock) != 0) {
            ADD(refused);
            return -EAGAIN;
        }
        if (!half)
            pthread_mutex_unlock(&lock);
    }
    return 0;
}

/* Small, middling and large: some are mappings of their own with any allocator. */
static size_t some_size(unsigned *seed) {
    unsigned pick = rand_r(seed) % 100;
    if (pick < 60)
        return 16 + rand_r(seed) % 4000;
    if (pick < 90)
        return 4096 + rand_r(seed) % (200 << 10);
    return (1 << 20) + rand_r(seed) % (pick < 98 ? 3 << 20 : 40 << 20);
}

static void *work(void *number) {
    enum { KEPT = 24 };
    unsigned seed = (unsigned)(size_t)number * 7919 + 1;
    char *kept[KEPT] = {0};
    while (!GET(stop)) {
        for (int at = 0; at < KEPT; at++) {
            size_t size = some_size(&seed);
            int under_lock = rand_r(&seed) % 2;
            if (under_lock)
                pthread_mutex_lock(&lock);
            free(kept[at]);
            kept[at] = malloc(size);
            if (under_lock)
                pthread_mutex_unlock(&lock);
            if (kept[at]) {
                kept[at][0] = kept[at][size / 2] = kept[at][size - 1] = 1;
            } else {
                ADD(failures);
            }
        }
        /* The program's own calls may wait; nobody may hold the lock meanwhile. */
        char *own = mmap(NULL, 8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(own != MAP_FAILED);
        own[0] = 1;
        while (munmap(own, 8 << 12) != 0) {
            CHECK(errno == ENOMEM);
            ADD(failures);
            usleep(100);
        }
        ADD(rounds);
        long now = (long)mmu_notifier_quarantined(NULL);
        if (now > GET(most))
            SET(most, now);
    }
    for (int at = 0; at < KEPT; at++)
        free(kept[at]);
    return NULL;
}

static void phase(int seconds, int threads, int refuse) {
    pthread_t made[256];
    SET(stop, 0);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_create(&made[at], NULL, work, (void *)(size_t)at) == 0);
    SET(refusing, refuse);
    long before = GET(rounds);
    time_t end = time(NULL) + seconds;
    while (time(NULL) < end || GET(rounds) < before + threads)
        usleep(10000);
    SET(stop, 1);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_join(made[at], NULL) == 0);
    SET(refusing, 0);
}

static long number_in(const char *path, int skip) {
    FILE *file = fopen(path, "r");
    CHECK(file);
    long value = 0;
    for (int at = 0; at <= skip; at++)
        CHECK(fscanf(file, "%ld", &value) == 1);
    fclose(file);
    return value;
}

/* MiB in use when the allocator has given back what it can. */
static long resident(void) {
    malloc_trim(0);
    if (MallocExtension_ReleaseFreeMemory)
        MallocExtension_ReleaseFreeMemory();
    if (mi_collect)
        mi_collect(1);
    if (mallctl)
        mallctl("arena.4096.purge", NULL, NULL, NULL, 0);
    return number_in("/proc/self/statm", 1) / 256;
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    half = strcmp(argv[1], "half") == 0;
    none = strcmp(argv[1], "none") == 0;
    int seconds = atoi(argv[2]), threads = argc > 3 ? atoi(argv[3]) : 16;
    /* glibc moves these limits up as it sees large blocks, and then keeps much. */
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    mallopt(M_TRIM_THRESHOLD, 128 << 10);
    CHECK(mmu_notifier_install() == 0);
    struct mmu_notifier_refuser_ops ops = {told, asks, NULL};
    struct mmu_notifier_subscription *subscription;
    CHECK(mmu_notifier_subscribe_refuser(&ops, sizeof ops, NULL, &subscription) == 0);

    int quiet = seconds / 6 + 1;
    phase(quiet, threads, 0);
    long before = resident();
    phase(seconds, threads, !none);
    size_t bytes = 1;
    while (mmu_notifier_quarantined(&bytes) != 0)
        usleep(1000);
    CHECK(bytes == 0);
    long after = resident();
    CHECK(mmu_notifier_quarantined(&bytes) == 0);
    mmu_notifier_unsubscribe(subscription);
    CHECK(asked > 0 && (refused > 0) == !none);
    printf("ok: %ld rounds, asked %ld times, refused %ld, may wait %ld, at most %ld put off, %ld calls failed, "
           "%ld MiB resident before and %ld after\n",
           rounds, asked, refused, waited, most, failures, before, after);
    /* What an allocator was refused to give back it gives back when it has used it again: some MiB, however long it ran. */
    CHECK(after < before + 64);
    return 0;
}
