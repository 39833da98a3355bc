/* A plugin that subscribes and forgets: opened, used and closed by `copies.c`. */
#include "mmu_notifier.h"
#include <dlfcn.h>
#include <stddef.h>

static int starts, ends;
static void start(const struct mmu_notifier_change *change, void *context) { __atomic_add_fetch(&starts, 1, __ATOMIC_SEQ_CST); }
static void end(const struct mmu_notifier_change *change, void *context) { __atomic_add_fetch(&ends, 1, __ATOMIC_SEQ_CST); }

/* Links nothing: calls the copy of the object that it is given. The counts, for who is interested. */
int subscribe(void *object, const int **counts) {
    static const struct mmu_notifier_ops ops = {start, end, NULL};
    static struct mmu_notifier_subscription *subscription;
    __typeof__(mmu_notifier_subscribe) *subscribe = (__typeof__(subscribe))dlsym(object, "mmu_notifier_subscribe");
    *counts = &starts;
    return subscribe(&ops, sizeof ops, NULL, &subscription);
}
