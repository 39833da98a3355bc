/* Libraries that patch the C library themselves, and this one, in one process, loaded in any order.
 *
 *     peers OBJECT STEP...      STEP: us, ucx, ompi, ofi
 *
 * takes the steps in their order, then makes one of each change, and prints a line for each event: who was told, of
 * what, how many bytes. libfabric tells nobody: before each change the range is registered, and behind it once more, which
 * reaches the adapter only if the cache was told. Nothing of ours is in the process before the step "us", so that a run without it shows what the
 * others see by themselves. Two runs are the same to a library if its lines are.
 */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), fflush(stdout), _exit(1)))

/* What was told, in order. Written inside the hooks of all of them: no malloc, no printf. */
static struct told { const char *who, *what; size_t start, bytes; } told[4096];
static int count, listening;
/* The loader is at work, whose heap differs from run to run: only we listen, to its changes. How much we say of a file that it maps
   over something depends on where that is: at a multiple of 2 MiB it could be one of huge pages. */
static int loading;
static pid_t us;
static void note(const char *who, const char *what, size_t start, size_t bytes) {
    if (listening && gettid() == us && (!loading || !strcmp(who, "us")) && count < (int)(sizeof told / sizeof *told))
        told[count++] = (struct told){who, what, start, loading ? 0 : bytes};
}

static void *need(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    if (!symbol)
        printf("no %s: %s\n", name, dlerror()), exit(1);
    return symbol;
}
static void *need_library(const char *name) {
    void *library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        printf("no %s: %s\n", name, dlerror()), exit(1);
    return library;
}

/* This library. Inside start everything is still there, inside end it is done. */
static void start(const struct mmu_notifier_change *change, void *context) {
    note("us", "start", change->start, change->end - change->start);
}
static void end(const struct mmu_notifier_change *change, void *context) {
    note("us", "end", change->start, change->end - change->start);
}
static void load_us(const char *object) {
    void *library = need_library(object);
    int (*install)(void) = need(library, "mmu_notifier_install");
    __typeof__(mmu_notifier_subscribe) *subscribe = need(library, "mmu_notifier_subscribe");
    static const struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription;
    CHECK(install() == 0);
    CHECK(subscribe(&ops, sizeof ops, NULL, &subscription) == 0);
}

/* UCX: its default hooks, all events. The first members of the union are what is printed. */
static void ucx_event(int type, void *event, void *argument) {
    static const struct { int type; const char *name; int address, size; } events[] = {
        {1 << 0, "mmap", 1, 2}, {1 << 1, "munmap", 1, 2}, {1 << 2, "mremap", 1, 2}, {1 << 3, "shmat", 0, 0},
        {1 << 4, "shmdt", 1, 0}, {1 << 5, "sbrk", 0, 1}, {1 << 6, "madvise", 1, 2}, {1 << 7, "brk", 0, 0},
        {1 << 16, "mapped", 0, 1}, {1 << 17, "unmapped", 0, 1},
    };
    const size_t *word = event;
    for (unsigned i = 0; i < sizeof events / sizeof *events; i++)
        if (type == events[i].type)
            note("ucx", events[i].name, word[events[i].address], events[i].size ? word[events[i].size] : 0);
}
static void load_ucx(void) {
    void *ucs = need_library("libucs.so.0");
    int (*set)(int, int, void (*)(int, void *, void *), void *) = need(ucs, "ucm_set_event_handler");
    enum { NATIVE = 0xff, AGGREGATE = 1 << 16 | 1 << 17, NO_INSTALL = 1 << 24 };
    /* What UCX's own cache asks for; beside it, what that is made of. */
    CHECK(set(AGGREGATE, -1, ucx_event, NULL) == 0);
    CHECK(set(NATIVE | NO_INSTALL, -1, ucx_event, NULL) == 0);
}

/* Open MPI: the memory hooks that its registration cache is told by, with the patcher behind them. */
static void ompi_release(void *start, size_t bytes, void *argument, _Bool from_allocator) {
    note("ompi", "release", (size_t)start, bytes);
}
static void load_ompi(void) {
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 1);
    setenv("OMPI_MCA_pml", "ob1", 1);
    setenv("OMPI_MCA_btl", "self", 1);
    setenv("OMPI_MCA_osc", "^ucx", 1);
    setenv("OMPI_MCA_mtl", "^ofi,psm,psm2", 1);
    void *mpi = need_library("libmpi.so.40");
    void *pal = need_library("libopen-pal.so.40");
    int (*init)(int *, char ***) = need(mpi, "MPI_Init");
    int (*level)(void) = need(pal, "opal_mem_hooks_support_level");
    int (*hook)(void (*)(void *, size_t, void *, _Bool), void *) = need(pal, "opal_mem_hooks_register_release");
    int (*open)(void *, int) = need(pal, "mca_base_framework_open");
    CHECK(init(NULL, NULL) == 0);
    /* As its registration cache does when it is made. */
    CHECK(open(need(pal, "opal_memory_base_framework"), 0) == 0);
    CHECK(hook(ompi_release, NULL) == 0);
    CHECK(level() != 0);
}

