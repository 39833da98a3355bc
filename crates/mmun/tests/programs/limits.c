// What docs/limits.md says that a program notices, or that is not seen of it: limits WHAT [OBJECT]
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static void die(const char *what) { perror(what); exit(1); }

static void *map(void *at, size_t len, int flags)
{
    int rights = PROT_READ | PROT_WRITE;
    at = mmap(at, len, rights, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED)
        die("mmap");
    return at;
}

/* call(a, b, number), and two bytes more, so that a jump in place of the call would go 819 MiB down. */
static const unsigned char code[] = { 0x89, 0xd0, 0x0f, 0x05, 0xc3, 0xcc, 0xcc };
enum { CALL = 2 };
typedef long call_type(long, long, long);

static unsigned char *make(void *where, int rights)
{
    unsigned char *at = map(where, PAGE, where ? MAP_FIXED_NOREPLACE : 0);
    memcpy(at, code, sizeof code);
    if (mprotect(at, PAGE, rights))
        die("mprotect");
    return at;
}

static long call(void *at, long a, long b, long number) { return ((call_type *)at)(a, b, number); }

/* Code that may not be written, and is trapped until it is hot. */
static unsigned char *hot(void)
{
    unsigned char *at = make((void *)0x1000000000, PROT_READ | PROT_EXEC);
    for (int i = 0; i < 100; i++)
        if (call(at, 0, 0, SYS_getpid) != getpid())
            die("getpid");
    return at;
}

static void reads(void) { puts(memcmp(hot(), code, sizeof code) ? "changed" : "as written"); }

static void copies(void)
{
    unsigned char *at = hot(), *copy = map(0, PAGE, 0);
    memcpy(copy, at, sizeof code);
    if (mprotect(copy, PAGE, PROT_READ | PROT_EXEC))
        die("mprotect");
    puts(call(copy, 0, 0, SYS_getpid) == getpid() ? "copied" : "wrong");
}

static void takes(void)
{
    unsigned char *behind = hot() + CALL + 5;
    int distance = 0x05 | 0xc3 << 8 | 0xcc << 16 | (int)(0xccu << 24);
    void *lands = (void *)((unsigned long)(behind + distance) & -PAGE);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    void *at = mmap(lands, PAGE, PROT_READ, flags, -1, 0);
    puts(at != MAP_FAILED ? "free" : errno == EEXIST ? "taken" : strerror(errno));
}

/* The mask is set by a debugger, a child. */
static void masked(void)
{
    unsigned char *at = make(0, PROT_READ | PROT_EXEC);
    volatile int *set = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    pid_t parent = getpid(), child = fork();
    if (!child) {
        unsigned long mask = 1ul << (SIGSYS - 1);
        int status;
        *set = ptrace(PTRACE_SEIZE, parent, 0, 0) || ptrace(PTRACE_INTERRUPT, parent, 0, 0)
            || waitpid(parent, &status, __WALL) != parent
            || ptrace(PTRACE_SETSIGMASK, parent, sizeof mask, &mask) ? -1 : 1;
        ptrace(PTRACE_DETACH, parent, 0, 0);
        _exit(0);
    }
    while (!*set)
        ;
    if (*set < 0)
        die("ptrace");
    puts(call(at, 0, 0, SYS_getpid) == parent ? "masked" : "wrong");
    waitpid(child, 0, 0);
}

static void *object_of(const char *name)
{
    void *object = dlopen(name, RTLD_NOW);
    if (!object)
        die(dlerror());
    return dlsym(object, "unfit");
}

static long (*volatile unfit)(void *, size_t);
static volatile int blocked;

static void *deaf_thread(void *unused)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    blocked = 1;
    while (!unfit)
        usleep(100);
    for (int i = 0; i < 1000; i++)
        if (unfit(map(0, PAGE, 0), PAGE))
            die("munmap");
    return unused;
}

/* A thread blocks SIGSYS when the process is armed. */
static void deaf(const char *name)
{
    pthread_t thread;
    if (pthread_create(&thread, 0, deaf_thread, 0))
        die("pthread_create");
    while (!blocked)
        usleep(100);
    unfit = object_of(name);
    pthread_join(thread, 0);
    puts("deaf");
}

static volatile int stop;

static void *sends(void *to)
{
    while (!stop)
        syscall(SYS_tgkill, getpid(), *(pid_t *)to, SIGSYS);
    return 0;
}

static void handle(int number) { (void)number; }

/* Another thread sends the signal that traps come by, for at most 20 seconds. */
static void sent(void)
{
    /* Writable, so that it stays trapped. */
    unsigned char *at = make(0, PROT_READ | PROT_WRITE | PROT_EXEC);
    struct sigaction action = { .sa_handler = handle };
    sigaction(SIGSYS, &action, 0);
    pid_t self = gettid();
    pthread_t thread;
    if (pthread_create(&thread, 0, sends, &self))
        die("pthread_create");
    time_t begun = time(0);
    long result = 0;
    while (!result && time(0) - begun < 20)
        result = call(at, 0, 0, SYS_sched_yield);
    stop = 1;
    pthread_join(thread, 0);
    puts(!result ? "none" : result == SYS_sched_yield ? "lost" : "wrong");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "", *object = argc > 2 ? argv[2] : "";
    static const struct { const char *name; void (*run)(void); } ways[] = {
        { "reads", reads }, { "copies", copies }, { "takes", takes }, { "masked", masked }, { "sent", sent },
    };
    if (!strcmp(what, "nothing"))
        return 0;
    if (!strcmp(what, "deaf"))
        return deaf(object), 0;
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++)
        if (!strcmp(what, ways[i].name))
            return ways[i].run(), 0;
    return 2;
}
