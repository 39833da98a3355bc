// A signal whose handler jumps out of a long memory call, and then the process exits without making another one.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (64L << 20)

static sigjmp_buf out;

static void on_alarm(int signal)
{
    (void)signal;
    siglongjmp(out, 1);
}

static void child(void)
{
    void *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED)
        _exit(1);
    if (sigsetjmp(out, 1))
        _exit(0);
    // Comes while the pages are being given back, and so is delivered when the call returns.
    struct itimerval soon = {{0, 0}, {0, 500}};
    setitimer(ITIMER_REAL, &soon, NULL);
    munmap(p, BYTES);
    for (;;)
        pause();
}

int main(int argc, char **argv)
{
    int children = argc > 1 ? atoi(argv[1]) : 20;
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    for (int i = 0; i < children; i++) {
        pid_t pid = fork();
        if (pid == 0)
            child();
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            puts("a child has failed");
            return 1;
        }
    }
    puts("jumpexit ok");
    return 0;
}
