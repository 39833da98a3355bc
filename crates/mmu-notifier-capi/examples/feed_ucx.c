/* UCX's registration cache, told by this library instead of by UCX's own patches of the C library.
 *
 *     gcc -I../include feed_ucx.c -lmmu_notifier_capi -lucs -lucm -o feed_ucx
 *     UCX_MEM_MMAP_HOOK_MODE=none ./feed_ucx
 *
 * UCX patches while it is loaded, so what keeps it from that must be in the environment before. With that alone its
 * cache cannot be made: it knows that nobody tells it. An external event is the promise to tell it: made before the cache.
 * UCX sees more in this way than by itself, as here a munmap that is not libc's.
 */
#define _GNU_SOURCE
#include <mmu_notifier.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <ucm/api/ucm.h>
#include <ucs/memory/rcache.h>
#include <unistd.h>

#define PAGE 4096UL
#define TRY(what) ((what) ? (void)0 : (printf("line %d: not so: %s\n", __LINE__, #what), _exit(1)))

/* Inside the change, before it. UCX's cache only queues the range here. */
static void start(const struct mmu_notifier_change *change, void *context) {
    (void)context;
    if (change->event == MMU_NOTIFIER_UNMAP || change->event == MMU_NOTIFIER_CLEAR)
        ucm_vm_munmap((void *)change->start, change->end - change->start);
}
static void end(const struct mmu_notifier_change *change, void *context) { (void)change, (void)context; }

/* What is registered with: here a number. */
typedef struct { ucs_rcache_region_t region; int id; } region_t;
static int registered;
static ucs_status_t reg(void *context, ucs_rcache_t *cache, void *argument, ucs_rcache_region_t *region, uint16_t flags) {
    ((region_t *)region)->id = ++registered;
    return UCS_OK;
}
static void dereg(void *context, ucs_rcache_t *cache, ucs_rcache_region_t *region) {}
static void dump(void *context, ucs_rcache_t *cache, ucs_rcache_region_t *region, char *text, size_t bytes) { *text = 0; }

static int get(ucs_rcache_t *cache, void *at) {
    ucs_rcache_region_t *region;
    TRY(ucs_rcache_get(cache, at, PAGE, PROT_READ | PROT_WRITE, NULL, &region) == UCS_OK);
    int id = ((region_t *)region)->id;
    ucs_rcache_region_put(cache, region);
    return id;
}

int main(int count, char **words) {
    int feed = count < 2 || strcmp(words[1], "unfed"); /* to see what happens otherwise */
    void *functions[] = {mmap, munmap, mremap, madvise, shmat, shmdt, sbrk, brk};
    enum { FUNCTIONS = sizeof functions / sizeof *functions, BYTES = 16 };
    unsigned char before[FUNCTIONS][BYTES];
    for (int i = 0; i < FUNCTIONS; i++) {
        const unsigned char *code = functions[i]; /* jmp, or mov $address,%rax: too late for a promise */
        if (code[0] == 0xe9 || (code[0] == 0x48 && code[1] == 0xb8))
            printf("UCX has patched the C library: set UCX_MEM_MMAP_HOOK_MODE=none\n"), exit(1);
    }
    TRY(mmu_notifier_install() == 0);
    for (int i = 0; i < FUNCTIONS; i++)
        memcpy(before[i], functions[i], BYTES);

    static const struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription;
    if (feed)
        TRY(mmu_notifier_subscribe(&ops, sizeof ops, NULL, &subscription) == 0);
    ucm_set_external_event(UCM_EVENT_VM_UNMAPPED);

    ucs_rcache_t *cache;
    ucs_rcache_ops_t callbacks = {.mem_reg = reg, .mem_dereg = dereg, .dump_region = dump};
    ucs_rcache_params_t parameters = {
        .region_struct_size = sizeof(region_t), .alignment = 16, .max_alignment = PAGE, .ops = &callbacks,
        .ucm_events = UCM_EVENT_VM_UNMAPPED, .ucm_event_priority = 1000,
        .max_regions = SIZE_MAX, .max_size = SIZE_MAX, .max_unreleased = SIZE_MAX,
    };
    TRY(ucs_rcache_create(&parameters, "fed", NULL, &cache) == UCS_OK);

    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TRY(at != MAP_FAILED);
    int first = get(cache, at);
    TRY(get(cache, at) == first);
    TRY(syscall(SYS_munmap, at, PAGE) == 0);
    TRY(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
    printf("after munmap and mmap at the same place: %s\n", get(cache, at) == first ? "STALE" : "registered anew");

    for (int i = 0; i < FUNCTIONS; i++)
        TRY(memcmp(before[i], functions[i], BYTES) == 0); /* UCX has patched nothing */
    if (feed)
        mmu_notifier_unsubscribe(subscription);
    puts("UCX has patched nothing");
    fflush(stdout);
    _exit(0);
}
