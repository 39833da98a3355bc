// No address space is left: calls fail with ENOMEM, and the program goes on.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEGABYTE (1L << 20)

static long in_use(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld", &pages) != 1)
        exit(2);
    fclose(file);
    return pages * 4096;
}

static void expect(int truth, const char *what)
{
    if (!truth) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

int main(void)
{
    static char *blocks[64];
    struct rlimit limit = {in_use() + 40 * MEGABYTE, RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    char *grown = mmap(NULL, MEGABYTE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 20; round++) {
        setrlimit(RLIMIT_AS, &limit);
        int got = 0;
        while (got < 64) {
            char *p = mmap(NULL, MEGABYTE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED)
                break;
            p[0] = (char)got;
            blocks[got++] = p;
        }
        expect(errno == ENOMEM && got > 30 && got < 64, "mmap until nothing is left");
        errno = 0;
        expect(mremap(grown, MEGABYTE, 32 * MEGABYTE, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM, "mremap");
        errno = 0;
        expect(!malloc(64 * MEGABYTE) && errno == ENOMEM, "malloc");
        errno = 0;
        expect(sbrk(64 * MEGABYTE) == (void *)-1 && errno == ENOMEM, "sbrk");
        pid_t child = fork();
        expect(child >= 0, "fork");
        if (child == 0) {
            for (int i = 0; i < got; i++)
                if (blocks[i][0] != (char)i || munmap(blocks[i], MEGABYTE))
                    _exit(1);
            _exit(0);
        }
        int status;
        expect(waitpid(child, &status, 0) == child && status == 0, "the child");
        for (int i = 0; i < got; i++)
            expect(blocks[i][0] == (char)i && !munmap(blocks[i], MEGABYTE), "munmap");
        setrlimit(RLIMIT_AS, &none);
    }
    puts("nomem ok");
    return 0;
}
