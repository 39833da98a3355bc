/* Intervals: a thread changes pages, which may be those of an interval or others, while the interval is inserted, read,
 * its mirror filled, torn down, and the interval removed and freed, and the trees that were replaced are freed.
 *
 * G2  a refusal leaves nothing: no reader waits for ever
 * G5  no callback after the removal has returned; no tree is used after it was freed
 * G7  what is in the mirror is the page of today, and there is nothing in it while the page changes
 * G8  readers and removers wait for overlapping changes only
 *
 * -DFAR    all changes are of other pages and wait until the reader is done
 * -DNEAR   a change of the interval's pages waits until the interval is removed; nobody reads
 * -DNOBODY the first change may find nobody to tell, and then does not put its range on record
 * -DLAZY   nobody frees trees after the insertion, which is a fence less
 */
#define THREADS 2
#define SLOTS 2
#define OTHERS (5 * SLOTS)
#define TREES 5
#define ROOT OTHERS
/* The era: counts the exchanges of the root. */
#define CLOCK (OTHERS + 1)
#define SEQUENCE (OTHERS + 2)
#define GONE (OTHERS + 3)
/* The subscriber's lock, and what it guards: 0, or the version of the page + 1. */
#define LOCK (OTHERS + 4)
#define MIRROR (OTHERS + 5)
#define PLACES (OTHERS + 6)
#define arrival(where, what) \
    ((where != MIRROR || what == 0 || (what == page + 1 && !changes_pages)) && (where != SEQUENCE || !freed))

#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef TRIES
#define TRIES 2
#endif

/* Pages of the interval, and others. */
#define ITS 1
#define OTHER 2

byte page;              /* the version of the interval's page */
bit changes_pages;      /* the interval's page is changing */
bit freed;              /* the interval's memory is free */
bit finished;

/* Trees: 0 is the empty one; `has_it`: the interval is in it. `since`: the era in which it was replaced, + 1. */
bit has_it[TREES];
bit lives[TREES];
byte since[TREES];

#include "memory.h"
#include "record.h"

/* Somebody could take the lock and use what is in the mirror. (The zap itself may be on its way still, but then so is
 * the unlock behind it: who looks without the lock needs a fence of his own.) */
#define usable (memory[MIRROR] != 0 && memory[LOCK] == 0)

#define alive(tree) assert((tree) == 0 || lives[tree])

/* A mutex: taking it acquires, giving it back releases, and neither is a full fence. */
inline lock() { atomic { memory[LOCK] == 0 && !reserved[LOCK] -> memory[LOCK] = 1 } }
inline unlock() { store_release(LOCK, 0) }

/* The era goes on record before the root is loaded, and before the list: who has a list on record and no era walks no
 * tree. */
inline enter() {
    load(era, CLOCK);
    store_release(ERA(slot), era)
}

inline find_tree(found) {
#ifdef ERA_AFTER_ROOT
    load(found, ROOT);
    enter()
#else
    enter();
    load(found, ROOT)
#endif
}

inline raise_sequence() {
    atomic {
        buffer[me].count < ROOM;
        assert(!freed);
        push(SEQUENCE, memory[SEQUENCE] + 1, 0)
    }
}

inline invalidate() {
#ifndef STALE_AFTER_CALLBACK
    raise_sequence();
#endif
    if
    :: lock(); store(MIRROR, 0); assert(!freed); unlock()
    /* Must not wait, and somebody has the lock. */
    :: memory[LOCK] != 0 -> refused = 1
    fi;
#ifdef STALE_AFTER_CALLBACK
    raise_sequence();
#endif
    assert(!freed)
}

proctype changer(byte me) {
    record_locals; byte era; byte tree; byte pages; byte gone; bit is_in; bit refused; byte round;
    do
    :: round < CHANGES ->
        if
#ifndef FAR
        :: pages = ITS
#endif
#ifndef NEAR
        :: pages = OTHER
#endif
        fi;
        claim(Starting, pages);
        load(tree, ROOT);
        if
        :: tree == 0 ->
            /* Nobody to tell: the range is not on record either. */
            skip
        :: else ->
#ifdef ERA_AFTER_ROOT
            load(tree, ROOT);
            enter();
            walks(0);
#else
#ifdef ERA_AFTER_LIST
            walks(0);
            enter();
#else
            enter();
            walks(0);
#endif
            load(tree, ROOT);
#endif
            atomic { alive(tree); is_in = has_it[tree] && pages == ITS }
        fi;
#ifdef ERA_UNTIL_WALK
        store_release(ERA(slot), 0);
#endif
        if
        :: is_in ->
            load(gone, GONE);
            if
            :: !gone -> invalidate()
            :: else
            fi
        :: else
        fi;
        if
        :: era != 0 -> atomic { alive(tree); era = 0 }; store_release(ERA(slot), 0)
        :: else
        fi;
        if
        :: refused ->
            ending()
        :: else ->
            changing();
            if
            :: pages == ITS -> atomic { changes_pages = 1; assert(!usable) }
            :: else
            fi;
#ifdef FAR
            finished == 1;
#endif
#ifdef NEAR
            finished == 1;
#endif
            if
            :: pages == ITS -> atomic { assert(!usable); changes_pages = 0; page++ }
            :: else
            fi;
            finish()
        fi;
        atomic { pages = 0; gone = 0; is_in = 0; refused = 0; tree = 0; era = 0 };
        free_slot();
        round++
    :: else -> break
    od
}

