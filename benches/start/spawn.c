// Starts a program many times, one after the other, and says what one start costs.
//
//   spawn TIMES vfork|fork PROGRAM [ARGUMENT...]
//
// Prints microseconds of wall time, of the processors (user + system, of the children only), and page faults.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void start(int with_fork, char **program)
{
    pid_t pid = with_fork ? fork() : vfork();
    if (pid == 0) {
        execve(program[0], program, environ);
        _exit(127);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        exit(1);
}

static double seconds(struct timeval time) { return time.tv_sec + time.tv_usec * 1e-6; }

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int times = atoi(argv[1]), with_fork = argv[2][0] == 'f';
    for (int i = 0; i < 10; i++)
        start(with_fork, argv + 3);
    struct rusage before, after;
    struct timespec begun, done;
    getrusage(RUSAGE_CHILDREN, &before);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (int i = 0; i < times; i++)
        start(with_fork, argv + 3);
    clock_gettime(CLOCK_MONOTONIC, &done);
    getrusage(RUSAGE_CHILDREN, &after);
    double wall = done.tv_sec - begun.tv_sec + (done.tv_nsec - begun.tv_nsec) * 1e-9;
    double work = seconds(after.ru_utime) - seconds(before.ru_utime) + seconds(after.ru_stime) - seconds(before.ru_stime);
    printf("%.1f %.1f %.1f\n", wall * 1e6 / times, work * 1e6 / times, (double)(after.ru_minflt - before.ru_minflt) / times);
    return 0;
}
