/* Copies of the object that nobody sees but who opened them, and plugins that come and go.
 *
 *     copies CASE FIRST SECOND PLUGIN
 */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <dlfcn.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define CHECK(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), exit(1)))

static int starts, ends;
static void start(const struct mmu_notifier_change *change, void *context) { starts++; }
static void end(const struct mmu_notifier_change *change, void *context) { ends++; }

static void *open_copy(const char *path) {
    void *copy = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!copy)
        printf("%s\n", dlerror()), exit(1);
    return copy;
}
static int install(void *copy) { return ((int (*)(void))dlsym(copy, "mmu_notifier_install"))(); }
static void subscribe_to(void *copy) {
    static const struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription;
    __typeof__(mmu_notifier_subscribe) *subscribe = dlsym(copy, "mmu_notifier_subscribe");
    CHECK(subscribe(&ops, sizeof ops, NULL, &subscription) == 0);
}
static void unmap_one(void) {
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && munmap(at, PAGE) == 0);
}

/* Told of one address; may jump out of its callbacks. */
struct witness {
    int starts, ends, jumps_in_start, jumps_in_end;
    size_t only; /* instead of what all watch */
};
static size_t watched;
static jmp_buf back;
static void witness_start(const struct mmu_notifier_change *change, void *context) {
    struct witness *witness = context;
    if (change->start != (witness->only ? witness->only : watched))
        return;
    witness->starts++;
    if (witness->jumps_in_start)
        longjmp(back, 1);
}
static void witness_end(const struct mmu_notifier_change *change, void *context) {
    struct witness *witness = context;
    if (change->start != (witness->only ? witness->only : watched))
        return;
    witness->ends++;
    if (witness->jumps_in_end)
        longjmp(back, 1);
}
static void watch(void *copy, struct witness *witness) {
    static const struct mmu_notifier_ops ops = {witness_start, witness_end, NULL};
    struct mmu_notifier_subscription *subscription;
    __typeof__(mmu_notifier_subscribe) *subscribe = dlsym(copy, "mmu_notifier_subscribe");
    CHECK(subscribe(&ops, sizeof ops, witness, &subscription) == 0);
}
/* Unmaps a page, perhaps with a jump out of it, and another one. */
static void unmap_jumping(void) {
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    watched = (size_t)at;
    if (!setjmp(back))
        munmap(at, PAGE);
    /* Not the same address: these are others' changes. */
    void *other = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (other == at)
        other = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(other, PAGE);
}

/* What is jumped out of lies in a change that goes on. */
static struct witness outer = {.only = 16 * PAGE};
static int unmap_inside(void *unused) {
    unmap_jumping();
    CHECK(outer.starts == 1 && outer.ends == 0);
    return 7;
}

int main(int count, char **words) {
    alarm(60);
    CHECK(count == 5);
    if (!strcmp(words[1], "hidden")) {
        /* Each told once of each change, through whichever copy. */
        void *first = open_copy(words[2]), *second = open_copy(words[3]);
        CHECK(first != second && install(first) == 0 && install(second) == 0 && install(first) == 0);
        subscribe_to(second);
        unmap_one();
        CHECK(starts == 1 && ends == 1);
        subscribe_to(first);
        unmap_one();
        CHECK(starts == 3 && ends == 3);
        __typeof__(mmu_notifier_check) *check = dlsym(second, "mmu_notifier_check");
        CHECK(check(NULL, NULL) == 0);
    } else if (!strcmp(words[1], "reversed")) {
        /* The one that was loaded last is asked first: the one that was loaded first does it. */
        void *first = open_copy(words[2]), *second = open_copy(words[3]);
        CHECK(install(second) == 0 && install(first) == 0);
        subscribe_to(first);
        subscribe_to(second);
        unmap_one();
        CHECK(starts == 2 && ends == 2);
    } else if (!strcmp(words[1], "closed")) {
        /* The object is closed with its hook in place. */
        void *first = open_copy(words[2]);
        CHECK(install(first) == 0);
        subscribe_to(first);
        CHECK(dlclose(first) == 0);
        unmap_one();
        CHECK(starts == 1 && ends == 1);
    } else if (!strcmp(words[1], "plugin")) {
        /* A subscriber is closed and has forgotten to unsubscribe. */
        void *object = open_copy(words[2]), *plugin = open_copy(words[4]);
        const int *told;
        CHECK(install(object) == 0);
        CHECK(((int (*)(void *, const int **))dlsym(plugin, "subscribe"))(object, &told) == 0);
        unmap_one();
        CHECK(*told == 1 && dlclose(plugin) == 0);
        for (int i = 2; i < 10; i++) {
            unmap_one();
            CHECK(*told == i);
        }
    } else if (!strcmp(words[1], "jumped")) {
        /* A callback of the second copy is left by a jump: whose start had returned, in both, has an end, and one. */
        void *first = open_copy(words[2]), *second = open_copy(words[3]);
        struct witness last = {0}, behind = {0}, jumping = {0}, before = {0}, foremost = {0};
        CHECK(install(first) == 0);
        watch(first, &last);
        CHECK(install(second) == 0);
        watch(first, &foremost);
        watch(second, &behind);
        watch(second, &jumping);
        watch(second, &before);
        for (int round = 1; round <= 3; round++) {
            struct witness none = {.jumps_in_start = 1};
            foremost = before = behind = last = (struct witness){0}, jumping = none;
            unmap_jumping();
            CHECK(foremost.starts == 1 && foremost.ends == 1 && before.starts == 1 && before.ends == 1);
            CHECK(jumping.starts == 1 && jumping.ends == 0);
            CHECK(behind.starts == 0 && behind.ends == 0 && last.starts == 0 && last.ends == 0);
            struct witness in_end = {.jumps_in_end = 1};
            foremost = before = behind = last = (struct witness){0}, jumping = in_end;
            unmap_jumping();
            struct witness *all[] = {&foremost, &before, &jumping, &behind, &last};
            for (int i = 0; i < 5; i++)
                CHECK(all[i]->starts == 1 && all[i]->ends == 1);
        }
        __typeof__(mmu_notifier_invalidate) *invalidate = dlsym(second, "mmu_notifier_invalidate");
        watch(second, &outer);
        jumping.jumps_in_end = 0, jumping.jumps_in_start = 1;
        CHECK(invalidate(16 * PAGE, PAGE, MMU_NOTIFIER_UNMAP, 1, unmap_inside, NULL) == 7);
        CHECK(outer.starts == 1 && outer.ends == 1);
    } else
        return 2;
    puts("ok");
    return 0;
}
