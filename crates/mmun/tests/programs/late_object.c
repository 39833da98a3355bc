// An object whose memory calls are in its own code: 1 mmap, 1 mprotect, 1 madvise, 1 munmap a turn.
#define _GNU_SOURCE
#include <sys/mman.h>

#define CALL(number, a, b, c, d, e, f) \
    ({ \
        register long r10 asm("r10") = (d), r8 asm("r8") = (e), r9 asm("r9") = (f); \
        long result; \
        asm volatile("mov $" #number ", %%eax\n\tsyscall" \
                     : "=a"(result) \
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) \
                     : "rcx", "r11", "memory"); \
        result; \
    })

int change(int turns)
{
    for (int turn = 0; turn < turns; turn++) {
        long p = CALL(9, 0L, 8192L, 3L, (long)(MAP_PRIVATE | MAP_ANONYMOUS), -1L, 0L);
        if (p < 0 && p > -4096)
            return 1;
        *(volatile char *)p = 1;
        if (CALL(10, p + 4096, 4096L, 1L, 0L, 0L, 0L))
            return 2;
        if (CALL(28, p, 4096L, (long)MADV_DONTNEED, 0L, 0L, 0L) || *(volatile char *)p)
            return 3;
        if (CALL(11, p, 8192L, 0L, 0L, 0L, 0L))
            return 4;
    }
    return 0;
}
