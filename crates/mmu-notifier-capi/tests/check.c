/* Asks the hook about itself: well, with a function of the C library overwritten, and well again. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mmu_notifier.h"

static const void *site;

static void start(const struct mmu_notifier_change *change, void *context)
{
    if (change->start == (size_t)*(void **)context)
        site = mmu_notifier_call_site();
}

static void end(const struct mmu_notifier_change *change, void *context)
{
    (void)change, (void)context;
}

static void problem(const char *text, const void *address, void *context)
{
    /* The site, and what comes of it. */
    if (address == site && strstr(text, "munmap at /") == text)
        *(int *)context |= 1;
    else if (!address && !strcmp(text, "munmap is not announced"))
        *(int *)context |= 2;
    else
        *(int *)context |= 4;
}

static void check(int line, int good)
{
    if (!good) {
        printf("line %d\n", line);
        exit(1);
    }
}
#define CHECK(condition) check(__LINE__, condition)

int main(void)
{
    int seen = 0;
    CHECK(mmu_notifier_check(problem, &seen) == -19 && !mmu_notifier_call_site());
    CHECK(mmu_notifier_install() == 0);
    CHECK(mmu_notifier_check(problem, &seen) == 0 && seen == 0);

    struct mmu_notifier_ops ops = {start, end, NULL};
    struct mmu_notifier_subscription *subscription;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mmu_notifier_subscribe(&ops, sizeof ops, &page, &subscription) == 0);
    CHECK(munmap(page, 4096) == 0);
    mmu_notifier_unsubscribe(subscription);
    CHECK(site && (char *)site >= (char *)munmap && (char *)site < (char *)munmap + 64);
    CHECK(!mmu_notifier_call_site());

    /* mov $11, %eax; syscall; ret where nobody has looked, and a jump there: movabs $made, %r11; jmp *%r11. */
    unsigned char *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(made, "\xb8\x0b\0\0\0\x0f\x05\xc3", 8);
    unsigned char jump[13] = {0x49, 0xbb, [10] = 0x41, 0xff, 0xe3}, ours[13];
    memcpy(jump + 2, &made, 8);
    int memory = open("/proc/self/mem", O_RDWR);
    CHECK(pread(memory, ours, 13, (off_t)munmap) == 13 && pwrite(memory, jump, 13, (off_t)munmap) == 13);
    int problems = mmu_notifier_check(problem, &seen);
    CHECK(pwrite(memory, ours, 13, (off_t)munmap) == 13);
    CHECK(problems == 2 && seen == 3);
    CHECK(mmu_notifier_check(NULL, NULL) == 0);
    puts("check ok");
    return 0;
}
