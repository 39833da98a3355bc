/* One registration with the kernel, and one thing done to its memory: `mistakes ROW`. Afterwards a file full of 'B' is read
   into the buffer through the registration, and what the program then sees there is printed: B (right) or something else
   (lost). Every row is a function of its name, and so is what registers: the call stacks of --check must have them. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#define REGISTER_CLONE_BUFFERS 30
#define PAGE 4096UL
#define LEN (8 * PAGE)
#define ROW __attribute__((noinline)) static void

static void fail(const char *what) {
    perror(what);
    exit(99);
}

#define need(call) ({ __typeof__(call) r_ = (call); if ((long)r_ == -1) fail(#call); r_; })

/* As liburing has it: the number is part of the code. */
__attribute__((noinline)) static long ring_register(long fd, long op, void *arg, long nr) {
    long ret;
    register long r10 __asm__("r10") = nr;
    __asm__ volatile("mov $427, %%eax\n\tsyscall" : "=a"(ret) : "D"(fd), "S"(op), "d"(arg), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

__attribute__((noinline)) static long ring_enter(long fd, long submit, long wait, long flags) {
    long ret;
    register long r10 __asm__("r10") = flags;
    register long r8 __asm__("r8") = 0;
    register long r9 __asm__("r9") = 0;
    __asm__ volatile("mov $426, %%eax\n\tsyscall"
                     : "=a"(ret) : "D"(fd), "S"(submit), "d"(wait), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return ret;
}

struct ring {
    int fd;
    char *ring;
    struct io_uring_sqe *entries;
    struct io_uring_params parameters;
};

static struct ring ring;
static char *buffer;
static int file;

static struct ring open_ring(void) {
    struct ring r;
    memset(&r, 0, sizeof r);
    r.fd = need(syscall(SYS_io_uring_setup, 4, &r.parameters));
    size_t size = r.parameters.cq_off.cqes + r.parameters.cq_entries * sizeof(struct io_uring_cqe);
    r.ring = need(mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd, IORING_OFF_SQ_RING));
    r.entries = need(mmap(0, 4 * sizeof *r.entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r.fd, IORING_OFF_SQES));
    return r;
}

/* Reads the file to `at` by the registration `index`; the result of the operation. */
static int read_fixed(struct ring *r, int index, char *at) {
    unsigned *tail = (unsigned *)(r->ring + r->parameters.sq_off.tail);
    unsigned *array = (unsigned *)(r->ring + r->parameters.sq_off.array);
    unsigned mask = *(unsigned *)(r->ring + r->parameters.sq_off.ring_mask);
    unsigned *head = (unsigned *)(r->ring + r->parameters.cq_off.head);
    unsigned completions = *(unsigned *)(r->ring + r->parameters.cq_off.ring_mask);
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(r->ring + r->parameters.cq_off.cqes);
    struct io_uring_sqe *sqe = &r->entries[*tail & mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_READ_FIXED;
    sqe->fd = file;
    sqe->addr = (uintptr_t)at;
    sqe->len = LEN;
    sqe->buf_index = index;
    array[*tail & mask] = *tail & mask;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (ring_enter(r->fd, 1, 1, IORING_ENTER_GETEVENTS) != 1) fail("io_uring_enter");
    int result = cqes[*head & completions].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static char *anonymous(void) {
    char *at = need(mmap(0, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(at, 'A', LEN);
    return at;
}

static int memory_file;
static char *shared(void) {
    memory_file = need(memfd_create("mistakes", 0));
    need(ftruncate(memory_file, LEN));
    char *at = need(mmap(0, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memory_file, 0));
    memset(at, 'A', LEN);
    return at;
}

__attribute__((noinline)) static void register_buffer(char *at) {
    ring = open_ring();
    buffer = at;
    struct iovec vector = {at, LEN};
    if (ring_register(ring.fd, IORING_REGISTER_BUFFERS, &vector, 1) != 0) fail("IORING_REGISTER_BUFFERS");
    __asm__ volatile("");
}

/* Prints what the program sees after a read that has succeeded. */
static void show(void) {
    int result = read_fixed(&ring, 0, buffer);
    printf("%s %c\n", result == (int)LEN ? "read" : "failed", buffer[0] ? buffer[0] : '0');
}

static void *over_some(void *at, unsigned long len) {
    return need(mmap(at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
}
static void *over(void *at) { return over_some(at, LEN); }

/* Mistakes. */
ROW row_remap(void) {
    register_buffer(anonymous());
    need(munmap(buffer, LEN));
    memset(over(buffer), 'N', LEN);
    show();
}
ROW row_over(void) {
    register_buffer(anonymous());
    memset(over(buffer), 'N', LEN);
    show();
}
ROW row_over_part(void) {
    register_buffer(anonymous());
    over_some(buffer + PAGE, 2 * PAGE);
    memset(buffer + PAGE, 'N', 2 * PAGE);
    int result = read_fixed(&ring, 0, buffer);
    printf("%s %c%c\n", result == (int)LEN ? "read" : "failed", buffer[0], buffer[PAGE]);
}
ROW row_discard(void) {
    register_buffer(anonymous());
    need(madvise(buffer, LEN, MADV_DONTNEED));
    show();
}
ROW row_guard(void) {
    register_buffer(anonymous());
    if (madvise(buffer, LEN, MADV_GUARD_INSTALL) != 0) {
        puts("none");
        return;
    }
    need(madvise(buffer, LEN, MADV_GUARD_INSTALL + 1));
    show();
}
ROW row_away(void) {
    register_buffer(anonymous());
    need(mremap(buffer, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, buffer + (1 << 30)));
    memset(over(buffer), 'N', LEN);
    show();
}
ROW row_dontunmap(void) {
    register_buffer(anonymous());
    need(mremap(buffer, LEN, LEN, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
    show();
}
ROW row_onto(void) {
    register_buffer(anonymous());
    char *other = anonymous();
    memset(other, 'N', LEN);
    need(mremap(other, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, buffer));
    show();
}
ROW row_truncate(void) {
    register_buffer(shared());
    need(ftruncate(memory_file, 0));
    need(ftruncate(memory_file, LEN));
    show();
}
ROW row_punch(void) {
    register_buffer(shared());
    need(fallocate(memory_file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LEN));
    show();
}
ROW row_remove(void) {
    register_buffer(shared());
    need(madvise(buffer, LEN, MADV_REMOVE));
    show();
}
ROW row_shared_over(void) {
    register_buffer(shared());
    memset(over(buffer), 'N', LEN);
    show();
}
/* The heap gives the same address again. */
ROW row_heap(void) {
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    char *first = malloc(1 << 20);
    char *page = (char *)(((uintptr_t)first + 2 * PAGE) & ~(PAGE - 1));
    memset(page, 'A', LEN);
    register_buffer(page);
    free(first);
    char *second = malloc(1 << 20);
    if (second != first) exit(98);
    memset(second, 'N', 1 << 19);
    show();
}
ROW row_update(void) {
    ring = open_ring();
    buffer = anonymous();
    struct io_uring_rsrc_register sparse = {.nr = 4, .flags = 1};
    if (ring_register(ring.fd, IORING_REGISTER_BUFFERS2, &sparse, sizeof sparse) != 0) fail("IORING_REGISTER_BUFFERS2");
    struct iovec vector = {buffer, LEN};
    struct io_uring_rsrc_update2 update = {.offset = 2, .data = (uintptr_t)&vector, .nr = 1};
    if (ring_register(ring.fd, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update) != 1) fail("IORING_REGISTER_BUFFERS_UPDATE");
    memset(over(buffer), 'N', LEN);
    int result = read_fixed(&ring, 2, buffer);
    printf("%s %c\n", result == (int)LEN ? "read" : "failed", buffer[0]);
}
/* Taken out of one ring, but another has a copy of the table. */
ROW row_clone(void) {
    register_buffer(anonymous());
    struct ring second = open_ring();
    unsigned clone[8] = {ring.fd};
    if (ring_register(second.fd, REGISTER_CLONE_BUFFERS, clone, 1) != 0) {
        puts("none");
        return;
    }
    if (ring_register(ring.fd, IORING_UNREGISTER_BUFFERS, 0, 0) != 0) fail("IORING_UNREGISTER_BUFFERS");
    memset(over(buffer), 'N', LEN);
    int result = read_fixed(&second, 0, buffer);
    printf("%s %c\n", result == (int)LEN ? "read" : "failed", buffer[0]);
}
/* By the index that this thread has given the ring; 0: this kernel cannot. */
__attribute__((noinline)) static int register_by_index(void) {
    ring = open_ring();
    buffer = anonymous();
    struct io_uring_rsrc_update what = {.offset = -1U, .data = ring.fd};
    struct iovec vector = {buffer, LEN};
    return ring_register(ring.fd, IORING_REGISTER_RING_FDS, &what, 1) == 1 &&
           ring_register(what.offset, IORING_REGISTER_BUFFERS | 1L << 31, &vector, 1) == 0;
}
ROW row_index(void) {
    if (!register_by_index()) {
        puts("none");
        return;
    }
    memset(over(buffer), 'N', LEN);
    show();
}
static void *discard(void *unused) {
    (void)unused;
    need(madvise(buffer, LEN, MADV_DONTNEED));
    return 0;
}
ROW row_thread(void) {
    register_buffer(anonymous());
    pthread_t thread;
    pthread_create(&thread, 0, discard, 0);
    pthread_join(thread, 0);
    show();
}
__attribute__((noinline)) static void discard_now(void) {
    need(madvise(buffer, LEN, MADV_DONTNEED));
    __asm__ volatile("");
}
static void on_signal(int number) {
    (void)number;
    discard_now();
}
ROW row_signal(void) {
    register_buffer(anonymous());
    signal(SIGUSR1, on_signal);
    raise(SIGUSR1);
    show();
}
/* Called by code that no file describes, but that keeps a frame pointer: push rbp; mov rbp, rsp; call rdi; pop rbp; ret */
ROW row_jit(void) {
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
    register_buffer(anonymous());
    char *at = need(mmap(0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memcpy(at, code, sizeof code);
    ((void (*)(void (*)(void)))(void *)at)(discard_now);
    show();
}
__attribute__((noinline)) static void use_in_child(void) {
    show();
    fflush(stdout);
    _exit(0);
}
ROW row_child(void) {
    register_buffer(anonymous());
    if (need(fork()) == 0) use_in_child();
    int status;
    wait(&status);
}
ROW row_buffer_ring(void) {
    ring = open_ring();
    buffer = anonymous();
    memset(buffer, 0, LEN);
    struct io_uring_buf_reg what = {.ring_addr = (uintptr_t)buffer, .ring_entries = 512, .bgid = 7};
    if (ring_register(ring.fd, IORING_REGISTER_PBUF_RING, &what, 1) != 0) fail("IORING_REGISTER_PBUF_RING");
    over(buffer);
    puts("none");
}
ROW row_protect(void) {
    register_buffer(anonymous());
    need(mprotect(buffer, LEN, PROT_READ));
    show();
}
ROW row_forgotten(void) {
    register_buffer(anonymous());
    need(munmap(buffer, LEN));
    puts("none");
}
ROW row_detach(void) {
    int id = need(shmget(IPC_PRIVATE, LEN, 0600 | IPC_CREAT));
    char *at = need(shmat(id, 0, 0));
    shmctl(id, IPC_RMID, 0);
    memset(at, 'A', LEN);
    register_buffer(at);
    need(shmdt(at));
    puts("none");
}

static void set_memslot(int machine, char *at, unsigned long len) {
    struct kvm_userspace_memory_region slot = {.slot = 1, .memory_size = len, .userspace_addr = (uintptr_t)at};
    need(ioctl(machine, KVM_SET_USER_MEMORY_REGION, &slot));
}
static int open_machine(void) {
    int kvm = need(open("/dev/kvm", O_RDWR));
    return need(ioctl(kvm, KVM_CREATE_VM, 0));
}
ROW row_memslot(void) {
    char *at = anonymous();
    set_memslot(open_machine(), at, LEN);
    need(munmap(at, LEN));
    puts("none");
}
ROW row_lock(void) {
    char *at = anonymous();
    need(mlock(at, LEN));
    over_some(at + PAGE, PAGE);
    puts("none");
}

/* Nothing wrong. */
ROW row_nothing(void) {
    register_buffer(anonymous());
    show();
}
ROW row_lazy(void) {
    register_buffer(anonymous());
    need(madvise(buffer, LEN, MADV_FREE));
    madvise(buffer, LEN, MADV_PAGEOUT);
    show();
}
ROW row_shared_discard(void) {
    register_buffer(shared());
    need(madvise(buffer, LEN, MADV_DONTNEED));
    show();
}
ROW row_shared_again(void) {
    register_buffer(shared());
    need(mmap(buffer, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory_file, 0));
    show();
}
ROW row_fork(void) {
    register_buffer(anonymous());
    if (need(fork()) == 0) {
        memset(buffer, 'C', LEN);
        need(munmap(buffer, LEN));
        _exit(0);
    }
    int status;
    wait(&status);
    memset(buffer, 'P', LEN);
    show();
}
ROW row_writable(void) {
    register_buffer(anonymous());
    need(mprotect(buffer, LEN, PROT_READ | PROT_WRITE | PROT_EXEC));
    show();
}
ROW row_neighbour(void) {
    register_buffer(anonymous());
    char *other = anonymous();
    need(munmap(other, LEN));
    other = anonymous();
    need(madvise(other, LEN, MADV_DONTNEED));
    show();
}
ROW row_unregister(void) {
    register_buffer(anonymous());
    show();
    if (ring_register(ring.fd, IORING_UNREGISTER_BUFFERS, 0, 0) != 0) fail("IORING_UNREGISTER_BUFFERS");
    memset(over(buffer), 'N', LEN);
}
/* Registered by an index, and taken back by the descriptor. */
ROW row_index_unregister(void) {
    if (!register_by_index()) {
        puts("none");
        return;
    }
    show();
    if (ring_register(ring.fd, IORING_UNREGISTER_BUFFERS, 0, 0) != 0) fail("IORING_UNREGISTER_BUFFERS");
    memset(over(buffer), 'N', LEN);
}
ROW row_take_out(void) {
    register_buffer(anonymous());
    show();
    struct iovec none = {0, 0};
    struct io_uring_rsrc_update2 update = {.offset = 0, .data = (uintptr_t)&none, .nr = 1};
    if (ring_register(ring.fd, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update) != 1) fail("IORING_REGISTER_BUFFERS_UPDATE");
    memset(over(buffer), 'N', LEN);
}
ROW row_close(void) {
    register_buffer(anonymous());
    show();
    need(close(ring.fd));
    memset(over(buffer), 'N', LEN);
}
/* The descriptor is soon another ring's. */
ROW row_close_and_open(void) {
    register_buffer(anonymous());
    show();
    int before = ring.fd;
    need(close(ring.fd));
    char *old = buffer;
    register_buffer(anonymous());
    if (ring.fd != before) exit(98);
    memset(over(old), 'N', LEN);
}
ROW row_memslot_deleted(void) {
    char *at = anonymous();
    int machine = open_machine();
    set_memslot(machine, at, LEN);
    need(madvise(at, LEN, MADV_DONTNEED));
    over(at);
    set_memslot(machine, at, 0);
    need(munmap(at, LEN));
    puts("none");
}
ROW row_machine_closed(void) {
    char *at = anonymous();
    int machine = open_machine();
    set_memslot(machine, at, LEN);
    need(close(machine));
    need(munmap(at, LEN));
    puts("none");
}
ROW row_lock_freed(void) {
    char *at = anonymous();
    need(mlock(at, LEN));
    need(munmap(at + PAGE, PAGE));
    over_some(at + PAGE, PAGE);
    need(munlock(at, LEN));
    over(at);
    puts("none");
}

/* Not clean, but nothing came of it: a note. */
ROW row_late(void) {
    register_buffer(anonymous());
    show();
    for (unsigned long page = 0; page < LEN; page += PAGE) need(munmap(buffer + page, PAGE));
    if (ring_register(ring.fd, IORING_UNREGISTER_BUFFERS, 0, 0) != 0) fail("IORING_UNREGISTER_BUFFERS");
}
ROW row_late_close(void) {
    register_buffer(anonymous());
    show();
    need(munmap(buffer, LEN));
    need(close(ring.fd));
}
/* The same mistake from the same place. */
ROW row_often(void) {
    for (int round = 0; round < 50; round++) {
        register_buffer(anonymous());
        memset(over(buffer), 'N', LEN);
        need(munmap(ring.entries, 4 * sizeof *ring.entries));
        need(close(ring.fd));
    }
    puts("none");
}
/* It ends by a signal: what was found counts all the same. */
ROW row_killed(void) {
    row_over();
    fflush(stdout);
    signal(SIGTERM, SIG_DFL);
    raise(SIGTERM);
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } rows[] = {
#define R(name) {#name, row_##name}
        R(remap), R(over), R(over_part), R(discard), R(guard), R(away), R(dontunmap), R(onto), R(truncate), R(punch),
        R(remove), R(shared_over), R(heap), R(update), R(clone), R(index), R(thread), R(signal), R(jit), R(child), R(buffer_ring), R(protect),
        R(forgotten), R(detach), R(memslot), R(lock), R(nothing), R(lazy), R(shared_discard), R(shared_again), R(fork),
        R(writable), R(neighbour), R(unregister), R(index_unregister), R(take_out), R(close), R(close_and_open), R(memslot_deleted),
        R(machine_closed), R(lock_freed), R(late), R(late_close), R(often), R(killed),
    };
    file = need(open(argc > 2 ? argv[2] : "file", O_RDONLY));
    for (unsigned nth = 0; argc > 1 && nth < sizeof rows / sizeof *rows; nth++)
        if (strcmp(rows[nth].name, argv[1]) == 0) {
            rows[nth].run();
            return 7;
        }
    fprintf(stderr, "which row?\n");
    return 97;
}
