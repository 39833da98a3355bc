/* libfabric opened at run time, on the adapter that is not there. */
#include <dlfcn.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct fid_domain *fabric_domain;
static int *fabric_registered;

/* A domain of the efa provider, whose registration cache starts the memory monitor. */
static void fabric_open(void *library) {
    int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const struct fi_info *, struct fi_info **) =
        (__typeof__(getinfo))dlsym(library, "fi_getinfo");
    struct fi_info *(*dupinfo)(const struct fi_info *) = (__typeof__(dupinfo))dlsym(library, "fi_dupinfo");
    int (*open)(struct fi_fabric_attr *, struct fid_fabric **, void *) =
        (__typeof__(open))dlsym(library, "fi_fabric");
    fabric_registered = dlsym(RTLD_DEFAULT, "adapter_registered");
    if (!fabric_registered)
        printf("no adapter is preloaded\n"), exit(1);
    struct fi_info *hints = dupinfo(NULL), *info;
    struct fid_fabric *fabric;
    hints->fabric_attr->prov_name = strdup("efa");
    hints->ep_attr->type = FI_EP_RDM;
    hints->caps = FI_MSG;
    hints->domain_attr->mr_mode = FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    int error = getinfo(FI_VERSION(1, 17), NULL, NULL, 0, hints, &info);
    if (!error)
        error = open(info->fabric_attr, &fabric, NULL);
    if (!error)
        error = fi_domain(fabric, info, &fabric_domain, NULL);
    if (error)
        printf("no domain of libfabric's efa: %d\n", error), exit(1);
}

/* Registers a range and gives it back: whether the adapter had to, or it was in the cache. */
static int fabric_registers(void *start, size_t bytes) {
    struct fid_mr *mr;
    int before = *fabric_registered;
    int error = fi_mr_reg(fabric_domain, start, bytes, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL);
    if (error || fi_close(&mr->fid))
        printf("cannot register: %d\n", error), exit(1);
    return *fabric_registered != before;
}
