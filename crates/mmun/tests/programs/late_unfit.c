// Loads an object whose munmap cannot be rewritten (unfit.c) while threads unmap. late_unfit OBJECT COUNT
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int count;
static long (*volatile unfit)(void *, size_t);

static void *page(void)
{
    void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit(1);
    return at;
}

static void *work(void *unused)
{
    // Runs before the object is there, and not through any code that is rewritten because of it.
    while (!unfit)
        usleep(100);
    for (int i = 0; i < count; i++)
        if (unfit(page(), 4096))
            exit(1);
    return unused;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    count = atoi(argv[2]);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        if (pthread_create(&threads[i], 0, work, 0))
            return 1;
    usleep(2000);
    void *object = dlopen(argv[1], RTLD_NOW);
    if (!object)
        return 1;
    unfit = (long (*)(void *, size_t))dlsym(object, "unfit");
    work(0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], 0);
    puts("late_unfit ok");
    return 0;
}
