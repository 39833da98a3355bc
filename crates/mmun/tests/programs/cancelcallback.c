// A thread that is cancelled inside a subscriber's callback: whoever unwinds it comes through the hook. Without mmun there
// is nobody to subscribe with, and the thread is cancelled outside.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

struct change;
struct ops {
    void (*start)(const struct change *, void *);
    void (*end)(const struct change *, void *);
    void (*release)(void *);
};

static volatile pthread_t victim;
static volatile int waiting, cleaned;

static void wait_to_be_cancelled(void)
{
    waiting = 1;
    for (;;)
        pause();
}

static void start(const struct change *change, void *context)
{
    (void)change, (void)context;
    if (pthread_equal(pthread_self(), victim))
        wait_to_be_cancelled();
}

static void end(const struct change *change, void *context) { (void)change, (void)context; }

static void clean_up(void *argument)
{
    (void)argument;
    victim = 0;
    cleaned++;
}

static void *thread(void *argument)
{
    pthread_cleanup_push(clean_up, NULL);
    victim = pthread_self();
    munmap(argument, 4096);
    wait_to_be_cancelled();
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void)
{
    static const struct ops ops = {start, end, NULL};
    int (*subscribe)(const struct ops *, size_t, void *, void **) = dlsym(RTLD_DEFAULT, "mmu_notifier_subscribe");
    void *subscription;
    if (subscribe && subscribe(&ops, sizeof ops, NULL, &subscription)) {
        puts("cannot subscribe");
        return 1;
    }
    for (int i = 1; i <= 20; i++) {
        void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *result;
        pthread_t id;
        waiting = 0;
        if (page == MAP_FAILED || pthread_create(&id, NULL, thread, page))
            return 1;
        while (!waiting)
            usleep(100);
        if (pthread_cancel(id) || pthread_join(id, &result) || result != PTHREAD_CANCELED || cleaned != i) {
            puts("not cancelled");
            return 1;
        }
    }
    puts("cancelcallback ok");
    return 0;
}
