// Fills every register that a system call must preserve, the flags, the red zone and the vector
// registers with patterns, makes the call as `mov $nr,%eax; syscall`, and checks that all are unchanged.
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RBX, RBP, R12, R13, R14, R15, RDI, RSI, RDX, R10, R8, R9, GPRS };
static const char *const gpr_names[] = {"rbx", "rbp", "r12", "r13", "r14", "r15",
                                        "rdi", "rsi", "rdx", "r10", "r8",  "r9"};

struct half {
    uint64_t gpr[GPRS];    // 0
    uint64_t flags;        // 96
    uint64_t rax;          // 104
    uint64_t unused[2];    // 112
    uint64_t red[16];      // 128
    uint64_t vector[32][8]; // 256
};                         // 2304
struct state {
    struct half in, out;
} __attribute__((aligned(64)));

_Static_assert(sizeof(struct half) == 2304, "the offsets below");

// While all registers hold patterns the state is found through the top of the stack, above the red zone.
asm(".macro VECTORS move, offset, direction, register, last\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    ".if \\i <= \\last\n"
    ".ifc \\direction,load\n \\move \\offset+64*\\i(%rdi), %\\register\\i\n"
    ".else\n \\move %\\register\\i, \\offset+64*\\i(%rcx)\n .endif\n"
    ".endif\n"
    ".endr\n"
    ".endm\n"
    ".macro PROBE name, number, move, register, last\n"
    ".globl \\name\n.type \\name,@function\n"
    "\\name:\n"
    " push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    " push %rdi\n"
    " pushq 96(%rdi); popfq\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    " mov 128+8*\\i(%rdi), %rax\n"
    " mov %rax, -128+8*\\i(%rsp)\n"
    ".endr\n"
    " VECTORS \\move, 256, load, \\register, \\last\n"
    " mov 0(%rdi), %rbx; mov 8(%rdi), %rbp; mov 16(%rdi), %r12; mov 24(%rdi), %r13\n"
    " mov 32(%rdi), %r14; mov 40(%rdi), %r15; mov 56(%rdi), %rsi; mov 64(%rdi), %rdx\n"
    " mov 72(%rdi), %r10; mov 80(%rdi), %r8; mov 88(%rdi), %r9; mov 48(%rdi), %rdi\n"
    " mov $\\number, %eax\n"
    " syscall\n"
    " mov (%rsp), %rcx\n"
    " mov %rax, 2304+104(%rcx)\n"
    " mov %rbx, 2304+0(%rcx); mov %rbp, 2304+8(%rcx); mov %r12, 2304+16(%rcx); mov %r13, 2304+24(%rcx)\n"
    " mov %r14, 2304+32(%rcx); mov %r15, 2304+40(%rcx); mov %rdi, 2304+48(%rcx); mov %rsi, 2304+56(%rcx)\n"
    " mov %rdx, 2304+64(%rcx); mov %r10, 2304+72(%rcx); mov %r8, 2304+80(%rcx); mov %r9, 2304+88(%rcx)\n"
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
    " mov -128+8*\\i(%rsp), %rax\n"
    " mov %rax, 2304+128+8*\\i(%rcx)\n"
    ".endr\n"
    " pushfq; popq 2304+96(%rcx)\n"
    " cld\n"
    " VECTORS \\move, 2304+256, store, \\register, \\last\n"
    " pop %rdi\n"
    " pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    " ret\n"
    ".size \\name,.-\\name\n"
    ".endm\n"
    ".macro PROBES name, number\n"
    " PROBE \\name\\()_xmm, \\number, movdqu, xmm, 15\n"
    " PROBE \\name\\()_ymm, \\number, vmovdqu, ymm, 15\n"
    " PROBE \\name\\()_zmm, \\number, vmovdqu64, zmm, 31\n"
    ".endm\n"
    ".text\n"
    "PROBES probe_mmap, 9\n"
    "PROBES probe_mprotect, 10\n"
    "PROBES probe_munmap, 11\n"
    "PROBES probe_brk, 12\n"
    "PROBES probe_mremap, 25\n"
    "PROBES probe_madvise, 28\n"
    // And as data, to make code of at run time.
    ".data\n"
    "PROBES data_mmap, 9\n"
    "PROBES data_mprotect, 10\n"
    "PROBES data_munmap, 11\n"
    "PROBES data_brk, 12\n"
    "PROBES data_mremap, 25\n"
    "PROBES data_madvise, 28\n"
    ".text\n");

typedef void probe(struct state *);
#define DECLARE(name) extern probe name##_xmm, name##_ymm, name##_zmm;
DECLARE(probe_mmap)
DECLARE(probe_mprotect)
DECLARE(probe_munmap)
DECLARE(probe_brk)
DECLARE(probe_mremap)
DECLARE(probe_madvise)
DECLARE(data_mmap)
DECLARE(data_mprotect)
DECLARE(data_munmap)
DECLARE(data_brk)
DECLARE(data_mremap)
DECLARE(data_madvise)

enum { MMAP, MPROTECT, MUNMAP, BRK, MREMAP, MADVISE, CALLS };
static const char *const call_names[] = {"mmap", "mprotect", "munmap", "brk", "mremap", "madvise"};
#define ROW(name) {name##_xmm, name##_ymm, name##_zmm}
static probe *const probes[CALLS][3] = {
    ROW(probe_mmap), ROW(probe_mprotect), ROW(probe_munmap),
    ROW(probe_brk),  ROW(probe_mremap),   ROW(probe_madvise),
};
static probe *const data[CALLS][3] = {
    ROW(data_mmap), ROW(data_mprotect), ROW(data_munmap),
    ROW(data_brk),  ROW(data_mremap),   ROW(data_madvise),
};
static probe *made[CALLS][3];
static const int vector_words[3] = {2, 4, 8}, vector_count[3] = {16, 16, 32};
static int widest;

