/* What a hook adds to a memory system call: the call through libc, hooked, against the same call made by code that no
 * hook has seen (written into anonymous memory), in turn, in one process.
 *
 *     hook none|ours|ucm SUBSCRIBERS THREADS DEPTH
 *
 * (DEPTH: bytes on the first thread's stack between `main` and the calls, through which is looked for signal frames) prints, for each kind of call: name, plain ns, hooked ns, added ns. A window's time is the wall time of all threads
 * divided by the calls of one. Plain and hooked are medians over the windows, added is the median of the differences
 * of neighbours. `none` shows what is left of the method's own error.
 */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <alloca.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define WINDOWS 801
#define CALLS 100
#define PAGE 4096UL

typedef long (*raw_call)(long, long, long, long, long, long);
static raw_call raw_mmap, raw_munmap, raw_madvise;

/* long f(a, b, c, d, e, f): the system call as libc makes it, but for errno. */
static raw_call make_raw(int number) {
    static unsigned char *code;
    unsigned char bytes[] = {
        0x49, 0x89, 0xca,                         /* mov    %rcx, %r10 */
        0xb8, 0, 0, 0, 0,                         /* mov    $number, %eax */
        0x0f, 0x05,                               /* syscall */
        0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,       /* cmp    $-4095, %rax */
        0x73, 0x01,                               /* jae    1f */
        0xc3,                                     /* ret */
        0xc3,                                     /* 1: ret */
    };
    memcpy(bytes + 4, &number, 4);
    if (!code)
        code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    raw_call call = (raw_call)code;
    memcpy(code, bytes, sizeof bytes);
    code += 64;
    return call;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
static void plain_madvise(char *page) { raw_madvise((long)page, PAGE, MADV_DONTNEED, 0, 0, 0); }
static void libc_madvise(char *page) { madvise(page, PAGE, MADV_DONTNEED); }
static void plain_pair(char *page) {
    (void)page;
    raw_munmap(raw_mmap(0, PAGE, PROT_READ | PROT_WRITE, PRIVATE, -1, 0), PAGE, 0, 0, 0, 0);
}
static void libc_pair(char *page) {
    (void)page;
    munmap(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, PRIVATE, -1, 0), PAGE);
}
static void plain_touched(char *page) {
    (void)page;
    char *at = (char *)raw_mmap(0, PAGE, PROT_READ | PROT_WRITE, PRIVATE, -1, 0);
    *(volatile char *)at = 1;
    raw_munmap((long)at, PAGE, 0, 0, 0, 0);
}
static void libc_touched(char *page) {
    (void)page;
    char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, PRIVATE, -1, 0);
    *(volatile char *)at = 1;
    munmap(at, PAGE);
}

static struct { const char *name; void (*plain)(char *), (*hooked)(char *); } kinds[] = {
    {"madvise", plain_madvise, libc_madvise},
    {"pair", plain_pair, libc_pair},
    {"touched", plain_touched, libc_touched},
};
#define KINDS (sizeof kinds / sizeof *kinds)

static double results[KINDS][2][WINDOWS];
static int threads;
static pthread_barrier_t barrier;

static void *work(void *index) {
    char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, PRIVATE, -1, 0);
    for (int window = 0; window < WINDOWS; window++)
        for (unsigned kind = 0; kind < KINDS; kind++)
            for (int turn = 0; turn < 2; turn++) {
                /* Who comes first changes: the second finds the caches warmer. */
                int hooked = turn ^ (window & 1);
                void (*call)(char *) = hooked ? kinds[kind].hooked : kinds[kind].plain;
                pthread_barrier_wait(&barrier);
                double begin = now();
                for (int i = 0; i < CALLS; i++)
                    call(page);
                pthread_barrier_wait(&barrier);
                if (!index)
                    results[kind][hooked][window] = (now() - begin) / CALLS;
            }
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void empty(const struct mmu_notifier_change *change, void *context) { (void)change, (void)context; }
static void empty_ucm(int type, void *event, void *argument) { (void)type, (void)event, (void)argument; }

int main(int count, char **words) {
    if (count != 5)
        return fprintf(stderr, "usage: hook none|ours|ucm SUBSCRIBERS THREADS DEPTH\n"), 2;
    int subscribers = atoi(words[2]);
    threads = atoi(words[3]);
    raw_mmap = make_raw(SYS_mmap), raw_munmap = make_raw(SYS_munmap), raw_madvise = make_raw(SYS_madvise);
    if (!strcmp(words[1], "ours")) {
        void *object = dlopen("libmmu_notifier_capi.so", RTLD_NOW);
        int (*install)(void) = object ? (int (*)(void))dlsym(object, "mmu_notifier_install") : NULL;
        int (*subscribe)(const struct mmu_notifier_ops *, size_t, void *, struct mmu_notifier_subscription **) =
            object ? dlsym(object, "mmu_notifier_subscribe") : NULL;
        if (!install || install())
            return fprintf(stderr, "hook: cannot install: %s\n", dlerror()), 1;
        for (int i = 0; i < subscribers; i++) {
            static struct mmu_notifier_ops ops = {empty, empty, NULL};
            struct mmu_notifier_subscription *subscription;
            if (subscribe(&ops, sizeof ops, NULL, &subscription))
                return 1;
        }
    } else if (!strcmp(words[1], "ucm")) {
        /* libucm leaves some of its symbols to libucs. */
        dlopen("libucs.so.0", RTLD_NOW | RTLD_GLOBAL);
        void *object = dlopen("libucm.so.0", RTLD_NOW | RTLD_GLOBAL);
        int (*handle)(int, int, void (*)(int, void *, void *), void *) =
            object ? dlsym(object, "ucm_set_event_handler") : NULL;
        if (!handle)
            return fprintf(stderr, "hook: no libucm: %s\n", dlerror()), 3;
        for (int i = 0; i < subscribers; i++)
            if (handle(1 << 17 /* UCM_EVENT_VM_UNMAPPED */, i, empty_ucm, NULL))
                return 1;
    }
    pthread_barrier_init(&barrier, NULL, threads);
    pthread_t others[64];
    for (long i = 1; i < threads; i++)
        pthread_create(&others[i], NULL, work, (void *)i);
    volatile char *deep = alloca(atoi(words[4]) + 1);
    deep[0] = 0;
    work(NULL);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        static double added[WINDOWS];
        for (int i = 0; i < WINDOWS; i++)
            added[i] = results[kind][1][i] - results[kind][0][i];
        qsort(added, WINDOWS, sizeof *added, ascending);
        for (int hooked = 0; hooked < 2; hooked++)
            qsort(results[kind][hooked], WINDOWS, sizeof(double), ascending);
        printf("%s %.0f %.0f %.1f\n", kinds[kind].name, results[kind][0][WINDOWS / 2],
               results[kind][1][WINDOWS / 2], added[WINDOWS / 2]);
    }
    return 0;
}
