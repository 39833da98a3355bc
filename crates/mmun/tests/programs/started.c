// Says what it is and what it has: what a program is to find however it was started. `started STATUS`: ends with it;
// `started -SIGNAL`: dies of that; `started STATUS PROGRAM ARGS`: goes on as that.
#define _GNU_SOURCE
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    char path[4096], comm[64] = "", folder[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    int file = open("/proc/self/comm", O_RDONLY);
    length = read(file, comm, sizeof comm - 1);
    close(file);
    comm[length > 0 ? length - 1 : 0] = 0;
    printf("%s: %s, %s, in %s, argv", argc ? argv[0] : "(null)", path, comm, getcwd(folder, sizeof folder));
    for (int i = 1; i < argc; i++)
        printf(" %s", argv[i]);
    printf("; environment");
    for (char **variable = environ; variable && *variable; variable++)
        printf(" %s", *variable);
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    printf("; signals");
    for (int signal = 1; signal < 65; signal++) {
        struct sigaction action;
        // SIGSYS is the watcher's, in strict mode.
        if (signal == SIGSYS || sigaction(signal, NULL, &action))
            continue;
        if (action.sa_handler == SIG_IGN)
            printf(" %d ignored", signal);
        if (sigismember(&blocked, signal) > 0)
            printf(" %d blocked", signal);
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    printf("; %lu files; open", (unsigned long)files.rlim_cur);
    for (int descriptor = 0; descriptor < 64; descriptor++)
        if (fcntl(descriptor, F_GETFD) != -1)
            printf(" %d", descriptor);
    printf("\n");
    fflush(stdout);
    // What a watcher is to see of it.
    for (int i = 0; i < 100; i++) {
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            abort();
        page[0] = 1;
        mprotect(page, 4096, PROT_READ);
        munmap(page, 4096);
    }
    int status = argc > 1 ? atoi(argv[1]) : 0;
    if (argc > 2) {
        execv(argv[2], argv + 2);
        perror(argv[2]);
        return 99;
    }
    if (status < 0) {
        raise(-status);
        pause();
    }
    return status;
}