/* libfabric: its registration cache, by FI_MR_CACHE_MONITOR=memhooks. */
#if __has_include(<rdma/fabric.h>) && __has_include(<infiniband/efadv.h>)
#include "fabric.h"
static void load_ofi(void) { fabric_open(need_library("libfabric.so.1")); }
static int registers(void *at, size_t bytes) { return fabric_domain && fabric_registers(at, bytes); }
#else
static void load_ofi(void) { printf("no headers of libfabric and libibverbs\n"), exit(1); }
static int registers(void *at, size_t bytes) { return 0; }
#endif
/* Around a change. What the cache does itself is not listened to. */
static void before(void *at, size_t pages) {
    int was = listening;
    listening = 0;
    registers(at, pages * PAGE);
    listening = was;
}
static void after(void *at, size_t pages) {
    int was = listening;
    listening = 0;
    int again = registers(at, pages * PAGE);
    listening = was;
    if (again)
        note("ofi", "forgot", (size_t)at, pages * PAGE);
}

static char *map(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 1, pages * PAGE);
    return at;
}

/* Each of a size of its own, so that the lines tell them apart. */
static void change_everything(void) {
    char *at = map(3);
    before(at, 3);
    CHECK(munmap(at, 3 * PAGE) == 0);
    after(at, 3);

    at = map(5);
    before(at, 5);
    CHECK(mmap(at, 5 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at && *at == 0);
    after(at, 5);

    at = map(7);
    before(at, 7);
    CHECK(madvise(at, 7 * PAGE, MADV_DONTNEED) == 0 && *at == 0);
    after(at, 7);

    at = map(11);
    before(at, 11);
    CHECK(mremap(at, 11 * PAGE, 2 * PAGE, 0) == at);
    after(at, 11);

    /* Must move: what follows is taken. */
    char *block = mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(block != MAP_FAILED && mprotect(block, 13 * PAGE, PROT_READ | PROT_WRITE) == 0);
    *block = 13;
    before(block, 13);
    at = mremap(block, 13 * PAGE, 17 * PAGE, MREMAP_MAYMOVE);
    CHECK(at != MAP_FAILED && at != block && *at == 13);
    after(block, 13);

    char *large = malloc(64 << 20);
    CHECK(large);
    volatile size_t place = (size_t)large; /* or the compiler complains of what is done on purpose */
    before((void *)place, 15);
    free(large);
    after((void *)place, 15);

    char *top = sbrk(19 * PAGE);
    CHECK(top != (void *)-1);
    before(top, 19);
    CHECK(sbrk(-19L * (long)PAGE) != (void *)-1);
    after(top, 19);

    int segment = shmget(IPC_PRIVATE, 23 * PAGE, IPC_CREAT | 0600);
    CHECK(segment >= 0);
    at = shmat(segment, NULL, 0);
    CHECK(at != (void *)-1 && shmctl(segment, IPC_RMID, NULL) == 0);
    *at = 1;
    before(at, 23);
    CHECK(shmdt(at) == 0);
    after(at, 23);

    /* Not libc's functions: who patches these sees nothing. */
    at = map(29);
    before(at, 29);
    CHECK(syscall(SYS_munmap, at, 29 * PAGE) == 0);
    after(at, 29);
    at = map(31);
    before(at, 31);
    CHECK(mprotect(at, 31 * PAGE, PROT_NONE) == 0);
    after(at, 31);
    /* The loader's own munmap. */
    loading = 1;
    void *library = dlopen("libanl.so.1", RTLD_NOW | RTLD_LOCAL);
    CHECK(library && dlclose(library) == 0);
    loading = 0;
}

int main(int words, char **word) {
    alarm(120);
    us = gettid();
    CHECK(words >= 2);
    for (int i = 2; i < words; i++)
        if (!strcmp(word[i], "us"))
            load_us(word[1]);
        else if (!strcmp(word[i], "ucx"))
            load_ucx();
        else if (!strcmp(word[i], "ompi"))
            load_ompi();
        else if (!strcmp(word[i], "ofi"))
            load_ofi();
        else
            CHECK(!"a step");
    change_everything(); /* once unheard, so that nothing is set up late */
    listening = 1;
    change_everything();
    listening = 0;
    for (int i = 0; i < count; i++)
        printf("%s %s %zu\n", told[i].who, told[i].what, told[i].bytes);
    printf("entry of munmap: %02x\n", *(unsigned char *)dlsym(RTLD_DEFAULT, "munmap"));
    fflush(stdout);
    _exit(0);
}
