// A thread whose thread pointer is 0 makes memory calls: who touches thread-local storage crashes.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK (64 * 1024L)
static volatile int alive = 1;
static volatile long result = -1;

// The thread: 500 times mmap, touch, madvise, munmap; then the result is stored and it exits. The kernel
// sets `alive` to 0 when it is gone.
asm(".text\n"
    ".globl thread_without_tls\n.type thread_without_tls,@function\nthread_without_tls:\n"
    " mov $0x3d0f00, %edi\n" // CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS|PARENT_SETTID|CHILD_CLEARTID
    " lea alive(%rip), %rdx\n"
    " lea alive(%rip), %r10\n"
    " xor %r8d, %r8d\n"
    " mov $56, %eax\n syscall\n"
    " test %rax, %rax\n jz 1f\n ret\n"
    "1: xor %ebp, %ebp\n mov $500, %ebx\n"
    "2: xor %edi, %edi\n mov $8192, %esi\n mov $3, %edx\n mov $0x22, %r10d\n mov $-1, %r8\n xor %r9d, %r9d\n"
    " mov $9, %eax\n syscall\n"
    " cmp $-4096, %rax\n ja 3f\n"
    " mov %rax, %r12\n movb $1, (%r12)\n"
    " mov %r12, %rdi\n mov $4096, %esi\n mov $4, %edx\n mov $28, %eax\n syscall\n"
    " test %rax, %rax\n jnz 3f\n"
    " cmpb $0, (%r12)\n jne 3f\n"
    " mov %r12, %rdi\n mov $8192, %esi\n mov $11, %eax\n syscall\n"
    " test %rax, %rax\n jnz 3f\n"
    " dec %ebx\n jnz 2b\n"
    " movq $0, result(%rip)\n"
    "3: xor %edi, %edi\n mov $60, %eax\n syscall\n hlt\n");
long thread_without_tls(long unused, void *top);

int main(void)
{
    _Static_assert((CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
                    CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID) == 0x3d0f00,
                   "the number in the assembly");
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 10; round++) {
        alive = 1;
        result = -1;
        long id = thread_without_tls(0, stack + STACK - 64);
        if (id <= 0) {
            printf("clone: %ld\n", id);
            return 1;
        }
        // Memory calls on both sides at once.
        while (alive) {
            char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            *(volatile char *)p = 1;
            munmap(p, 8192);
            sched_yield();
        }
        if (result) {
            puts("a call of the thread failed");
            return 1;
        }
    }
    puts("fs0 ok");
    return 0;
}
