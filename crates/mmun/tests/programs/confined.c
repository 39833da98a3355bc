/* Confines itself, then changes memory: as `filter` by a list of system calls (anything else kills it), as `mdwe` by
 * PR_SET_MDWE, after which no memory may become executable. With more words it becomes that program, confined.
 *
 * As `errno` or `trap` by a list on which is what a loader calls, and nothing that only we call: anything else fails, or is
 * answered by a handler of SIGSYS. With more words it loads that library, of which `made_by_itself` unmaps. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static void filter(const int *allowed, int count, unsigned otherwise) {
    struct sock_filter code[64];
    code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < count; i++)
        code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], (unsigned char)(count - i), 0);
    code[count + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, otherwise);
    code[count + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)(count + 3), code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        perror("seccomp"), exit(2);
}
#define FILTER(allowed, otherwise) filter(allowed, sizeof allowed / sizeof *allowed, otherwise)

static const int changes[] = {SYS_mmap, SYS_munmap, SYS_mprotect, SYS_madvise,    SYS_mremap,   SYS_brk,
                              SYS_write, SYS_fstat, SYS_newfstatat, SYS_getrandom, SYS_exit_group};
static const int loads[] = {SYS_mmap,  SYS_munmap,     SYS_mprotect,  SYS_madvise,    SYS_mremap, SYS_brk,
                            SYS_write, SYS_newfstatat, SYS_getrandom, SYS_exit_group, SYS_openat, SYS_read,
                            SYS_close, SYS_rt_sigreturn};

/* As a sandbox answers what is not on its list. */
static volatile int answered;
static void answer(int number, siginfo_t *info, void *context) {
    if (number != SIGSYS || info->si_code != 1 /* SYS_SECCOMP */)
        _exit(3);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -EACCES;
    answered++;
}

static int load(const char *path) {
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        return puts(dlerror()), 1;
    int (*made_by_itself)(void *, unsigned long) = (int (*)(void *, unsigned long))dlsym(library, "made_by_itself");
    for (int i = 0; i < 300; i++) {
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED || made_by_itself(page, 4096))
            return 1;
    }
    return dlclose(library);
}

int main(int count, char **words) {
    if (count < 2)
        return 2;
    if (!strcmp(words[1], "filter"))
        FILTER(changes, SECCOMP_RET_KILL_PROCESS);
    else if (!strcmp(words[1], "errno")) {
        FILTER(loads, SECCOMP_RET_ERRNO | EPERM);
        if (syscall(SYS_getppid) != -1 || errno != EPERM)
            return 4;
    } else if (!strcmp(words[1], "trap")) {
        struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
        sigaction(SIGSYS, &action, NULL);
        FILTER(loads, SECCOMP_RET_TRAP);
        int before = answered;
        if (syscall(SYS_getppid) != -1 || errno != EACCES || answered != before + 1)
            return 4;
    } else if (prctl(65 /* PR_SET_MDWE */, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0))
        puts("no PR_SET_MDWE"), exit(77);
    if (count > 2 && strcmp(words[1], "filter") && strcmp(words[1], "mdwe")) {
        if (load(words[2]))
            return 1;
    } else if (count > 2) {
        execv(words[2], words + 2);
        return 2;
    }
    for (int i = 0; i < 300; i++) {
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED || mprotect(page, 4096, PROT_READ) || munmap(page, 4096))
            return 1;
        volatile char *block = malloc(1 << 20);
        *block = 1;
        free((void *)block);
    }
    puts("confined ok");
    return 0;
}
