// Threads that use memory in every way and check what is in it: `torture [threads [rounds]]`.
// What it prints depends on the arguments only.
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define SLOTS 24
static int rounds = 250;
extern char **environ;

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void fail(const char *what)
{
    fprintf(stderr, "torture: %s\n", what);
    abort();
}

// A block holds a pattern of its own in the first and last byte of each page and at its end.
static void fill(unsigned char *p, size_t size, unsigned char pattern)
{
    for (size_t i = 0; i < size; i += PAGE)
        p[i] = pattern;
    p[size - 1] = pattern;
}

static void check(const unsigned char *p, size_t size, unsigned char pattern, const char *what)
{
    for (size_t i = 0; i < size; i += PAGE)
        if (p[i] != pattern)
            fail(what);
    if (p[size - 1] != pattern)
        fail(what);
}

static void reap(pid_t child, const char *what)
{
    int status;
    if (child <= 0 || waitpid(child, &status, 0) != child || status)
        fail(what);
}

static __attribute__((noinline)) pid_t vfork_true(void)
{
    static char *argv[] = {"true", NULL};
    pid_t child = vfork();
    if (child == 0) {
        execv("/bin/true", argv);
        _exit(1);
    }
    return child;
}

static void map(uint64_t *seed)
{
    size_t pages = 4 + next(seed) % 60;
    unsigned char pattern = next(seed);
    unsigned char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        fail("mmap");
    fill(p, pages * PAGE, pattern);
    if (mprotect(p, PAGE, PROT_READ) || mprotect(p, PAGE, PROT_READ | PROT_WRITE))
        fail("mprotect");
    check(p, pages * PAGE, pattern, "after mprotect");
    if (madvise(p + PAGE, PAGE, MADV_DONTNEED) || p[PAGE] || p[0] != pattern || p[2 * PAGE] != pattern)
        fail("madvise");
    p[PAGE] = pattern;
    unsigned char *moved = mremap(p, pages * PAGE, 2 * pages * PAGE, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED)
        fail("mremap");
    for (size_t i = 0; i < pages; i++)
        if (moved[i * PAGE] != pattern || moved[(pages + i) * PAGE])
            fail("after mremap");
    unsigned char *over =
        mmap(moved, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (over != moved || moved[0] || moved[PAGE] || moved[2 * PAGE] != pattern)
        fail("mmap over");
    if (syscall(SYS_munmap, moved, pages * PAGE) || munmap(moved + pages * PAGE, pages * PAGE))
        fail("munmap");
}

static void share(uint64_t *seed)
{
    size_t size = (1 + next(seed) % 16) * PAGE;
    int id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
    unsigned char *p = shmat(id, NULL, 0), *again = shmat(id, NULL, SHM_RDONLY);
    if (id < 0 || p == (void *)-1 || again == (void *)-1)
        fail("shmat");
    shmctl(id, IPC_RMID, NULL);
    fill(p, size, 77);
    check(again, size, 77, "shared memory");
    if (shmdt(p))
        fail("shmdt");
    check(again, size, 77, "shared memory after shmdt");
    if (shmdt(again))
        fail("shmdt");
}

static void processes(uint64_t *seed, unsigned char **block, size_t *size, unsigned char *pattern)
{
    pid_t child;
    char *argv[] = {"true", NULL};
    switch (next(seed) % 3) {
    case 0:
        child = fork();
        if (child == 0) {
            // What the parent's other threads do does not reach the child.
            for (int i = 0; i < SLOTS; i++)
                if (block[i]) {
                    check(block[i], size[i], pattern[i], "in a child");
                    fill(block[i], size[i], 0x5a);
                }
            void *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            _exit(p == MAP_FAILED || munmap(p, PAGE));
        }
        reap(child, "fork");
        break;
    case 1:
        reap(vfork_true(), "vfork");
        break;
    default:
        if (posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ))
            fail("posix_spawn");
        reap(child, "posix_spawn");
    }
}

static void *work(void *number)
{
    uint64_t seed = 0x9e3779b97f4a7c15 * ((uintptr_t)number + 1), sum = 0;
    unsigned char *block[SLOTS] = {0}, pattern[SLOTS];
    size_t size[SLOTS];
    for (int round = 0; round < rounds; round++) {
        int i = next(&seed) % SLOTS;
        // 1 byte to 4 MiB, small ones more often.
        size_t wanted = 1 + next(&seed) % (1UL << (next(&seed) % 23));
        if (!block[i])
            block[i] = malloc(wanted);
        else {
            check(block[i], size[i], pattern[i], "before realloc or free");
            sum = sum * 31 + size[i] + pattern[i];
            if (next(&seed) & 1) {
                size_t kept = size[i] < wanted ? size[i] : wanted;
                block[i] = realloc(block[i], wanted);
                for (size_t k = 0; block[i] && k < kept; k += PAGE)
                    if (block[i][k] != pattern[i])
                        fail("after realloc");
            } else {
                free(block[i]);
                block[i] = NULL;
                continue;
            }
        }
        if (!block[i])
            fail("no memory");
        size[i] = wanted;
        pattern[i] = next(&seed);
        fill(block[i], wanted, pattern[i]);
        if (round % 4 == 0)
            map(&seed);
        if (round % 16 == 5)
            share(&seed);
        if (round % 40 == 20)
            processes(&seed, block, size, pattern);
    }
    for (int i = 0; i < SLOTS; i++)
        if (block[i]) {
            check(block[i], size[i], pattern[i], "at the end");
            sum = sum * 31 + size[i] + pattern[i];
            free(block[i]);
        }
    return (void *)sum;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 16;
    if (argc > 2)
        rounds = atoi(argv[2]);
    pthread_t *thread = calloc(threads, sizeof *thread);
    uintptr_t sum = 0;
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)i))
            fail("pthread_create");
    for (int i = 0; i < threads; i++) {
        void *result;
        pthread_join(thread[i], &result);
        sum = sum * 131 + (uintptr_t)result;
    }
    printf("checksum %016lx\n", (unsigned long)sum);
    free(thread);
    return 0;
}
