/* The address space goes (exit) while another thread subscribes and unsubscribes: everybody who is on the list, or was
 * about to be, is told by `release` exactly once, by the one or the other; and nobody is on it afterwards.
 *
 * -DSHARES  instead, the other thread gives back two shares, which waits for nobody, and frees lists
 */
#define THREADS 2
#define SLOTS 2
#define OTHERS (5 * SLOTS)
#define LISTS 5
#define CURRENT OTHERS
#define GONE(s) (OTHERS + 1 + (s))
/* The address space has been released. */
#define RELEASED (OTHERS + 3)
/* Somebody is unsubscribing, and may be in a `release`. */
#define RELEASING (OTHERS + 4)
#define PLACES (OTHERS + 5)

bit claimed;            /* somebody calls release, or has: an exchange */
byte told;              /* how often release was called */
bit in_release;         /* it runs in who unsubscribes */
bit dropped;
byte finished;

#include "memory.h"
#include "record.h"
#include "lists.h"

#define EVERYBODY 3

proctype goes(byte me) {
    record_locals; list_locals; byte list; byte gone; bit is_on; byte other;
    store(RELEASED, 1);
    claim(Calling, EVERYTHING);
    load(list, CURRENT);
    walks(list);
    atomic { alive(list); is_on = has(list, 0) };
    if
    :: is_on ->
        load(gone, GONE(0));
        if
        :: !gone ->
            atomic { is_on = !claimed; claimed = 1 };
            if
            :: is_on -> assert(!dropped); told++; assert(!dropped)
            :: else
            fi
        :: else
        fi;
        store_release(GONE(0), 1)
    :: else
    fi;
#ifndef CLEARS_UNDER_OLD_RECORD
    /* On record with the list that was walked: a replacement must hold any list. */
    free_slot();
    claim(Editing, EVERYTHING);
#endif
    replace(EVERYBODY, 0);
    free_slot();
#ifndef WITHOUT_WAIT_FOR_RELEASE
    do
    :: load(other, RELEASING);
        if
        :: other == 0 -> break
        :: else -> memory[RELEASING] == 0
        fi
    od;
#endif
#ifndef SHARES
    /* Who began to unsubscribe before this found his list is done with his release. */
    assert(!in_release || gone == 0);
#endif
    finished++
}

inline unsubscribe() {
    atomic { buffer[me].count < ROOM; reserved[RELEASING] = 1; push(RELEASING, 1, 0) };
    store_release(GONE(0), 1);
    claim(Editing, EVERYTHING);
    replace(1, 0);
    free_slot();
    scan(0, calls(ph));
    atomic { is_on = !claimed; claimed = 1 };
    if
    :: is_on -> in_release = 1; told++; in_release = 0
    :: else
    fi;
    store_release(RELEASING, 0);
    dropped = 1;
    assert(told == 1);
    collect()
}

proctype comes(byte me) {
    record_locals; list_locals; bit is_on; byte released;
#ifdef SHARES
    store_release(GONE(0), 1);
    claim(Editing, EVERYTHING);
    replace(1, 0);
    free_slot();
    store_release(GONE(1), 1);
    claim(Editing, EVERYTHING);
    replace(2, 0);
    free_slot();
    collect();
#else
    claim(Editing, EVERYTHING);
    replace(0, 1);
    free_slot();
    scan(1, (is_change(ph) || ph == Ending) && li != new + 1);
    collect();
    /* A second look. */
#ifndef WITHOUT_SECOND_LOOK_FENCE
    fence();
#endif
    load(released, RELEASED);
    if
#ifndef WITHOUT_SECOND_LOOK
    :: released -> unsubscribe()
#endif
    :: else ->
        /* Subscribed. Stays until the address space has gone, or leaves. */
        if
        :: finished == 1 -> assert(told == 1)
        :: unsubscribe()
        fi
    fi;
#endif
    finished++
}

init {
    atomic {
#ifdef SHARES
        memory[CURRENT] = 1; lives[1] = 1; content[1] = EVERYBODY;
#endif
        run goes(0);
        run comes(1)
    };
    finished == 2 && buffer[0].count == 0 && buffer[1].count == 0;
    assert(content[memory[CURRENT]] == 0)
}