// Carry, parity, adjust, zero, sign, direction, overflow.
#define FLAGS 0xcd5UL

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void differ(int call, const char *what, int index, uint64_t in, uint64_t out)
{
    printf("%s changed %s %d: %016lx became %016lx\n", call_names[call], what, index, in, out);
    exit(1);
}

static long check(struct state *s, uint64_t *seed, int call, int width, long a, long b, long c, long d, long e,
                  long f)
{
    for (int i = 0; i < GPRS; i++)
        s->in.gpr[i] = next(seed);
    const long args[] = {a, b, c, d, e, f};
    for (int i = 0; i < 6; i++)
        s->in.gpr[RDI + i] = args[i];
    s->in.flags = 0x202 | (next(seed) & FLAGS);
    for (int i = 0; i < 16; i++)
        s->in.red[i] = next(seed);
    for (int i = 0; i < 32; i++)
        for (int k = 0; k < 8; k++)
            s->in.vector[i][k] = next(seed);
    (made[call][width] ? made : probes)[call][width](s);
    for (int i = 0; i < GPRS; i++)
        if (s->in.gpr[i] != s->out.gpr[i])
            differ(call, gpr_names[i], i, s->in.gpr[i], s->out.gpr[i]);
    if ((s->in.flags ^ s->out.flags) & FLAGS)
        differ(call, "flags", 0, s->in.flags, s->out.flags);
    for (int i = 0; i < 16; i++)
        if (s->in.red[i] != s->out.red[i])
            differ(call, "red zone word", i, s->in.red[i], s->out.red[i]);
    for (int i = 0; i < vector_count[width]; i++)
        for (int k = 0; k < vector_words[width]; k++)
            if (s->in.vector[i][k] != s->out.vector[i][k])
                differ(call, "vector register", i, s->in.vector[i][k], s->out.vector[i][k]);
    return s->out.rax;
}

static void expect(int call, long got, long wanted)
{
    if (got != wanted) {
        printf("%s returned %ld, not %ld\n", call_names[call], got, wanted);
        exit(1);
    }
}

static void *work(void *first_seed)
{
    static const int rounds = 4000;
    uint64_t seed = (uint64_t)first_seed;
    struct state *s = aligned_alloc(64, sizeof *s);
    for (int round = 0; round < rounds; round++) {
        int width = round % (widest + 1);
        long p = check(s, &seed, MMAP, width, 0, 16384, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p < 0 && p > -4096)
            expect(MMAP, p, 0);
        *(volatile char *)p = 1;
        expect(MMAP, check(s, &seed, MMAP, width, 0, 0, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), -22);
        expect(MMAP, check(s, &seed, MMAP, width, p + 8192, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
               p + 8192);
        expect(MPROTECT, check(s, &seed, MPROTECT, width, p, 4096, PROT_READ, 0, 0, 0), 0);
        expect(MPROTECT, check(s, &seed, MPROTECT, width, p + 1, 4096, PROT_READ, 0, 0, 0), -22);
        expect(MADVISE, check(s, &seed, MADVISE, width, p, 16384, MADV_DONTNEED, 0, 0, 0), 0);
        expect(MADVISE, check(s, &seed, MADVISE, width, p, 16384, 999, 0, 0, 0), -22);
        if (*(volatile char *)p != 0)
            expect(MADVISE, *(volatile char *)p, 0);
        expect(MREMAP, check(s, &seed, MREMAP, width, p, 16384, 12288, 0, 0, 0), p);
        expect(MREMAP, check(s, &seed, MREMAP, width, p + 1, 4096, 4096, 0, 0, 0), -22);
        expect(MUNMAP, check(s, &seed, MUNMAP, width, p, 16384, 0, 0, 0, 0), 0);
        expect(MUNMAP, check(s, &seed, MUNMAP, width, p + 1, 16384, 0, 0, 0, 0), -22);
        long end = check(s, &seed, BRK, width, 0, 0, 0, 0, 0, 0);
        if (!first_seed || end < 0)
            expect(BRK, end, 1);
        check(s, &seed, BRK, width, 1, 0, 0, 0, 0, 0);
    }
    free(s);
    return NULL;
}

// The same code in memory of no file.
static void make(void)
{
    enum { ROOM = 4096, CODE = 2048 };
    char *at = mmap(0, CALLS * 3 * ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        exit(1);
    for (int call = 0; call < CALLS; call++)
        for (int width = 0; width < 3; width++, at += ROOM)
            made[call][width] = memcpy(at, data[call][width], CODE);
    if (mprotect(made[0][0], CALLS * 3 * ROOM, PROT_READ | PROT_EXEC))
        exit(1);
}

int main(int argc, char **argv)
{
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
        unsigned low, high;
        asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if ((low & 6) == 6 && (c & bit_AVX))
            widest = 1;
        if (widest && (low & 0xe6) == 0xe6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX512F))
            widest = 2;
    }
    if (argc > 1 && !strcmp(argv[1], "made"))
        make();
    // Two threads, so that a register that is kept in one place for all of them shows.
    unsigned control = __builtin_ia32_stmxcsr();
    pthread_t other;
    if (pthread_create(&other, NULL, work, (void *)0x9e3779b97f4a7c15))
        return 1;
    work((void *)0x2545f4914f6cdd1d);
    pthread_join(other, NULL);
    if (control != __builtin_ia32_stmxcsr()) {
        puts("mxcsr changed");
        return 1;
    }
    puts("registers ok");
    return 0;
}
