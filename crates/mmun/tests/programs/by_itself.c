/* A library with a call of its own; with UNFIT, of a shape that cannot be rewritten. */
int made_by_itself(void *at, unsigned long length);
#ifdef UNFIT
__asm__(".text\n.globl made_by_itself\n.type made_by_itself, @function\nmade_by_itself:\n.cfi_startproc\n"
        ".rept 200\n nop\n .endr\n"
        " push $11\n .cfi_adjust_cfa_offset 8\n pop %rax\n .cfi_adjust_cfa_offset -8\n syscall\n"
        ".rept 200\n nop\n .endr\n"
        " ret\n.cfi_endproc\n.size made_by_itself, .-made_by_itself\n");
#else
int made_by_itself(void *at, unsigned long length) {
    long result;
    __asm__ volatile("mov $11, %%eax\n\tsyscall" : "=a"(result) : "D"(at), "S"(length) : "rcx", "r11", "memory");
    return (int)result;
}
#endif
