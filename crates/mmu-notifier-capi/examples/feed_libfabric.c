/* libfabric's registration cache, told by this library (an imported memory monitor) instead of by its own patches.
 *
 *     gcc -I../include feed_libfabric.c -lmmu_notifier_capi -lfabric -o feed_libfabric
 *     ./feed_libfabric PROVIDER
 *
 * The order matters: fi_getinfo, which makes libfabric's own monitors; then the import, which makes this one the default;
 * then the domain, whose cache takes the default. libfabric asks `valid` at each hit, so a change has only to leave a
 * mark: nothing of libfabric is called inside a change, and none of its locks is taken there.
 *
 * What is registered but not yet subscribed cannot be marked. That gap is libfabric's and is there with each of its
 * monitors; a cache that asks before it registers (mmu-notifier-secondary's) has none.
 */
#define _GNU_SOURCE
#include <mmu_notifier.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_ext.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define TRY(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), _exit(1)))

/* What libfabric has cached. It calls subscribe, unsubscribe and valid one at a time; changes come at any time, so a
 * place is written before it is in use, and marked with the one word that says so. */
enum { FREE, FRESH, STALE, PLACES = 1024 };
static struct { atomic_int state; atomic_uintptr_t start, end; } places[PLACES];

static int find(const void *start, size_t bytes, int state) {
    for (int i = 0; i < PLACES; i++)
        if (atomic_load(&places[i].state) == state &&
            (state == FREE || (places[i].start == (uintptr_t)start && places[i].end == (uintptr_t)start + bytes)))
            return i;
    return -1;
}
static int monitor_start(struct fid_mem_monitor *monitor) { return 0; }
static void monitor_stop(struct fid_mem_monitor *monitor) {}
static int monitor_subscribe(struct fid_mem_monitor *monitor, const void *start, size_t bytes) {
    int place = find(NULL, 0, FREE);
    if (place < 0)
        return -FI_ENOMEM; /* it is registered, but not kept */
    places[place].start = (uintptr_t)start;
    places[place].end = (uintptr_t)start + bytes;
    atomic_store(&places[place].state, FRESH);
    return 0;
}
static void monitor_unsubscribe(struct fid_mem_monitor *monitor, const void *start, size_t bytes) {
    int place = find(start, bytes, STALE);
    if (place < 0)
        place = find(start, bytes, FRESH);
    if (place >= 0)
        atomic_store(&places[place].state, FREE);
}
static bool monitor_valid(struct fid_mem_monitor *monitor, const void *start, size_t bytes) {
    return find(start, bytes, FRESH) >= 0 && find(start, bytes, STALE) < 0;
}

/* Inside the change, before it. */
static void start(const struct mmu_notifier_change *change, void *context) {
    (void)context;
    for (int i = 0; i < PLACES; i++) {
        int fresh = FRESH;
        if (atomic_load(&places[i].state) == FRESH && places[i].start < change->end && change->start < places[i].end)
            atomic_compare_exchange_strong(&places[i].state, &fresh, STALE);
    }
}
static void end(const struct mmu_notifier_change *change, void *context) { (void)change, (void)context; }

static void *use(struct fid_domain *domain, void *at) {
    struct fid_mr *mr;
    TRY(fi_mr_reg(domain, at, PAGE, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL) == 0);
    uintptr_t descriptor = fi_mr_key(mr);
    TRY(fi_close(&mr->fid) == 0);
    return (void *)descriptor;
}

int main(int count, char **words) {
    TRY(count >= 2);
    int feed = count < 3 || strcmp(words[2], "unfed"); /* to see what happens otherwise */
    void *functions[] = {mmap, munmap, mremap, madvise, sbrk, brk};
    enum { FUNCTIONS = sizeof functions / sizeof *functions, BYTES = 16 };
    unsigned char before[FUNCTIONS][BYTES];
    TRY(mmu_notifier_install() == 0);
    for (int i = 0; i < FUNCTIONS; i++)
        memcpy(before[i], functions[i], BYTES);
    static const struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription;
    if (feed)
        TRY(mmu_notifier_subscribe(&ops, sizeof ops, NULL, &subscription) == 0);

    struct fi_info *hints = fi_allocinfo(), *info;
    hints->fabric_attr->prov_name = strdup(words[1]);
    hints->ep_attr->type = FI_EP_RDM;
    hints->caps = FI_MSG;
    hints->domain_attr->mr_mode = FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    TRY(fi_getinfo(FI_VERSION(1, 17), NULL, NULL, 0, hints, &info) == 0);

    static struct fi_ops_mem_monitor calls = {
        sizeof calls, monitor_start, monitor_stop, monitor_subscribe, monitor_unsubscribe, monitor_valid,
    };
    static struct fid_mem_monitor monitor = {.fid.fclass = FI_CLASS_MEM_MONITOR, .export_ops = &calls};
    struct fid *caches;
    TRY(fi_open(FI_VERSION(1, 17), "mr_cache", NULL, 0, 0, &caches, NULL) == 0);
    TRY(fi_import_fid(caches, &monitor.fid, 0) == 0);

    struct fid_fabric *fabric;
    struct fid_domain *domain;
    TRY(fi_fabric(info->fabric_attr, &fabric, NULL) == 0 && fi_domain(fabric, info, &domain, NULL) == 0);

    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TRY(at != MAP_FAILED);
    void *first = use(domain, at);
    TRY(use(domain, at) == first);
    TRY(syscall(SYS_munmap, at, PAGE) == 0);
    TRY(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
    printf("after munmap and mmap at the same place: %s\n", use(domain, at) == first ? "STALE" : "registered anew");

    for (int i = 0; i < FUNCTIONS; i++)
        TRY(memcmp(before[i], functions[i], BYTES) == 0); /* libfabric has patched nothing */
    puts("libfabric has patched nothing");
    fflush(stdout);
    _exit(0);
}
