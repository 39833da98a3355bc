/* The corners of the C interface, one for each word on the command line; prints "ok". */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define COUNT(x) __atomic_add_fetch(&(x), 1, __ATOMIC_SEQ_CST)
#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), exit(1)))

struct counts {
    long starts, ends, releases;
    struct mmu_notifier_subscription *subscription;
    size_t only; /* count changes that begin here, or 0: all */
};

static void start(const struct mmu_notifier_change *change, void *context) {
    struct counts *counts = context;
    if (!counts->only || change->start == counts->only)
        COUNT(counts->starts);
}
static void end(const struct mmu_notifier_change *change, void *context) {
    struct counts *counts = context;
    if (!counts->only || change->start == counts->only)
        COUNT(counts->ends);
}
static void release(void *context) {
    struct counts *counts = context;
    COUNT(counts->releases);
}

static void subscribe(struct counts *counts, void (*at_start)(const struct mmu_notifier_change *, void *),
                      void (*at_release)(void *)) {
    struct mmu_notifier_ops ops = {at_start, end, at_release};
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, counts, &counts->subscription) == 0);
}

static char *map(void) {
    char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

/* The change that is announced makes memory calls of its own: the outer one ends after it, not in it. */
static struct counts outer = {.only = 16 * PAGE};
static int unmap_inside(void *unused) {
    (void)unused;
    CHECK(munmap(map(), PAGE) == 0);
    CHECK(outer.starts == 1 && outer.ends == 0);
    return 7;
}
static void nested(void) {
    subscribe(&outer, start, release);
    CHECK(mmu_notifier_invalidate(16 * PAGE, PAGE, MMU_NOTIFIER_UNMAP, 1, unmap_inside, NULL) == 7);
    CHECK(outer.starts == 1 && outer.ends == 1);
}

/* A jump out of the change: its end comes with the thread's next change. */
static jmp_buf back;
static int jump(void *unused) {
    (void)unused;
    longjmp(back, 1);
}
static void jumped(void) {
    subscribe(&outer, start, release);
    if (!setjmp(back))
        mmu_notifier_invalidate(16 * PAGE, PAGE, MMU_NOTIFIER_UNMAP, 1, jump, NULL);
    munmap(map(), PAGE);
    CHECK(outer.starts == 1 && outer.ends == 1);
}

/* A callback makes memory calls: the others are told of them, itself not. */
static struct counts maker, witness;
static void start_and_unmap(const struct mmu_notifier_change *change, void *context) {
    start(change, context);
    munmap(map(), PAGE);
}
static void calls_in_callbacks(void) {
    subscribe(&witness, start, release);
    subscribe(&maker, start_and_unmap, release);
    char *at = map();
    long before = witness.starts;
    munmap(at, PAGE);
    CHECK(maker.starts == maker.ends && maker.starts > 0);
    CHECK(witness.starts == before + 2 && witness.ends == witness.starts);
}

/* release makes a memory call, at unsubscribing, in an own callback and at exit. */
static struct counts cleaner;
static void release_and_unmap(void *context) {
    release(context);
    for (int i = 0; i < 10; i++)
        munmap(map(), PAGE);
}
static void start_and_leave(const struct mmu_notifier_change *change, void *context) {
    struct counts *counts = context;
    start(change, context);
    struct mmu_notifier_subscription *subscription = __atomic_exchange_n(&counts->subscription, NULL, __ATOMIC_SEQ_CST);
    if (subscription)
        mmu_notifier_unsubscribe(subscription);
}
static void cleaning(void) {
    subscribe(&witness, start, release);
    subscribe(&cleaner, start, release_and_unmap);
    mmu_notifier_unsubscribe(cleaner.subscription);
    CHECK(cleaner.releases == 1);
    subscribe(&cleaner, start_and_leave, release_and_unmap);
    munmap(map(), PAGE);
    CHECK(cleaner.releases == 2);
    long starts = cleaner.starts;
    munmap(map(), PAGE);
    CHECK(cleaner.starts == starts && witness.starts == witness.ends);
    subscribe(&cleaner, start, release_and_unmap);
    pid_t child = fork();
    if (child == 0) {
        memset(&cleaner, 0, sizeof cleaner);
        subscribe(&cleaner, start, release_and_unmap);
        exit(0); /* the last release, with memory calls in it */
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Two threads leave, each in a callback of its own. */
static struct counts leavers[2];
static pthread_barrier_t both;
static int inside;
static void meet_and_leave(const struct mmu_notifier_change *change, void *context) {
    struct counts *counts = context;
    if (change->start != counts->only)
        return;
    COUNT(counts->starts);
    COUNT(inside);
    while (__atomic_load_n(&inside, __ATOMIC_SEQ_CST) < 2)
        ;
    mmu_notifier_unsubscribe(counts->subscription);
}
static void *unmap_it(void *context) {
    struct counts *counts = context;
    pthread_barrier_wait(&both);
    munmap((void *)counts->only, PAGE);
    return NULL;
}
static void both_leave(void) {
    pthread_t threads[2];
    pthread_barrier_init(&both, NULL, 2);
    for (int i = 0; i < 2; i++) {
        leavers[i].only = (size_t)map();
        subscribe(&leavers[i], meet_and_leave, release);
    }
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, unmap_it, &leavers[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(leavers[0].releases == 1 && leavers[1].releases == 1);
}

/* Signal handlers that make memory calls, in the midst of subscribing. */
static volatile int signals;
static void unmap_in_signal(int number) {
    (void)number;
    munmap(map(), PAGE);
    signals++;
}
static void signalled(void) {
    struct sigaction action = {.sa_handler = unmap_in_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    subscribe(&witness, start, release);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec often = {{0, 50000}, {0, 50000}};
    timer_settime(timer, 0, &often, NULL);
    static struct counts many[16];
    for (int round = 0; round < 20000; round++) {
        for (int i = 0; i < 16; i++)
            subscribe(&many[i], start, release);
        for (int i = 0; i < 16; i++)
            mmu_notifier_unsubscribe(many[i].subscription);
        if (signals > 5000)
            break;
    }
    timer_delete(timer);
    CHECK(signals > 10);
    CHECK(witness.starts == witness.ends);
}

/* A child gives back what its parent has subscribed: nobody is told, nothing is freed twice. */
static void forked(void) {
    static struct counts many[64];
    for (int i = 0; i < 64; i++)
        subscribe(&many[i], start, release);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 64; i++)
            mmu_notifier_unsubscribe(many[i].subscription);
        for (int i = 0; i < 64; i++)
            CHECK(many[i].releases == 0);
        for (int round = 0; round < 100; round++) {
            for (int i = 0; i < 64; i++)
                subscribe(&many[i], start, release);
            for (int i = 0; i < 64; i++)
                mmu_notifier_unsubscribe(many[i].subscription);
        }
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    munmap(map(), PAGE);
    for (int i = 0; i < 64; i++) {
        CHECK(many[i].starts > 0 && many[i].starts == many[i].ends);
        mmu_notifier_unsubscribe(many[i].subscription);
        CHECK(many[i].releases == 1);
    }
}

/* Forks while other threads subscribe: the child's heap and list are whole. */
static volatile int stop;
static void *churn(void *unused) {
    while (!stop) {
        struct counts counts = {0};
        subscribe(&counts, start, release);
        munmap(map(), PAGE);
        mmu_notifier_unsubscribe(counts.subscription);
        CHECK(counts.releases == 1);
    }
    return unused;
}
static void forks(void) {
    pthread_t threads[3];
    static struct counts many[64];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < 300; i++) {
        for (int j = 0; j < 64; j++)
            subscribe(&many[j], start, release);
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            for (int j = 0; j < 64; j++)
                mmu_notifier_unsubscribe(many[j].subscription);
            for (int round = 0; round < 20; round++) {
                struct counts counts = {0};
                subscribe(&counts, start, release);
                munmap(map(), PAGE);
                mmu_notifier_unsubscribe(counts.subscription);
                CHECK(counts.starts == 1 && counts.ends == 1 && counts.releases == 1);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        if (status)
            printf("child %d: %x\n", i, status), exit(1);
        for (int j = 0; j < 64; j++)
            mmu_notifier_unsubscribe(many[j].subscription);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
}

/* The library really goes, by ld.so's own munmap. */
static void dlclosed(void) {
    void *library = dlopen("libm.so.6", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        library = dlopen("libanl.so.1", RTLD_NOW);
    CHECK(library);
    void *symbol = dlsym(library, "cos");
    Dl_info info;
    CHECK(symbol && dladdr(symbol, &info));
    outer.only = (size_t)info.dli_fbase;
    subscribe(&outer, start, release);
    CHECK(dlclose(library) == 0);
    CHECK(dlopen("libm.so.6", RTLD_NOW | RTLD_NOLOAD) == NULL);
    CHECK(outer.starts == 1 && outer.ends == 1);
}

static int nothing(void *unused) {
    (void)unused;
    return 9;
}

/* The path of another copy of the object, the second word. */
static const char *copy;
static struct counts there;
static void second_copy(void) {
    void *second = dlopen(copy, RTLD_NOW | RTLD_LOCAL);
    CHECK(second);
    int (*install)(void) = (int (*)(void))dlsym(second, "mmu_notifier_install");
    CHECK(install && install != mmu_notifier_install && install() == 0);
    subscribe(&witness, start, release);
    __typeof__(mmu_notifier_subscribe) *subscribe_there = dlsym(second, "mmu_notifier_subscribe");
    __typeof__(mmu_notifier_unsubscribe) *unsubscribe_there = dlsym(second, "mmu_notifier_unsubscribe");
    __typeof__(mmu_notifier_invalidate) *invalidate_there = dlsym(second, "mmu_notifier_invalidate");
    struct mmu_notifier_ops ops = {start, end, release};
    CHECK(subscribe_there(&ops, sizeof ops, &there, &there.subscription) == 0);
    munmap(map(), PAGE);
    CHECK(witness.starts == 1 && witness.ends == 1);
    CHECK(there.starts == 1 && there.ends == 1);
    CHECK(invalidate_there(16 * PAGE, PAGE, MMU_NOTIFIER_UNMAP, 1, nothing, NULL) == 9);
    CHECK(witness.starts == 2 && there.starts == 2);
    unsubscribe_there(there.subscription);
    CHECK(there.releases == 1 && dlclose(second) == 0);
    munmap(map(), PAGE);
    CHECK(witness.starts == 3 && witness.ends == 3 && there.starts == 2);
}

/* Before the linked object: from then on that is told by this copy. */
static void install_copy_first(void) {
    void *first = dlopen(copy, RTLD_NOW | RTLD_LOCAL);
    CHECK(first);
    int (*install)(void) = (int (*)(void))dlsym(first, "mmu_notifier_install");
    CHECK(install && install != mmu_notifier_install && install() == 0);
}

/* Linked, or preloaded by somebody else than mmun: the environment is not ours to change. */
static void environment(void) { CHECK(getenv("LD_PRELOAD") != NULL); }

static const struct { const char *name; void (*run)(void); } cases[] = {
    {"nested", nested}, {"jumped", jumped}, {"calls_in_callbacks", calls_in_callbacks}, {"cleaning", cleaning},
    {"both_leave", both_leave}, {"signalled", signalled}, {"forked", forked}, {"forks", forks},
    {"dlclosed", dlclosed}, {"second_copy", second_copy},
    {"environment", environment},
};

int main(int count, char **words) {
    alarm(60);
    CHECK(count >= 2);
    copy = words[2];
    if (count == 4 && !strcmp(words[3], "fed"))
        install_copy_first();
    CHECK(mmu_notifier_install() == 0);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(words[1], cases[i].name)) {
            cases[i].run();
            puts("ok");
            return 0;
        }
    return 2;
}
