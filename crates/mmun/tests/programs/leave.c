// Leaves something behind and goes on as another program: `leave WHAT DIRECTORY PROGRAM ARGS`.
#define _GNU_SOURCE
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const char *what = argv[1];
    char *nothing[] = {NULL}, **environment = environ;
    int in_place = 0;
    if (!strcmp(what, "environment"))
        environment = nothing;
    else if (!strcmp(what, "environment-pointer"))
        environment = NULL;
    else if (!strcmp(what, "files"))
        closefrom(3);
    else if (!strcmp(what, "all-files"))
        closefrom(0);
    else if (!strcmp(what, "directory")) {
        if (chdir(argv[2]))
            return 3;
    } else if (!strcmp(what, "root")) {
        if (chroot(argv[2]) || chdir("/"))
            return 3;
        in_place = 1;
    } else if (!strcmp(what, "privileges")) {
        if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
            return 3;
    } else if (!strcmp(what, "session")) {
        int status = 0;
        pid_t child = fork();
        if (child)
            return waitpid(child, &status, 0) != child || status;
        setsid();
    } else
        return 2;
    // Some calls of its own; in a new root there is no other program to go on as.
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 1000; i++)
        if (mprotect(page, 4096, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE))
            return 4;
    if (in_place) {
        puts("leave ok");
        return 0;
    }
    syscall(SYS_execve, argv[3], argv + 3, environment);
    return 5;
}
