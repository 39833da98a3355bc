/* A program that handles, ignores, blocks and sends SIGSYS, and makes system calls by itself where it is blocked. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("line %d: %s (errno %d)\n", __LINE__, #what, errno); fflush(stdout); _exit(1); } } while (0)

static const unsigned char code[] = {
    0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0x48, 0x89, 0xca, 0x4d, 0x89,
    0xc2, 0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05, 0xc3,
};
static long (*call)(long, ...);

/* By code that is not rewritten: one munmap. */
static void unmap_one(void)
{
    void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    CHECK(call(SYS_munmap, (long)at, 4096L, 0L, 0L, 0L, 0L) == 0);
}

static volatile int handled, signal_code;

static void count(int number) { (void)number; handled++; }

static void count_info(int number, siginfo_t *info, void *context)
{
    (void)context;
    CHECK(number == SIGSYS && info->si_signo == SIGSYS);
    signal_code = info->si_code;
    unmap_one();
    handled++;
}

static void own_handler(void)
{
    struct sigaction old, new = { .sa_sigaction = count_info, .sa_flags = SA_SIGINFO };
    sigfillset(&new.sa_mask);
    CHECK(!sigaction(SIGSYS, 0, &old) && old.sa_handler == SIG_DFL);
    CHECK(!sigaction(SIGSYS, &new, &old) && old.sa_handler == SIG_DFL);
    CHECK(!sigaction(SIGSYS, 0, &old) && old.sa_sigaction == count_info && (old.sa_flags & SA_SIGINFO));
    handled = 0;
    for (int i = 0; i < 10; i++) {
        raise(SIGSYS);
        unmap_one();
    }
    CHECK(handled == 10 && signal_code == SI_TKILL);
    union sigval value = { .sival_int = 7 };
    CHECK(!sigqueue(getpid(), SIGSYS, value) && handled == 11 && signal_code == SI_QUEUE);
    CHECK(syscall(SYS_rt_sigaction, SIGSYS, (void *)8, 0, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_rt_sigaction, SIGSYS, 0, (void *)8, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_rt_sigaction, SIGSYS, 0, 0, 4) == -1 && errno == EINVAL);
    struct sigaction once = { .sa_handler = count, .sa_flags = SA_RESETHAND };
    CHECK(!sigaction(SIGSYS, &once, 0));
    raise(SIGSYS);
    CHECK(handled == 12 && !sigaction(SIGSYS, 0, &old) && old.sa_handler == SIG_DFL);
    signal(SIGSYS, SIG_IGN);
    raise(SIGSYS);
    unmap_one();
    signal(SIGSYS, SIG_DFL);
}

static void deaths(void)
{
    for (int how = 0; how < 2; how++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
            unmap_one();
            if (how == 0)
                raise(SIGSYS);
            else
                kill(getpid(), SIGSYS);
            pause();
            _exit(1);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    }
}

static void masks(void)
{
    sigset_t all, old;
    sigfillset(&all);
    CHECK(!sigprocmask(SIG_BLOCK, &all, 0));
    unmap_one();
    CHECK(!sigprocmask(SIG_SETMASK, &all, &old));
    unmap_one();
    CHECK(sigismember(&old, SIGUSR1) && sigismember(&old, SIGTERM));
    CHECK(call(SYS_rt_sigprocmask, (long)SIG_SETMASK, (long)&all, 0L, 8L, 0L, 0L) == 0);
    unmap_one();
    CHECK(!sigprocmask(SIG_UNBLOCK, &all, 0));
    CHECK(call(SYS_rt_sigprocmask, (long)SIG_SETMASK, 8L, 0L, 8L, 0L, 0L) == -EFAULT);
    CHECK(call(SYS_rt_sigprocmask, 77L, (long)&all, 0L, 8L, 0L, 0L) == -EINVAL);
    CHECK(call(SYS_rt_sigprocmask, (long)SIG_BLOCK, (long)&all, 0L, 4L, 0L, 0L) == -EINVAL);
    CHECK(!sigprocmask(SIG_SETMASK, 0, &old) && !sigismember(&old, SIGUSR1));
}

static void in_handler(int number)
{
    (void)number;
    for (int i = 0; i < 5; i++)
        unmap_one();
    handled++;
}

