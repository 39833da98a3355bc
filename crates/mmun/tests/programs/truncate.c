// Files that are mapped lose pages: by ftruncate, truncate, fallocate. `truncate path`: a file to make.
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L
static sigjmp_buf out;

static void on_bus(int signal)
{
    (void)signal;
    siglongjmp(out, 1);
}

static int gone(volatile char *p)
{
    if (sigsetjmp(out, 1))
        return 1;
    (void)*p;
    return 0;
}

static void expect(int truth, const char *what)
{
    if (!truth) {
        puts(what);
        exit(1);
    }
}

static void fill(char *p)
{
    for (int i = 0; i < 8; i++)
        memset(p + i * PAGE, i + 1, PAGE);
}

int main(int argc, char **argv)
{
    signal(SIGBUS, on_bus);
    int file = memfd_create("file", 0), named = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    expect(file >= 0 && named >= 0 && argc == 2, "files");
    for (int round = 0; round < 20; round++) {
        expect(!ftruncate(file, 8 * PAGE), "ftruncate up");
        char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        char *again = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, file, 2 * PAGE);
        fill(p);
        expect(!fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, 2 * PAGE), "punch");
        expect(p[PAGE] == 2 && p[2 * PAGE] == 0 && p[3 * PAGE] == 0 && p[4 * PAGE] == 5, "a hole in the mapping");
        expect(again[0] == 0 && again[2 * PAGE] == 5, "a hole in the second mapping");
        expect(!fallocate(file, FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE), "allocate");
        expect(!ftruncate(file, 3 * PAGE), "ftruncate down");
        expect(p[PAGE] == 2 && gone(p + 3 * PAGE) && gone(again + PAGE) && !gone(again), "pages beyond the end");
        expect(!munmap(p, 8 * PAGE) && !munmap(again, 4 * PAGE), "munmap");

        expect(!ftruncate(named, 8 * PAGE), "ftruncate of a named file");
        p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, named, 0);
        char *private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, named, 0);
        fill(p);
        expect(private[5 * PAGE] == 6, "a private mapping");
        private[6 * PAGE] = 99;
        expect(!truncate(argv[1], PAGE + 5), "truncate");
        expect(p[0] == 1 && p[PAGE] == 2 && p[PAGE + 5] == 0, "the page that is cut");
        expect(gone(p + 2 * PAGE) && gone(private + 5 * PAGE), "pages beyond the named file's end");
        expect(!munmap(p, 8 * PAGE) && !munmap(private, 8 * PAGE), "munmap");
    }
    unlink(argv[1]);
    puts("truncate ok");
    return 0;
}
