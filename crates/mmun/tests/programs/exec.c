// Replaces itself again and again, in every way; makes memory calls before and after each.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;

static void churn(void)
{
    for (int i = 0; i < 10; i++) {
        char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            abort();
        p[0] = 1;
        munmap(p, 8192);
    }
}

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static void *exec_here(void *argv)
{
    churn();
    execve(((char **)argv)[0], argv, environ);
    fail("execve in a thread");
    return NULL;
}

int main(int argc, char **argv)
{
    int stage = argc > 1 ? atoi(argv[1]) : 0;
    pid_t first = argc > 2 ? atoi(argv[2]) : getpid();
    char self[4096], next[16], pid[16];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0)
        fail("/proc/self/exe");
    self[length] = 0;
    snprintf(next, sizeof next, "%d", stage + 1);
    snprintf(pid, sizeof pid, "%d", first);
    char *words[] = {self, next, pid, NULL};
    if (getpid() != first)
        fail("the process id changed");
    printf("stage %d\n", stage);
    fflush(stdout);
    churn();
    switch (stage) {
    case 0:
        if (execv("/nowhere", words) != -1 || errno != ENOENT)
            fail("execv of nothing");
        churn();
        if (execv("/", words) != -1 || errno != EACCES)
            fail("execv of a directory");
        if (syscall(SYS_execveat, -1, "x", words, environ, 0) != -1 || errno != EBADF)
            fail("execveat without a directory");
        if (syscall(SYS_execve, self, 8, environ) != -1 || errno != EFAULT)
            fail("execve with arguments nowhere");
        if (syscall(SYS_execve, self, words, 8) != -1 || errno != EFAULT)
            fail("execve with an environment nowhere");
        if (syscall(SYS_execve, 8, words, environ) != -1 || errno != EFAULT)
            fail("execve with a path nowhere");
        churn();
        execv(self, words);
        break;
    case 1: {
        pthread_t thread;
        if (pthread_create(&thread, NULL, exec_here, words))
            fail("pthread_create");
        for (;;)
            pause();
    }
    case 2: {
        int file = open(self, O_RDONLY | O_CLOEXEC);
        fexecve(file, words, environ);
        break;
    }
    case 3:
        syscall(SYS_execveat, AT_FDCWD, self, words, environ, 0);
        break;
    case 4:
        execvp(self, words);
        break;
    case 5: {
        // A new environment that is not the process's own, on the stack, and without what was there.
        char *environment[] = {"ONLY=this", NULL};
        execve(self, words, environment);
        break;
    }
    case 6:
        if (!getenv("ONLY") || environ[1]) {
            for (char **variable = environ; *variable; variable++)
                puts(*variable);
            return 1;
        }
        syscall(SYS_execve, self, words, NULL);
        break;
    case 7:
        if (environ && environ[0]) {
            printf("environment: %s\n", environ[0]);
            return 1;
        }
        puts("exec ok");
        return 0;
    }
    fail("exec");
}