/* A handler that blocks everything, on a stack of its own and while calls wait with everything else blocked. */
static void handlers(void)
{
    struct sigaction action = { .sa_handler = in_handler, .sa_flags = SA_ONSTACK };
    stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
    CHECK(!sigaltstack(&stack, 0));
    sigfillset(&action.sa_mask);
    CHECK(!sigaction(SIGUSR1, &action, 0));
    raise(SIGUSR1);
    CHECK(handled == 1);
    sigset_t usr1, most;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigfillset(&most);
    sigdelset(&most, SIGUSR1);
    struct timespec second = { 100, 0 };
    int ep = epoll_create1(0);
    struct epoll_event event;
    for (int i = 0; i < 5; i++) {
        CHECK(!sigprocmask(SIG_BLOCK, &usr1, 0));
        raise(SIGUSR1);
        CHECK(handled == i + 1);
        errno = 0;
        switch (i) {
        case 0: CHECK(sigsuspend(&most) == -1); break;
        case 1: CHECK(ppoll(0, 0, &second, &most) == -1); break;
        case 2: CHECK(pselect(0, 0, 0, 0, &second, &most) == -1); break;
        case 3: CHECK(epoll_pwait(ep, &event, 1, 100000, &most) == -1); break;
        case 4: CHECK(syscall(SYS_epoll_pwait2, ep, &event, 1, &second, &most, 8) == -1); break;
        }
        CHECK(errno == EINTR && handled == i + 2);
        CHECK(sigismember(&most, SIGSYS) && !sigismember(&most, SIGUSR1));
        CHECK(!sigprocmask(SIG_UNBLOCK, &usr1, 0));
    }
    stack.ss_flags = SS_DISABLE;
    CHECK(!sigaltstack(&stack, 0));
}

/* A handler that changes the mask that it returns to. */
static void block_all_after(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    sigfillset(&((ucontext_t *)context)->uc_sigmask);
}

static void returns(void)
{
    struct sigaction action = { .sa_sigaction = block_all_after, .sa_flags = SA_SIGINFO };
    CHECK(!sigaction(SIGUSR2, &action, 0));
    raise(SIGUSR2);
    unmap_one();
    sigset_t old;
    CHECK(!sigprocmask(SIG_SETMASK, 0, &old) && sigismember(&old, SIGUSR1));
    sigemptyset(&old);
    CHECK(!sigprocmask(SIG_SETMASK, &old, 0));
}

static sigjmp_buf jump;
static volatile int jumped;

static void leave(int number)
{
    (void)number;
    jumped++;
    siglongjmp(jump, 1);
}

/* Out of a handler that interrupts such calls, again and again. */
static void jumps(void)
{
    struct sigaction action = { .sa_handler = leave };
    sigfillset(&action.sa_mask);
    CHECK(!sigaction(SIGPROF, &action, 0));
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGPROF };
    CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec each = { { 0, 300000 }, { 0, 300000 } }, never = { { 0, 0 }, { 0, 0 } };
    CHECK(!timer_settime(timer, 0, &each, 0));
    sigsetjmp(jump, 1);
    while (jumped < 200)
        unmap_one();
    CHECK(!timer_settime(timer, 0, &never, 0));
    signal(SIGPROF, SIG_IGN);
}

static void *on_little_stack(void *unused)
{
    (void)unused;
    for (int i = 0; i < 100; i++)
        unmap_one();
    return 0;
}

static void little_stack(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    CHECK(!pthread_attr_setstacksize(&attributes, 16384));
    CHECK(!pthread_create(&thread, &attributes, on_little_stack, 0));
    pthread_join(thread, 0);
}

/* A filter whose traps are answered by a handler of the program's, as sandboxes do. */
static void answer(int number, siginfo_t *info, void *context)
{
    (void)number;
    CHECK(info->si_code == 1 /* SYS_SECCOMP */ && info->si_syscall == SYS_getppid);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 4711;
    unmap_one();
}

static void filter(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        struct sigaction action = { .sa_sigaction = answer, .sa_flags = SA_SIGINFO };
        CHECK(!sigaction(SIGSYS, &action, 0));
        struct sock_filter lines[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = { 4, lines };
        CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
        CHECK(getppid() == 4711);
        CHECK(call(SYS_getppid, 0L, 0L, 0L, 0L, 0L, 0L) == 4711);
        signal(SIGSYS, SIG_IGN);
        getppid(); /* ends the process, ignored or not */
        _exit(1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

int main(void)
{
    unsigned char *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memcpy(at, code, sizeof code);
    CHECK(!mprotect(at, 4096, PROT_READ | PROT_EXEC));
    call = (long (*)(long, ...))at;
    own_handler();
    handled = 0;
    deaths();
    masks();
    handlers();
    returns();
    jumps();
    little_stack();
    filter();
    printf("sigsys ok\n");
    return 0;
}
