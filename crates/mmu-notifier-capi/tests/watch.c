/* Subscribes, makes every kind of change once, and checks what it was told and when. */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), exit(1)))

static struct { size_t start, end; int event; int told, ended, mapped_at_start, mapped_at_end; } want;
static long starts, ends;
static int pipes[2];

/* Whether a page can be read, without touching it if not. */
static int readable(size_t page) {
    char byte;
    if (write(pipes[1], (void *)page, 1) != 1)
        return 0;
    return read(pipes[0], &byte, 1) == 1;
}

static void start(const struct mmu_notifier_change *change, void *context) {
    CHECK(context == &want);
    __atomic_add_fetch(&starts, 1, __ATOMIC_SEQ_CST);
    if (change->start == want.start && change->end == want.end && change->event == want.event) {
        want.told++;
        want.mapped_at_start = readable(want.start);
    }
}

static void end(const struct mmu_notifier_change *change, void *context) {
    CHECK(context == &want);
    __atomic_add_fetch(&ends, 1, __ATOMIC_SEQ_CST);
    if (change->start == want.start && change->end == want.end && change->event == want.event) {
        want.ended++;
        want.mapped_at_end = readable(want.start);
    }
}

static void expect(void *at, size_t bytes, int event) {
    memset(&want, 0, sizeof want);
    want.start = (size_t)at, want.end = (size_t)at + bytes, want.event = event;
}

/* Told once before and once after; the page could be read before, and after or not. */
static void check(int line, int readable_after) {
    if (want.told != 1 || want.ended != 1 || !want.mapped_at_start || want.mapped_at_end != readable_after) {
        printf("line %d: told %d, ended %d, readable before %d, after %d\n", line, want.told, want.ended,
               want.mapped_at_start, want.mapped_at_end);
        exit(1);
    }
}

static char *map(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 1, pages * PAGE);
    return at;
}

static int refusals;
static void asked_blocking(const struct mmu_notifier_change *change, void *context) { CHECK(change->blocking && !context); }
static int asked(const struct mmu_notifier_change *change, void *context) {
    CHECK(!change->blocking && !context);
    refusals++;
    return -EAGAIN;
}
static int make_change(void *argument) { return ++*(int *)argument; }
static void *churn(void *unused) {
    for (int i = 0; i < 2000; i++)
        munmap(map(1), PAGE);
    return unused;
}

