// Makes a registration cache of UCX whose registrations do nothing. Asking it is done without a shim in between.
#include <stdint.h>
#include <ucm/api/ucm.h>
#include <ucp/api/ucp_version.h>
#include <ucs/memory/rcache.h>

// Written under the cache's write lock.
static uint64_t registrations;

static ucs_status_t reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region, uint16_t flags)
{
    (void)context, (void)rcache, (void)arg, (void)region, (void)flags;
    __atomic_store_n(&registrations, registrations + 1, __ATOMIC_RELAXED);
    return UCS_OK;
}

static void dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
    (void)context, (void)rcache, (void)region;
}

static void dump(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *text, size_t max)
{
    (void)context, (void)rcache, (void)region;
    if (max > 0)
        text[0] = 0;
}

// That of the headers: libucs has no function that tells.
uint32_t bench_ucx_version(void) { return UCP_API_VERSION; }

uint64_t bench_ucx_registrations(void)
{
    return __atomic_load_n(&registrations, __ATOMIC_RELAXED);
}

// Null if UCX refuses. One at a time: the count is of all.
ucs_rcache_t *bench_ucx_new(void)
{
    static const ucs_rcache_ops_t ops = {.mem_reg = reg, .mem_dereg = dereg, .dump_region = dump};
    const ucs_rcache_params_t params = {
        .region_struct_size = sizeof(ucs_rcache_region_t),
        .alignment = 64,
        .max_alignment = 4096,
        .ucm_events = UCM_EVENT_VM_UNMAPPED,
        .ucm_event_priority = 1000,
        .ops = &ops,
        // No limit, so no list of who was used when: the fastest it can be.
        .max_regions = SIZE_MAX,
        .max_size = SIZE_MAX,
        .max_unreleased = SIZE_MAX,
    };
    // Told by ucm_vm_munmap(), not by hooks.
    ucm_set_external_event(UCM_EVENT_VM_UNMAPPED);
    ucs_rcache_t *rcache;
    registrations = 0;
    return ucs_rcache_create(&params, "bench", NULL, &rcache) == UCS_OK ? rcache : NULL;
}
