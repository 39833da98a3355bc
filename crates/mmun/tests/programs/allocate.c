/* Four threads that map, unmap, allocate and free: what sanitizers and debuggers are used on. Exactly 800 munmap of two
 * pages. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static void *work(void *unused) {
    for (int i = 0; i < 200; i++) {
        char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            exit(1);
        *page = 1;
        munmap(page, 8192);
        volatile char *block = malloc(300000);
        block[i] = 1;
        free((void *)block);
    }
    return unused;
}

int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    puts("allocate ok");
    return 0;
}
