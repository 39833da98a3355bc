/* mmu_notifier.h - be told before and after every change of this process's address space
 *
 * Link with -lmmu_notifier_capi. All functions may be called from any thread. Errors are negative errno values.
 * Addresses and lengths are in bytes. SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef MMU_NOTIFIER_H
#define MMU_NOTIFIER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Why a range changes: the kernel's enum mmu_notifier_event. */
enum mmu_notifier_event {
    MMU_NOTIFIER_UNMAP = 0,           /* the mapping goes away for good */
    MMU_NOTIFIER_CLEAR = 1,           /* the pages go or are replaced, the mapping stays */
    MMU_NOTIFIER_PROTECTION_VMA = 2,  /* the rights of the whole range change */
    MMU_NOTIFIER_PROTECTION_PAGE = 3, /* the rights of single pages change: fork, in the parent */
    MMU_NOTIFIER_SOFT_DIRTY = 4,      /* write tracking is reset */
    MMU_NOTIFIER_RELEASE = 5,         /* the address space goes: exec */
    MMU_NOTIFIER_MIGRATE = 6,         /* pages move to or from a device */
    MMU_NOTIFIER_EXCLUSIVE = 7        /* a device takes pages for itself */
};

/* A change: addresses from start up to and without end. */
struct mmu_notifier_change {
    size_t start;
    size_t end;
    int event;    /* enum mmu_notifier_event */
    int blocking; /* 1: the callback may wait; 0: it must not, not for a lock and not for memory */
};

/* Callbacks run on the thread that makes the change, inside its system call. With blocking 0 that is perhaps in a signal
 * handler, perhaps with the allocator's lock held: they must not allocate or free with malloc, nor wait for a lock that
 * a thread may hold while it allocates (they may try it). With blocking 1 the change comes from the program's own code,
 * or was put off and is made by a thread of ours: they may do all of that. In neither case may they jump out. The end of
 * a change comes where its start did. Memory calls of their own are announced to the others.
 *
 * If somebody refuses a change that must not wait, munmap is told that it is done, and done in the background as soon as
 * nobody minds; any other call is asked for again, ten times within a millisecond, and then fails with an error of its
 * manual page (fork with EAGAIN, mmap and mprotect with ENOMEM, madvise with EINVAL). */

/* Cannot refuse, and has an end for every start. */
struct mmu_notifier_ops {
    /* The range is about to change: nothing may be reached through you any more. Required. */
    void (*start)(const struct mmu_notifier_change *change, void *context);
    /* The change is done, or was called off. Required. */
    void (*end)(const struct mmu_notifier_change *change, void *context);
    /* The address space or the subscription goes; the last callback. May be NULL. */
    void (*release)(void *context);
};

/* May refuse a change that must not wait, and has no end. */
struct mmu_notifier_refuser_ops {
    /* The range is about to change, and there is time to wait. Required. */
    void (*start)(const struct mmu_notifier_change *change, void *context);
    /* The range is about to change, and there is none: 0, or -EAGAIN to refuse. Any other value is taken as 0.
     * Required. */
    int (*try_start)(const struct mmu_notifier_change *change, void *context);
    void (*release)(void *context);
};

struct mmu_notifier_subscription;

/* Rewrites the memory system calls of this process, so that its changes are announced. At start-up, best before there
 * are threads. 0 also if it was done before (by mmun run, say).
 * If another copy of this library, in C or Rust, has done it before, this one rewrites nothing and is told by that one:
 * subscribers here are told of the same changes, once, and may refuse them. Each copy is installed for itself.
 * -EACCES: /proc/self/maps cannot be read. -EBUSY: another copy is at work that cannot tell this one: it has another
 * version, or tells 16 others. -ENOMEM: no memory. -EOPNOTSUPP: valgrind runs this process, whose code cannot be
 * rewritten under it. */
int mmu_notifier_install(void);

/* The reverse: as many as there were of mmu_notifier_install. The last one switches the announcements off: no change
 * that begins when it has returned is told to anybody here, until mmu_notifier_install switches them on again, from when
 * none is missed. (To subscribers of the copy that does the work they go on while another copy wants them.) Subscriptions stay. Waits for announced changes that are not done: not inside a callback, and not while
 * holding a lock that a callback takes. Under mmun run announcements stay on. The object must not be unloaded: calls go
 * on to come by.
 * -ENODEV: not installed. */
int mmu_notifier_uninstall(void);

/* Tells ops of every change from now on; *subscription is for mmu_notifier_unsubscribe. size is sizeof(*ops).
 * Returns when no change is under way any more that ops was not told of. Allocates (not with malloc), may wait: so
 * not in a signal handler, and not in callbacks of two threads at a time, which would wait for each other.
 * The library that start lies in stays for good: dlclose does not unload it from then on. So whoever forgets to
 * unsubscribe is still told, and nobody jumps into nothing.
 * -EINVAL: a NULL argument, a wrong size, a required callback is missing. -ENODEV: not installed. */
int mmu_notifier_subscribe(const struct mmu_notifier_ops *ops, size_t size, void *context,
                           struct mmu_notifier_subscription **subscription);
int mmu_notifier_subscribe_refuser(const struct mmu_notifier_refuser_ops *ops, size_t size, void *context,
                                   struct mmu_notifier_subscription **subscription);

/* Ends a subscription. Waits for callbacks of other threads that are running; when it returns, none runs or will run.
 * Changes that are open have no end for it; release has been called instead. Inside a callback of its own it does not
 * wait for anybody: no further callback begins, but some may still run in other threads. Inside a callback of another
 * subscription it waits for other threads' callbacks, so two threads that do so would wait for each other.
 * Not while holding a lock that a callback takes. NULL is ignored; the same twice is not allowed.
 * In a forked child the parent's subscriptions may be given back, to no effect. */
void mmu_notifier_unsubscribe(struct mmu_notifier_subscription *subscription);

/* How many ranges are put off right now, and if bytes is not NULL, how many bytes: munmap was told that they are gone, and
 * they are not yet, as somebody has refused. */
size_t mmu_notifier_quarantined(size_t *bytes);

/* Announces a change that the program makes itself: start to all, then change(argument), then end to all. The range is
 * told as it is, not rounded to pages. Memory calls of change are announced for themselves. If change jumps out, the
 * end comes with a later change of the thread. Returns what change returns. With blocking 0 it may be refused: -EAGAIN, and change is not called.
 * -EINVAL: an empty range or one past the end of the address space, an unknown event, blocking not 0 or 1, no change.
 * -ENODEV: not installed. */
int mmu_notifier_invalidate(size_t start, size_t length, int event, int blocking, int (*change)(void *argument),
                            void *argument);

/* In a callback: the address of the system call instruction that makes the change; NULL: it is none of those that
 * mmu_notifier_install rewrote. May be called in any callback. */
const void *mmu_notifier_call_site(void);

/* Looks whether the system calls that mmu_notifier_install rewrote are as it left them, and tries, on memory of its own,
 * whether calls are announced before and after. Calls problem(text, address, context) for each problem: a sentence that
 * is valid during the call, and where; address is NULL for a call that is not announced. Returns how many problems there
 * were: 0 if all is well.
 * May be repeated at any time, but in no callback and no signal handler: reads files and allocates (not with malloc).
 * -ENODEV: not installed. -EACCES: /proc/self/maps cannot be read. */
int mmu_notifier_check(void (*problem)(const char *text, const void *address, void *context), void *context);

#ifdef __cplusplus
}
#endif
#endif
