// Random changes of memory: as many as asked, by as many threads as asked, of private and shared memory, of files, by
// every system call that makes one, with writes in between, and in forked children. The same each time, by the seed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define PAGES 1024L
#define HUGE_PAGE (2L << 20)

static long changes;
static uint64_t seed;

struct arena {
    char *base;
    uint64_t random;
    int memory, file;
};

static uint64_t next(struct arena *a, uint64_t below)
{
    a->random ^= a->random << 13;
    a->random ^= a->random >> 7;
    a->random ^= a->random << 17;
    return (a->random >> 11) % below;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

// Every page mapped and writable again, of one kind.
static void renew(struct arena *a)
{
    if (mmap(a->base, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != a->base)
        fail("mmap");
}

static void write_some(struct arena *a, char *at, long pages)
{
    // What may have no memory is asked for by a call, which fails instead of killing.
    static const char byte = 1;
    for (long n = 0; n < 3; n++) {
        char *to = at + next(a, pages) * PAGE;
        struct iovec from = {(char *)&byte, 1}, into = {to, 1};
        if (process_vm_writev(getpid(), &from, 1, &into, 1, 0) == 1 && next(a, 2))
            *(volatile char *)to = 2;
    }
}

static void change(struct arena *a)
{
    long first = next(a, PAGES - 1), most = PAGES - first;
    long pages = 1 + next(a, next(a, 4) ? (most < 16 ? most : 16) : most);
    char *at = a->base + first * PAGE;
    size_t len = pages * PAGE;
    int pidfd;
    switch (next(a, 24)) {
    case 0:
    case 1:
        munmap(at, len);
        break;
    case 2:
        mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 3:
        mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->memory, first * PAGE);
        break;
    case 4:
        mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, a->file, first * PAGE);
        break;
    case 5:
        mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, a->file, first * PAGE);
        break;
    case 6:
        mprotect(at, len, PROT_READ);
        break;
    case 7:
        mprotect(at, len, PROT_READ | PROT_WRITE);
        break;
    case 8:
        mprotect(at, len, PROT_NONE);
        break;
    case 9:
    case 10:
        madvise(at, len, MADV_DONTNEED);
        break;
    case 11:
        madvise(at, len, MADV_FREE);
        break;
    case 12:
        madvise(at, len, MADV_REMOVE);
        break;
    case 13:
        madvise(at, len, next(a, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        break;
    case 14:
        madvise(at, len, next(a, 2) ? 21 /* MADV_PAGEOUT */ : 25 /* MADV_COLLAPSE */);
        break;
    case 15: {
        // To another place, which loses what it had.
        char *to = a->base + next(a, PAGES - pages + 1) * PAGE;
        if (mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED && errno == EFAULT)
            renew(a);
        break;
    }
    case 16:
        mremap(at, len, len - next(a, pages) * PAGE, 0);
        break;
    case 17:
        mlock(at, len);
        munlock(at, len);
        break;
    case 18:
        msync(at, len, MS_SYNC);
        break;
    case 19:
        if (fallocate(a->memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE, len))
            fail("fallocate");
        break;
    case 20:
        if (ftruncate(a->memory, first * PAGE) || ftruncate(a->memory, PAGES * PAGE))
            fail("ftruncate");
        break;
    case 21: {
        struct iovec vector[2] = {{at, len}, {a->base, PAGE}};
        pidfd = syscall(SYS_pidfd_open, getpid(), 0);
        syscall(SYS_process_madvise, pidfd, vector, 2, MADV_DONTNEED, 0);
        close(pidfd);
        break;
    }
    case 22:
        pkey_mprotect(at, len, PROT_READ | PROT_WRITE, -1);
        break;
    default: {
        int id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
        void *p = shmat(id, at, SHM_REMAP);
        shmctl(id, IPC_RMID, NULL);
        if (p != (void *)-1) {
            memset(p, 1, PAGE);
            shmdt(p);
        }
    }
    }
    write_some(a, at, pages);
    if (!next(a, 64))
        renew(a);
}

static struct arena arena(uint64_t number)
{
    struct arena a = {.random = (seed * 1000003 + number + 1) * 0x9e3779b97f4a7c15};
    char name[] = "/tmp/mmun-random-XXXXXX";
    char *p = mmap(NULL, PAGES * PAGE + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    a.memory = memfd_create("random", 0);
    a.file = mkstemp(name);
    unlink(name);
    if (p == MAP_FAILED || a.memory < 0 || a.file < 0)
        fail("mmap");
    if (ftruncate(a.memory, PAGES * PAGE) || ftruncate(a.file, PAGES * PAGE))
        fail("ftruncate");
    a.base = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
    renew(&a);
    return a;
}

static void *work(void *number)
{
    struct arena a = arena((uintptr_t)number);
    for (long n = 0; n < changes; n++) {
        change(&a);
        // A child changes what it got, while the parent goes on.
        if (n % 20000 == 10000) {
            pid_t child = fork();
            if (child < 0)
                fail("fork");
            if (child == 0) {
                // The file of memory is shared with the parent: the child has one of its own.
                struct arena own = arena((uintptr_t)number + 1000);
                for (int k = 0; k < 500; k++)
                    change(&own);
                _exit(0);
            }
            for (int k = 0; k < 100; k++)
                change(&a);
            if (waitpid(child, NULL, 0) != child)
                fail("waitpid");
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    changes = argc > 2 ? atol(argv[2]) : 10000;
    seed = argc > 3 ? strtoul(argv[3], NULL, 0) : 1;
    pthread_t thread[64];
    for (int i = 0; i < threads && i < 64; i++)
        if (pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i))
            fail("pthread_create");
    for (int i = 0; i < threads && i < 64; i++)
        pthread_join(thread[i], NULL);
    printf("random ok\n");
    return 0;
}