inline exchange_root(with) {
    find_tree(old);
    atomic {
        alive(old);
        new = 1;
        do :: lives[new] -> new++ :: else -> break od;
        assert(new < TREES);
        lives[new] = 1; has_it[new] = with
    };
    /* Nobody else edits here: subscribe.pml has two who do. */
    store_release(ROOT, new);
    /* One more era, behind the exchange. */
    atomic {
        buffer[me].count < ROOM;
        if :: old != 0 -> since[old] = memory[CLOCK] + 1 :: else fi;
        push(CLOCK, memory[CLOCK] + 1, 1)
    };
    atomic { old = 0; new = 0; era = 0 }
}

inline collect_trees() {
#ifndef WITHOUT_HOLDS_FENCE
    fence();
#endif
    i = 0; oldest_era = NO_ERA;
    do
    :: i < SLOTS ->
        load(st, STATE(i));
        load(li, LIST(i));
        load(ra, ERA(i));
        if
#ifndef WITHOUT_ERAS
        :: (phase_of(st) == Starting || phase_of(st) == Editing) && !(li != 0 && ra == 0) && ra < oldest_era ->
            oldest_era = ra
#endif
        :: else
        fi;
        i++
    :: else -> break
    od;
    atomic {
        new = 1;
        do
        :: new < TREES ->
            if
            :: since[new] != 0 && since[new] - 1 < oldest_era -> lives[new] = 0; since[new] = 0; has_it[new] = 0
            :: else
            fi;
            new++
        :: else -> break
        od;
        new = 0; i = 0; st = 0; li = 0; ra = 0; oldest_era = 0
    }
}

proctype owner(byte me) {
    record_locals; byte era; byte old; byte new; byte oldest_era; byte ticket; byte now; byte seen; byte tries;
#ifndef NEAR
    /* insert: waits for nothing */
    claim(Editing, EVERYTHING);
    exchange_root(1);
    free_slot();
#ifndef LAZY
    collect_trees();
#endif
    do
    :: tries < TRIES ->
        tries++;
        /* read */
#ifdef TICKET_AFTER_SCAN
        scan(2, is_change(ph) && touches(ITS));
        load(ticket, SEQUENCE);
#else
        load(ticket, SEQUENCE);
#ifdef WAITS_FOR_STARTS_ONLY
        scan(2, ph == Starting && touches(ITS));
#else
#ifndef WITHOUT_READ_WAIT
        scan(2, is_change(ph) && touches(ITS));
#endif
#endif
#endif
        seen = page;
        lock();
        load(now, SEQUENCE);
#ifdef WITHOUT_IS_STALE
        now = ticket;
#endif
        if
        :: now == ticket -> store(MIRROR, seen + 1); unlock(); break
        :: else -> unlock()
        fi
    :: else -> break
    od;
    atomic { tries = 0; ticket = 0; now = 0; seen = 0 };
#endif
    /* The mirror is torn down before: changes that begin from now on may go unannounced. */
#ifndef TORN_DOWN_BEHIND
    lock(); store(MIRROR, 0); unlock();
#endif
    /* remove */
    store(GONE, 1);
    claim(Editing, EVERYTHING);
    exchange_root(0);
    free_slot();
#ifdef WAITS_FOR_CHANGES
    scan(2, is_change(ph) && touches(ITS));
#else
#ifndef WITHOUT_REMOVE_WAIT
    scan(2, ph == Starting && touches(ITS));
#endif
#endif
#ifdef TORN_DOWN_BEHIND
    lock(); store(MIRROR, 0); unlock();
#endif
    freed = 1;
    finished = 1;
    collect_trees()
}

init {
    atomic {
        memory[CLOCK] = 1;
#ifndef NOBODY
        memory[ROOT] = 1; lives[1] = 1;
#endif
#ifdef NEAR
        has_it[1] = 1;
#endif
        run changer(0);
        run owner(1)
    }
}
