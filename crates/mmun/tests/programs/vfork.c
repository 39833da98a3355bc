// New programs in every way there is, while other threads change memory.
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
static atomic_int stop;
extern char **environ;

static void *churn(void *unused)
{
    (void)unused;
    while (!stop) {
        char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            abort();
        p[0] = 1;
        munmap(p, 8 * PAGE);
        free(malloc(300000));
        usleep(50);
    }
    return NULL;
}

static void expect(const char *what, int status, int wanted)
{
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted) {
        printf("%s: status %x, not exit %d\n", what, status, wanted);
        exit(1);
    }
}

static int reap(pid_t child)
{
    int status = -1;
    if (child <= 0 || waitpid(child, &status, 0) != child)
        return -1;
    return status;
}

static __attribute__((noinline)) pid_t vfork_exec(const char *path)
{
    static char *argv[] = {"true", NULL};
    pid_t child = vfork();
    if (child == 0) {
        execv(path, argv);
        _exit(9);
    }
    return child;
}

static __attribute__((noinline)) pid_t vfork_exit(char *memory)
{
    pid_t child = vfork();
    if (child == 0) {
        // The memory is shared with the parent: what the child changes is changed.
        mprotect(memory, PAGE, PROT_READ | PROT_WRITE);
        memory[0] = 7;
        _exit(7);
    }
    return child;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 200;
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        if (pthread_create(&threads[i], NULL, churn, NULL))
            return 1;
    for (int round = 0; round < rounds; round++) {
        expect("vfork and exec", reap(vfork_exec("/bin/true")), 0);
        expect("vfork and failing exec", reap(vfork_exec("/nowhere")), 9);
        char *memory = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        expect("vfork and exit", reap(vfork_exit(memory)), 7);
        if (memory[0] != 7) {
            puts("the child's write is lost");
            return 1;
        }
        munmap(memory, PAGE);
        pid_t child = -1;
        char *const words[] = {"sh", "-c", "exit 5", NULL};
        if (posix_spawn(&child, "/bin/sh", NULL, NULL, words, environ))
            return 1;
        expect("posix_spawn", reap(child), 5);
        expect("system", system("exit 3"), 3);
        FILE *pipe = popen("echo 42", "r");
        int number = 0;
        if (!pipe || fscanf(pipe, "%d", &number) != 1 || number != 42) {
            puts("popen");
            return 1;
        }
        expect("popen", pclose(pipe), 0);
    }
    stop = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    puts("vfork ok");
    return 0;
}
