/* Every form of fork with subscriptions alive, while threads change memory and allocate: the child starts with an empty address
 * space, and nobody leaves a mapping behind.
 *
 *   forms TIMES [THREADS]
 *
 * Prints "ok" and what has happened; a deadlock is for whoever runs it to notice. */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what) ((what) ? (void)0 : (dprintf(1, "line %d: not so: %s (errno %d)\n", __LINE__, #what, errno), _exit(1)))
#define ADD(x) __atomic_add_fetch(&(x), 1, __ATOMIC_SEQ_CST)
#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)

static int stop;
static long starts, ends, asked, refused, released;

static void start(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    ADD(starts);
    if (change->event == MMU_NOTIFIER_RELEASE)
        ADD(released);
}
static void end(const struct mmu_notifier_change *change, void *unused) {
    (void)change, (void)unused;
    ADD(ends);
}
static void release(void *unused) {
    (void)unused;
    ADD(released);
}
static void may_wait(const struct mmu_notifier_change *change, void *unused) { (void)change, (void)unused; }
static int asks(const struct mmu_notifier_change *change, void *unused) {
    (void)unused;
    /* Not the forks, which could not be counted then; and rarely enough that what cannot be put off goes through. */
    if (change->event != MMU_NOTIFIER_PROTECTION_PAGE && ADD(asked) % 5 == 0) {
        ADD(refused);
        return -EAGAIN;
    }
    return 0;
}

static void *work(void *number) {
    unsigned seed = (unsigned)(size_t)number;
    while (!GET(stop)) {
        char *page = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(page != MAP_FAILED);
        page[0] = 1;
        char *block = malloc((128 << 10) + rand_r(&seed) % (512 << 10));
        CHECK(block);
        block[0] = 1;
        free(block);
        CHECK(munmap(page, 4 * PAGE) == 0);
        usleep(50);
    }
    return NULL;
}

static void nothing(const struct mmu_notifier_change *change, void *unused) { (void)change, (void)unused; }
static const struct mmu_notifier_ops hears_nothing = {nothing, nothing, NULL};

/* Comes and goes: now and then a child is forked in the middle of it, and in the middle of an allocation. */
static void *comes_and_goes(void *unused) {
    struct mmu_notifier_subscription *subscription;
    while (!GET(stop)) {
        CHECK(mmu_notifier_subscribe(&hears_nothing, sizeof hears_nothing, NULL, &subscription) == 0);
        mmu_notifier_unsubscribe(subscription);
    }
    return unused;
}

/* Lines of /proc/self/maps, by system calls alone. */
static long mappings(void) {
    char bytes[4096];
    long lines = 0, got;
    int file = open("/proc/self/maps", 0);
    CHECK(file >= 0);
    while ((got = read(file, bytes, sizeof bytes)) > 0)
        for (long at = 0; at < got; at++)
            lines += bytes[at] == '\n';
    close(file);
    return lines;
}

/* In a child with memory of its own: nobody is told, and nothing waits. */
static void alone(void) {
    long before = GET(starts);
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    page[0] = 1;
    CHECK(munmap(page, PAGE) == 0);
    CHECK(GET(starts) == before);
    CHECK(mmu_notifier_quarantined(NULL) == 0);
    _exit(7);
}

/* And subscribes, which takes locks of the C library's: only fork() gives them to the child. */
static void subscribes(void) {
    struct mmu_notifier_subscription *own;
    CHECK(mmu_notifier_subscribe(&hears_nothing, sizeof hears_nothing, NULL, &own) == 0);
    mmu_notifier_unsubscribe(own);
}

/* A child of a child and so on: each has as many mappings as the first. */
static void generations(int left, long expected) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        long here = mappings();
        CHECK(expected == 0 || here <= expected);
        if (left > 0)
            generations(left - 1, here);
        alone();
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    if (expected)
        _exit(7);
}

static pid_t vforked(void) {
    pid_t child = vfork();
    if (child == 0)
        _exit(7);
    return child;
}

extern char **environ;

static pid_t one(long at, const char **form) {
    pid_t child = -1;
    struct clone_args args = {.exit_signal = SIGCHLD};
    char *argv[] = {"sh", "-c", "exit 7", NULL};
    static const char *const forms[] = {"fork", "_Fork", "raw fork", "raw clone", "clone3", "vfork", "posix_spawn"};
    *form = forms[at % 7];
    switch (at % 7) {
    case 0: child = fork(); break;
    case 1: child = _Fork(); break;
    case 2: child = syscall(SYS_fork); break;
    case 3: child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); break;
    case 4: child = syscall(SYS_clone3, &args, sizeof args); break;
    case 5: return vforked();
    case 6: CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, argv, environ) == 0); return child;
    }
    if (child == 0 && at % 7 == 0)
        subscribes();
    if (child == 0)
        alone();
    return child;
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    long times = atol(argv[1]), quarantined = 0;
    int threads = argc > 2 ? atoi(argv[2]) : 8;
    pthread_t made[256], comes;
    CHECK(mmu_notifier_install() == 0);
    struct mmu_notifier_ops ops = {start, end, release};
    struct mmu_notifier_refuser_ops refuser = {may_wait, asks, NULL};
    struct mmu_notifier_subscription *paired, *refusing;
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, NULL, &paired) == 0);
    CHECK(mmu_notifier_subscribe_refuser(&refuser, sizeof refuser, NULL, &refusing) == 0);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_create(&made[at], NULL, work, (void *)(size_t)at) == 0);
    CHECK(pthread_create(&comes, NULL, comes_and_goes, NULL) == 0);
    long before = 0;
    for (long at = 0; at < times; at++) {
        const char *form;
        pid_t child = one(at, &form);
        CHECK(child > 0);
        quarantined += mmu_notifier_quarantined(NULL) != 0;
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) {
            printf("%ld, %s: status %x\n", at, form, status);
            return 1;
        }
        if (at == times / 10)
            before = mappings();
    }
    generations(20, 0);
    long after = mappings();
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int at = 0; at < threads; at++)
        CHECK(pthread_join(made[at], NULL) == 0);
    CHECK(pthread_join(comes, NULL) == 0);
    while (mmu_notifier_quarantined(NULL) != 0)
        usleep(1000);
    /* Children that borrow the memory become programs, and exit. */
    CHECK(released == 0);
    mmu_notifier_unsubscribe(paired);
    mmu_notifier_unsubscribe(refusing);
    CHECK(starts == ends && starts > times / 2);
    /* What the threads have mapped right then. */
    CHECK(after <= before + 8 * threads + 8);
    printf("ok: %ld children, %ld starts and as many ends, %ld refused, %ld times something was put off; %ld mappings, then "
           "%ld\n",
           times, starts, refused, quarantined, before, after);
    return 0;
}
