// Makes so many mprotect calls that succeed: `churn TIMES`.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
    int times = argc > 1 ? atoi(argv[1]) : 0;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < times; i++)
        if (mprotect(page, 4096, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE))
            return 1;
    puts("churn ok");
    return 0;
}
