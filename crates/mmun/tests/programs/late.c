// Loads and unloads an object with memory calls of its own, 50 times: `late path/of/object.so`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int rounds = argc > 2 ? atoi(argv[2]) : 50;
    for (int round = 0; round < rounds; round++) {
        void *object = dlopen(argv[1], RTLD_NOW);
        if (!object) {
            puts(dlerror());
            return 1;
        }
        int (*change)(int) = (int (*)(int))dlsym(object, "change");
        int result = change(4);
        if (result) {
            printf("round %d: %d\n", round, result);
            return 1;
        }
        if (dlclose(object))
            return 1;
    }
    puts("late ok");
    return 0;
}
