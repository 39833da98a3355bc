/* Copies of the object that nobody sees but who opened them, and plugins that come and go.
 *
 *     copies CASE FIRST SECOND PLUGIN
 */
#define _GNU_SOURCE
#include "mmu_notifier.h"
#include <dlfcn.h>
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
    } else
        return 2;
    puts("ok");
    return 0;
}
