// The program break goes up, down and nowhere; prints where it is relative to its start.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096L
static char *start;

static void say(const char *what, long result, int error)
{
    printf("%s: %ld, %s, break at %ld, kernel's at %ld\n", what, result, strerror(error),
           (char *)sbrk(0) - start, syscall(SYS_brk, 0L) - (long)start);
}

int main(void)
{
    static char out[4096];
    setvbuf(stdout, out, _IOFBF, sizeof out);
    start = sbrk(0);
    char *p = sbrk(64 * PAGE);
    say("up", p - start, 0);
    for (int i = 0; i < 64; i++)
        p[i * PAGE] = (char)i;
    p = sbrk(-32 * PAGE);
    say("down", p - start, 0);
    p = sbrk(32 * PAGE);
    int zero = 1, kept = 1;
    for (int i = 0; i < 64; i++)
        if (i < 32)
            kept &= start[i * PAGE] == (char)i;
        else
            zero &= start[i * PAGE] == 0;
    printf("kept %d, zero %d\n", kept, zero);
    p = sbrk(1);
    say("one byte up", p - start, 0);
    p = sbrk(-1);
    say("one byte down", p - start, 0);
    struct rlimit limit = {2 << 20, RLIM_INFINITY};
    setrlimit(RLIMIT_DATA, &limit);
    errno = 0;
    p = sbrk(1L << 30);
    say("too far", p == (char *)-1 ? -1 : p - start, errno);
    errno = 0;
    int refused = brk(start + (1L << 30));
    say("too far with brk", refused, errno);
    say("too far with syscall", syscall(SYS_brk, start + (1L << 30)) - (long)start, 0);
    say("to 1 with syscall", syscall(SYS_brk, 1L) - (long)start, 0);
    say("to the start", brk(start), 0);
    for (int i = 0; i < 100; i++) {
        p = sbrk(8 * PAGE);
        p[0] = p[8 * PAGE - 1] = 1;
        if (brk(p))
            return 1;
    }
    say("up and down", 0, 0);
    return 0;
}