int main(void) {
    struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription, *refuser;
    CHECK(pipe(pipes) == 0);
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, &want, &subscription) == -ENODEV);
    CHECK(mmu_notifier_install() == 0 && mmu_notifier_install() == 0);
    CHECK(mmu_notifier_subscribe(NULL, sizeof ops, &want, &subscription) == -EINVAL);
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops + 8, &want, &subscription) == -EINVAL);
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, &want, NULL) == -EINVAL);
    struct mmu_notifier_ops half = {start, NULL, NULL};
    CHECK(mmu_notifier_subscribe(&half, sizeof half, &want, &subscription) == -EINVAL);
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, &want, &subscription) == 0);

    char *at = map(16);
    expect(at, PAGE, MMU_NOTIFIER_UNMAP), munmap(at, PAGE), check(__LINE__, 0);
    expect(at + PAGE, PAGE, MMU_NOTIFIER_UNMAP), syscall(SYS_munmap, at + PAGE, PAGE), check(__LINE__, 0);
    expect(at + 2 * PAGE, PAGE, MMU_NOTIFIER_CLEAR), madvise(at + 2 * PAGE, PAGE, MADV_DONTNEED), check(__LINE__, 1);
    expect(at + 3 * PAGE, PAGE, MMU_NOTIFIER_PROTECTION_VMA), mprotect(at + 3 * PAGE, PAGE, PROT_NONE), check(__LINE__, 0);
    expect(at + 4 * PAGE, PAGE, MMU_NOTIFIER_UNMAP);
    mmap(at + 4 * PAGE, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), check(__LINE__, 0);
    expect(at + 5 * PAGE, PAGE, MMU_NOTIFIER_UNMAP); /* source */
    CHECK(mremap(at + 5 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 6 * PAGE) == at + 6 * PAGE), check(__LINE__, 0);
    expect(at + 8 * PAGE, PAGE, MMU_NOTIFIER_UNMAP); /* destination */
    CHECK(mremap(at + 7 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 8 * PAGE) == at + 8 * PAGE), check(__LINE__, 1);
    struct iovec piece = {at + 9 * PAGE, PAGE};
    expect(at + 9 * PAGE, PAGE, MMU_NOTIFIER_CLEAR);
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    syscall(SYS_process_madvise, self, &piece, 1, MADV_DONTNEED, 0), check(__LINE__, 1);
    int file = memfd_create("watch", 0);
    CHECK(ftruncate(file, 4 * PAGE) == 0);
    char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    memset(shared, 1, 4 * PAGE);
    expect(shared, PAGE, MMU_NOTIFIER_CLEAR);
    CHECK(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == 0), check(__LINE__, 1);
    expect(shared + 2 * PAGE, 2 * PAGE, MMU_NOTIFIER_CLEAR), CHECK(ftruncate(file, 2 * PAGE) == 0), check(__LINE__, 0);
    char *large = malloc(1 << 20); /* freed by munmap inside libc */
    memset(large, 1, 1 << 20);
    expect(large - 16, (1 << 20) + PAGE, MMU_NOTIFIER_UNMAP), free(large), check(__LINE__, 0);
    expect(at + 10 * PAGE, PAGE, MMU_NOTIFIER_UNMAP), CHECK(munmap(at + 10 * PAGE + 1, PAGE) == -1);
    CHECK(want.told == want.ended); /* a failed call has its end, if it was announced */
    long heap = starts;
    CHECK(sbrk(PAGE) != (void *)-1 && sbrk(-(long)PAGE) != (void *)-1 && starts >= heap + 2);

    struct mmu_notifier_refuser_ops refuse = {asked_blocking, asked, NULL};
    CHECK(mmu_notifier_subscribe_refuser(&refuse, sizeof refuse, NULL, &refuser) == 0);
    long before = starts;
    /* The program's own call may wait: nobody is asked. */
    CHECK(munmap(at + 11 * PAGE, PAGE) == 0 && refusals == 0 && starts == before + 1);
    int made = 0;
    CHECK(mmu_notifier_invalidate(PAGE, PAGE, MMU_NOTIFIER_CLEAR, 0, make_change, &made) == -EAGAIN && made == 0);
    CHECK(mmu_notifier_invalidate(PAGE, PAGE, MMU_NOTIFIER_CLEAR, 1, make_change, &made) == 1);
    CHECK(mmu_notifier_invalidate(PAGE, 0, MMU_NOTIFIER_CLEAR, 1, make_change, &made) == -EINVAL);
    CHECK(mmu_notifier_invalidate(PAGE, -1, MMU_NOTIFIER_CLEAR, 1, make_change, &made) == -EINVAL);
    CHECK(mmu_notifier_invalidate(PAGE, PAGE, 99, 1, make_change, &made) == -EINVAL);
    CHECK(mmu_notifier_invalidate(PAGE, PAGE, MMU_NOTIFIER_CLEAR, 7, make_change, &made) == -EINVAL);
    CHECK(mmu_notifier_invalidate(PAGE, PAGE, MMU_NOTIFIER_CLEAR, 1, NULL, &made) == -EINVAL && made == 1);
    mmu_notifier_unsubscribe(refuser);

    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, churn, NULL) == 0);
    for (int i = 0; i < 2000; i++) {
        struct mmu_notifier_subscription *once;
        CHECK(mmu_notifier_subscribe_refuser(&refuse, sizeof refuse, NULL, &once) == 0);
        mmu_notifier_unsubscribe(once);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK(starts == ends);

    pid_t child = fork();
    if (child == 0) { /* an address space of its own, without the parent's subscribers */
        long forked = starts;
        munmap(at + 12 * PAGE, PAGE);
        if (starts != forked)
            _exit(1);
        struct mmu_notifier_subscription *own;
        if (mmu_notifier_subscribe(&ops, sizeof ops, &want, &own))
            _exit(2);
        munmap(at + 13 * PAGE, PAGE);
        mmu_notifier_unsubscribe(subscription);
        _exit(starts == forked + 1 ? 0 : 3);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);

    mmu_notifier_unsubscribe(subscription);
    mmu_notifier_unsubscribe(NULL);
    before = starts;
    munmap(at + 14 * PAGE, PAGE);
    CHECK(starts == before);
    puts("watch ok");
    return 0;
}
