// Starts a program in every way there is: `starts PROGRAM ..`; or tries to, in every way that fails: `starts fail PROGRAM`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *program, *name, **words;
static int file, folder;

static void with_execve(void) { execve(program, words, environ); }
static void without_environment(void) { syscall(SYS_execve, program, words, NULL); }
static void from_its_folder(void) { syscall(SYS_execveat, folder, name, words, environ, 0); }
static void by_descriptor(void) { syscall(SYS_execveat, file, "", words, environ, AT_EMPTY_PATH); }
static void by_closing_descriptor(void)
{
    int closing = open(program, O_RDONLY | O_CLOEXEC);
    syscall(SYS_execveat, closing, "", words, environ, AT_EMPTY_PATH);
}
static void by_path_descriptor(void)
{
    int path = open(program, O_PATH | O_CLOEXEC);
    syscall(SYS_execveat, path, "", words, environ, AT_EMPTY_PATH);
}
static void by_link(void)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    execve(link, words, environ);
}
static void relative(void)
{
    if (!chdir(dirname(strdup(program))))
        execve(name, words, environ);
}
static void with_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    // Waits for the new program, which does not get to see it.
    raise(SIGUSR1);
    execve(program, words, environ);
}
static void with_few_files(void)
{
    struct rlimit limit = {12, 12};
    setrlimit(RLIMIT_NOFILE, &limit);
    execve(program, words, environ);
}
static void with_many_variables(void)
{
    static char *many[3001];
    for (int i = 0; i < 3000; i++)
        many[i] = "";
    execve(program, words, many);
}
static void *in_thread(void *unused)
{
    (void)unused;
    execve(program, words, environ);
    return NULL;
}
static void by_thread(void)
{
    pthread_t thread;
    if (!pthread_create(&thread, NULL, in_thread, NULL))
        pthread_join(thread, NULL);
}

static const struct {
    const char *name;
    void (*exec)(void);
} ways[] = {
    {"execve", with_execve},
    {"no environment", without_environment},
    {"from its folder", from_its_folder},
    {"descriptor", by_descriptor},
    {"closing descriptor", by_closing_descriptor},
    {"path descriptor", by_path_descriptor},
    {"link", by_link},
    {"relative", relative},
    {"signals", with_signals},
    {"few files", with_few_files},
    {"many variables", with_many_variables},
    {"thread", by_thread},
};

static int stopped;

static void end(const char *way, pid_t child)
{
    int status = 0;
    if (child <= 0 || waitpid(child, &status, WUNTRACED) != child)
        exit(2);
    if (WIFSTOPPED(status))
        stopped++;
    printf("%s: %s %d\n", way, WIFEXITED(status) ? "exit" : "signal",
           WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    fflush(stdout);
    // Nobody else's child has become this one's.
    if (waitpid(-1, &status, WNOHANG) != -1 || errno != ECHILD)
        exit(3);
}

static __attribute__((noinline)) pid_t vforked(void)
{
    pid_t child = vfork();
    if (!child) {
        execve(program, words, environ);
        _exit(98);
    }
    return child;
}

static void succeed(void)
{
    file = open(program, O_RDONLY);
    folder = open(dirname(strdup(program)), O_RDONLY | O_DIRECTORY);
    name = basename(program);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        printf("%s\n", ways[i].name);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            ways[i].exec();
            perror(ways[i].name);
            _exit(97);
        }
        end(ways[i].name, child);
    }
    end("vfork", vforked());
    pid_t child = -1;
    if (posix_spawn(&child, program, NULL, NULL, words, environ))
        exit(4);
    end("posix_spawn", child);
    if (stopped)
        exit(5);
}

static void try(const char *what, const char *path, char **arguments, char **environment)
{
    errno = 0;
    execve(path, arguments, environment);
    printf("%s: %s\n", what, strerrorname_np(errno));
    fflush(stdout);
    errno = 0;
    pid_t child = vfork();
    if (!child) {
        execve(path, arguments, environment);
        _exit(errno);
    }
    end(what, child);
    child = -1;
    int error = posix_spawn(&child, path, NULL, NULL, arguments, environment);
    printf("%s, posix_spawn: %d\n", what, error);
}

static void write_file(const char *path, const char *text, size_t length, int mode)
{
    int out = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (out < 0 || write(out, text, length) != (ssize_t)length || close(out) || chmod(path, mode))
        exit(6);
}

static void fail(void)
{
    static char bytes[1 << 20];
    int in = open(program, O_RDONLY);
    ssize_t length = read(in, bytes, sizeof bytes);
    close(in);
    try("nothing", "/nowhere/at/all", words, environ);
    write_file("forbidden", bytes, length, 0600);
    try("not executable", "./forbidden", words, environ);
    write_file("cut", bytes, 50, 0700);
    try("cut short", "./cut", words, environ);
    memcpy(bytes + 18, "\0\0", 2);
    write_file("foreign", bytes, length, 0700);
    try("another machine", "./foreign", words, environ);
    try("folder", ".", words, environ);
    mkfifo("pipe", 0700);
    try("pipe", "./pipe", words, environ);
    symlink("loop", "loop");
    try("loop", "./loop", words, environ);
    char script[4200];
    int size = snprintf(script, sizeof script, "#!/nowhere/at/all\n");
    write_file("nobody", script, size, 0700);
    try("no interpreter", "./nobody", words, environ);
    size = snprintf(script, sizeof script, "#! %s/forbidden\n", getcwd(bytes, 4096));
    write_file("script", script, size, 0700);
    try("forbidden interpreter", "./script", words, environ);

    static char *many[400], large[100000];
    memset(large, 'x', sizeof large - 1);
    for (int i = 0; i < 399; i++)
        many[i] = large;
    try("too long", program, many, environ);
    try("too many variables", program, words, many);
    syscall(SYS_execve, program, 8, environ);
    printf("arguments nowhere: %s\n", strerrorname_np(errno));
    syscall(SYS_execve, program, words, 8);
    printf("environment nowhere: %s\n", strerrorname_np(errno));
    syscall(SYS_execve, 8, words, environ);
    printf("path nowhere: %s\n", strerrorname_np(errno));

    // A script on a descriptor that is closed has nothing that its interpreter could open.
    size = snprintf(script, sizeof script, "#!%s\n", program);
    write_file("closing", script, size, 0700);
    int closing = open("closing", O_RDONLY | O_CLOEXEC);
    syscall(SYS_execveat, closing, "", words, environ, AT_EMPTY_PATH);
    printf("closing script: %s\n", strerrorname_np(errno));
    symlink(program, "link");
    syscall(SYS_execveat, AT_FDCWD, "link", words, environ, AT_SYMLINK_NOFOLLOW);
    printf("link not to be followed: %s\n", strerrorname_np(errno));
    syscall(SYS_execveat, 99, "", words, environ, AT_EMPTY_PATH);
    printf("no descriptor: %s\n", strerrorname_np(errno));
    syscall(SYS_execveat, AT_FDCWD, program, words, environ, 0x40000000);
    printf("unknown flag: %s\n", strerrorname_np(errno));
    // Last, as it is the program itself.
    int busy = open(program, O_WRONLY);
    try("busy", program, words, environ);
    close(busy);
}

int main(int argc, char **argv)
{
    int failing = argc > 2 && !strcmp(argv[1], "fail");
    program = argv[1 + failing];
    words = argv + 1 + failing;
    if (argc < 2)
        return 2;
    if (failing)
        fail();
    else
        succeed();
    puts("starts ok");
    return 0;
}
