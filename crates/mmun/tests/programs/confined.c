/* Confines itself, then changes memory: as `filter` by a list of system calls (anything else kills it), as `mdwe` by
 * PR_SET_MDWE, after which no memory may become executable. With more words it becomes that program, confined. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void filter(void) {
    static const int allowed[] = {SYS_mmap,  SYS_munmap, SYS_mprotect, SYS_madvise,   SYS_mremap,
                                  SYS_brk,   SYS_write,  SYS_fstat,    SYS_newfstatat, SYS_getrandom,
                                  SYS_exit_group};
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[COUNT + 3];
    code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++)
        code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], (unsigned char)(COUNT - i), 0);
    code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {COUNT + 3, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        perror("seccomp"), exit(2);
}

int main(int count, char **words) {
    if (count < 2)
        return 2;
    if (!strcmp(words[1], "filter"))
        filter();
    else if (prctl(65 /* PR_SET_MDWE */, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0))
        puts("no PR_SET_MDWE"), exit(77);
    if (count > 2) {
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
