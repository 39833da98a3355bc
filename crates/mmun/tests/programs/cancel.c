// Threads that loop over memory calls are cancelled asynchronously, wherever they are.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096L
static atomic_int cleaned, running;

static void clean(void *place)
{
    cleaned++;
    if (munmap(place, 4 * PAGE))
        abort();
}

static void *loop(void *place)
{
    int before;
    pthread_cleanup_push(clean, place);
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &before);
    running = 1;
    for (;;) {
        mmap(place, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        *(volatile char *)place = 1;
        munmap((char *)place + PAGE, 3 * PAGE);
    }
    pthread_cleanup_pop(1);
    return NULL;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 200;
    for (int round = 0; round < rounds; round++) {
        void *place = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *result;
        pthread_t thread;
        running = 0;
        if (pthread_create(&thread, NULL, loop, place))
            return 1;
        while (!running)
            ;
        usleep(round * 7 % 300);
        if (pthread_cancel(thread) || pthread_join(thread, &result) || result != PTHREAD_CANCELED) {
            printf("round %d: not cancelled\n", round);
            return 1;
        }
        char *memory = malloc(200000);
        memset(memory, round, 200000);
        free(memory);
    }
    if (cleaned != rounds) {
        printf("%d of %d clean-up handlers ran\n", cleaned, rounds);
        return 1;
    }
    puts("cancel ok");
    return 0;
}
