// Waits in another thread while an object is loaded whose system calls cannot be rewritten; says how the wait ended. waits OBJECT
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *wait_half_a_second(void *started)
{
    *(volatile int *)started = 1;
    return poll(0, 0, 500) ? strerror(errno) : "in time";
}

int main(int argc, char **argv)
{
    volatile int started = 0;
    pthread_t thread;
    void *how;
    if (argc < 2 || pthread_create(&thread, 0, wait_half_a_second, (void *)&started))
        return 2;
    while (!started)
        usleep(1000);
    usleep(100000);
    if (!dlopen(argv[1], RTLD_NOW))
        return 1;
    pthread_join(thread, &how);
    printf("waited: %s\n", (char *)how);
    return 0;
}
