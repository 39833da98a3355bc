/* A network adapter that is not there: as much of libibverbs as libfabric's efa provider needs to open one and to
 * register memory with it, so that its registration cache and its memory monitor run as with a real one. To be
 * preloaded, with a pretended /sys at SYSFS_PATH (`peers.rs` makes one). A registration is a number.
 */
#define _GNU_SOURCE
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#undef ibv_query_port
#undef ibv_reg_mr

/* How many registrations there were, and how many were given back. */
int adapter_registered, adapter_deregistered;

static struct ibv_device device = {.name = "pretended", .dev_name = "uverbs0"};
static struct ibv_context context = {.device = &device, .num_comp_vectors = 1};
static struct ibv_pd domain = {.context = &context};
static struct ibv_ah handle = {.context = &context, .pd = &domain};

struct ibv_device **ibv_get_device_list(int *count) {
    static struct ibv_device *list[] = {&device, NULL};
    const char *sys = getenv("SYSFS_PATH");
    snprintf(device.ibdev_path, sizeof device.ibdev_path, "%s/class/infiniband_verbs/uverbs0", sys ? sys : "/sys");
    if (count)
        *count = 1;
    return list;
}
void ibv_free_device_list(struct ibv_device **list) {}
const char *ibv_get_device_name(struct ibv_device *one) { return one->name; }
struct ibv_context *ibv_open_device(struct ibv_device *one) { return &context; }
int ibv_close_device(struct ibv_context *one) { return 0; }

int ibv_query_device(struct ibv_context *one, struct ibv_device_attr *attr) {
    *attr = (struct ibv_device_attr){
        .max_mr_size = 1ULL << 40, .page_size_cap = 4096, .vendor_id = 0x1d0f, .vendor_part_id = 0xefa0,
        .max_qp = 64, .max_qp_wr = 256, .max_sge = 2, .max_cq = 64, .max_cqe = 4096, .max_mr = 4096, .max_pd = 16,
        .phys_port_cnt = 1,
    };
    return 0;
}
int ibv_query_port(struct ibv_context *one, uint8_t port, struct _compat_ibv_port_attr *compatible) {
    struct ibv_port_attr *attr = (void *)compatible;
    attr->state = IBV_PORT_ACTIVE;
    attr->max_mtu = attr->active_mtu = IBV_MTU_4096;
    attr->gid_tbl_len = attr->pkey_tbl_len = 1;
    attr->max_msg_sz = 8192;
    return 0;
}
int ibv_query_gid(struct ibv_context *one, uint8_t port, int index, union ibv_gid *gid) {
    *gid = (union ibv_gid){.raw = {0xfe, 0x80, [15] = 1}};
    return 0;
}
int ibv_query_pkey(struct ibv_context *one, uint8_t port, int index, __be16 *key) {
    *key = 0xffff;
    return 0;
}
int efadv_query_device(struct ibv_context *one, struct efadv_device_attr *attr, uint32_t bytes) {
    memset(attr, 0, bytes);
    attr->max_sq_wr = attr->max_rq_wr = 256;
    attr->max_sq_sge = attr->max_rq_sge = 2;
    attr->inline_buf_size = 32;
    return 0;
}
struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr) { return &handle; }
int ibv_destroy_ah(struct ibv_ah *ah) { return 0; }
int efadv_query_ah(struct ibv_ah *ah, struct efadv_ah_attr *attr, uint32_t bytes) {
    memset(attr, 0, bytes);
    return 0;
}
struct ibv_pd *ibv_alloc_pd(struct ibv_context *one) { return &domain; }
int ibv_dealloc_pd(struct ibv_pd *pd) { return 0; }
int ibv_fork_init(void) { return 0; }
enum ibv_fork_status ibv_is_fork_initialized(void) { return IBV_FORK_UNNEEDED; }

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *start, size_t bytes, int access) {
    struct ibv_mr *mr = calloc(1, sizeof *mr);
    *mr = (struct ibv_mr){.context = &context, .pd = pd, .addr = start, .length = bytes};
    mr->lkey = mr->rkey = (uint32_t)++adapter_registered;
    return mr;
}
struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *start, size_t bytes, uint64_t address, unsigned access) {
    return ibv_reg_mr(pd, start, bytes, (int)access);
}
int ibv_dereg_mr(struct ibv_mr *mr) {
    adapter_deregistered++;
    free(mr);
    return 0;
}
