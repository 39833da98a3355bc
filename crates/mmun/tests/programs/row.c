// Changes one range of its memory in one way, `row NAME`, and prints which and how:
// `0xSTART BYTES EVENT`, or `unsupported WHY` where this kernel has no such call.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096L
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

static int say(const void *start, unsigned long bytes, const char *event)
{
    printf("%p %lu %s\n", start, bytes, event);
    return 0;
}

static int unsupported(const char *what)
{
    printf("unsupported %s: %s\n", what, strerror(errno));
    return 0;
}

static char *pages(long count)
{
    char *p = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(2);
    memset(p, 1, count * PAGE);
    return p;
}

// The library's lowest and highest address, all of which ld.so unmaps at once.
static int span(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    unsigned long *range = found;
    if (info->dlpi_addr != range[0])
        return 0;
    unsigned long low = -1UL, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD)
            continue;
        if (part->p_vaddr < low)
            low = part->p_vaddr & -PAGE;
        if (part->p_vaddr + part->p_memsz > high)
            high = part->p_vaddr + part->p_memsz;
    }
    range[1] = info->dlpi_addr + low;
    range[2] = high - low;
    return 1;
}

int main(int argc, char **argv)
{
    const char *row = argc > 1 ? argv[1] : "";
    char *p = pages(8);
    if (!strcmp(row, "munmap"))
        return munmap(p + PAGE, 2 * PAGE) || say(p + PAGE, 2 * PAGE, "unmap");
    if (!strcmp(row, "madvise"))
        return madvise(p + 2 * PAGE, 3 * PAGE, MADV_DONTNEED) || say(p + 2 * PAGE, 3 * PAGE, "clear");
    if (!strcmp(row, "mmap_fixed"))
        return mmap(p + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p + PAGE ||
               say(p + PAGE, PAGE, "unmap");
    if (!strcmp(row, "sbrk")) {
        char *start = sbrk(16 * PAGE);
        // The heap may begin anywhere; whole pages go.
        char *aligned = (char *)(((unsigned long)start + PAGE - 1) & -PAGE);
        if (brk(aligned + 10 * PAGE) || brk(aligned + 4 * PAGE))
            return 1;
        return say(aligned + 4 * PAGE, 6 * PAGE, "unmap");
    }
    if (!strcmp(row, "shmdt")) {
        int id = shmget(IPC_PRIVATE, 5 * PAGE, IPC_CREAT | 0600);
        char *shared = shmat(id, NULL, 0);
        shmctl(id, IPC_RMID, NULL);
        return shmdt(shared) || say(shared, 5 * PAGE, "unmap");
    }
    if (!strcmp(row, "free")) {
        mallopt(M_MMAP_THRESHOLD, 1 << 20);
        char *block = malloc(64 << 20);
        unsigned long *chunk = (unsigned long *)block - 2; // previous size, size: what munmap is called with
        asm("" : "+r"(chunk));
        unsigned long bytes = (chunk[1] & ~7UL) + chunk[0], start = (unsigned long)chunk - chunk[0];
        free(block);
        return say((void *)start, bytes, "unmap");
    }
    if (!strcmp(row, "mremap_source")) {
        char *to = pages(4);
        return mremap(p + PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to ||
               say(p + PAGE, 2 * PAGE, "unmap");
    }
    if (!strcmp(row, "mremap_destination")) {
        char *to = pages(4);
        return mremap(p + PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + PAGE) != to + PAGE ||
               say(to + PAGE, 2 * PAGE, "unmap");
    }
    if (!strcmp(row, "syscall"))
        return syscall(SYS_munmap, p + 3 * PAGE, PAGE) || say(p + 3 * PAGE, PAGE, "unmap");
    if (!strcmp(row, "dlclose")) {
        void *library = argc > 2 ? dlopen(argv[2], RTLD_NOW) : NULL;
        struct link_map *map;
        if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map))
            return 1;
        unsigned long range[3] = {map->l_addr, 0, 0};
        if (!dl_iterate_phdr(span, range) || dlclose(library))
            return 1;
        return say((void *)range[1], (range[2] + PAGE - 1) & -PAGE, "unmap");
    }
    if (!strcmp(row, "mprotect"))
        return mprotect(p + 4 * PAGE, 2 * PAGE, PROT_NONE) || say(p + 4 * PAGE, 2 * PAGE, "protection_vma");
    if (!strcmp(row, "ftruncate") || !strcmp(row, "punch_hole")) {
        int file = memfd_create("row", 0);
        if (ftruncate(file, 8 * PAGE))
            return 1;
        // Mapped from its third page on.
        char *shared = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 2 * PAGE);
        memset(shared, 1, 6 * PAGE);
        if (!strcmp(row, "ftruncate"))
            return ftruncate(file, 5 * PAGE) || say(shared + 3 * PAGE, 3 * PAGE, "clear");
        return fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, 2 * PAGE) ||
               say(shared + PAGE, 2 * PAGE, "clear");
    }
    if (!strcmp(row, "process_madvise")) {
        int self = syscall(SYS_pidfd_open, getpid(), 0);
        struct iovec piece = {p + 5 * PAGE, 2 * PAGE};
        if (syscall(SYS_process_madvise, self, &piece, 1, MADV_DONTNEED, 0) != 2 * PAGE)
            return unsupported("process_madvise(self, MADV_DONTNEED)");
        return p[5 * PAGE] || say(p + 5 * PAGE, 2 * PAGE, "clear");
    }
    if (!strcmp(row, "pageout"))
        return madvise(p + 6 * PAGE, PAGE, MADV_PAGEOUT) ? unsupported("MADV_PAGEOUT")
                                                         : say(p + 6 * PAGE, PAGE, "clear");
    if (!strcmp(row, "dontneed_locked"))
        return madvise(p + 6 * PAGE, 2 * PAGE, MADV_DONTNEED_LOCKED) ? unsupported("MADV_DONTNEED_LOCKED")
                                                                     : say(p + 6 * PAGE, 2 * PAGE, "clear");
    fprintf(stderr, "row: no row %s\n", row);
    return 2;
}
