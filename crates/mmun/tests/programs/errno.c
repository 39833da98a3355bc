// Every call of the table failing, through the C library and by number: prints results and errors.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define TRY(...) \
    do { \
        errno = 0; \
        long result = (long)(__VA_ARGS__); \
        int error = errno; \
        printf("%-70s %ld %s\n", #__VA_ARGS__, result, strerror(error)); \
    } while (0)

int main(void)
{
    // Only constants in the names of the calls: the output is compared.
    static char out[1 << 14];
    setvbuf(stdout, out, _IOFBF, sizeof out);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int rdonly = open("/proc/self/exe", O_RDONLY);
    struct iovec piece = {page, 4096};
    int none = -1;

    TRY(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, none, 0));
    TRY(mmap(NULL, 1UL << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    TRY(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, rdonly, 0));
    TRY(mmap((void *)1, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    TRY(mmap(page, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    TRY(munmap(page + 1, 4096));
    TRY(munmap(page, 0));
    TRY(munmap((void *)(1UL << 50), 4096));
    TRY(mprotect(page + 1, 4096, PROT_READ));
    TRY(mprotect((void *)4096, 4096, PROT_READ));
    TRY(pkey_mprotect(page, 4096, PROT_READ, 9999));
    TRY(mremap((void *)4096, 4096, 8192, 0));
    TRY(mremap(page, 4096, 4096, MREMAP_FIXED, page));
    TRY(mremap(page, 4096, 0, 0));
    TRY(madvise(page, 4096, 999));
    TRY(madvise(page + 1, 4096, MADV_DONTNEED));
    TRY(madvise((void *)4096, 4096, MADV_DONTNEED));
    TRY(syscall(SYS_process_madvise, -1, &piece, 1, MADV_DONTNEED, 0));
    TRY(syscall(SYS_process_madvise, -1, 8, 1, MADV_DONTNEED, 0));
    TRY(syscall(SYS_process_madvise, -1, &piece, -1, MADV_DONTNEED, 0));
    TRY(syscall(SYS_remap_file_pages, page, 4096, 0, 0, 0));
    TRY(shmat(-1, NULL, 0));
    TRY(shmat(-1, page, SHM_REMAP));
    TRY(shmdt(page));
    TRY(shmdt((void *)16));
    TRY(ftruncate(-1, 0));
    TRY(ftruncate(rdonly, 0));
    TRY(truncate("/nowhere/at/all", 0));
    TRY(truncate("/", 0));
    TRY(syscall(SYS_truncate, 8, 0));
    TRY(fallocate(-1, 0, 0, 4096));
    TRY(fallocate(rdonly, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    TRY(fallocate(rdonly, 0, -1, -1));
    TRY(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0));
    TRY(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0));
    TRY(syscall(SYS_clone3, NULL, 0));
    TRY(syscall(SYS_clone3, 8, sizeof(struct clone_args)));
    TRY(execve("/nowhere/at/all", (char *[]){"x", NULL}, NULL));
    TRY(execve("/", (char *[]){"x", NULL}, NULL));
    TRY(syscall(SYS_execve, 8, 0, 0));
    TRY(syscall(SYS_execveat, -1, "x", NULL, NULL, 0));
    TRY(syscall(SYS_execveat, rdonly, "", NULL, NULL, -1));
    TRY(syscall(SYS_munmap, page + 1, 4096));
    TRY(syscall(SYS_mprotect, page + 1, 4096, 0));
    TRY(syscall(SYS_madvise, page, 4096, 999));
    TRY(syscall(9999));
    TRY(close(-1));
    TRY(munmap(page, 4096));
    return 0;
}
