/* Who comes, who leaves, and the lists: a thread changes pages twice while another subscribes, unsubscribes, and frees
 * the lists that were replaced.
 *
 * G1  exactly one end for each start that returned, unless the subscriber leaves
 * G3  starts before the change, ends after it
 * G4  both or neither; when subscribe has returned, no change is open that the newcomer was not told of
 * G5  no callback after the drop has returned; no list is used after it was freed
 * G9  nobody waits for ever: no invalid end states
 *
 * -DLONG_CHANGE  the change waits until somebody has unsubscribed: that must not wait for the change
 * -DNOBODY       nobody is on the list at first: such a change puts no list on record and makes no exchange at its end
 * -DAGING        callbacks beside changes (phase Calling); subscribing waits for nobody
 * -DEDITORS      two who subscribe and unsubscribe, and no change: nobody gets lost
 */
#define THREADS 2
#ifndef CHANGES
#define CHANGES 2
#endif
#define SLOTS 2
#define OTHERS (5 * SLOTS)
#define LISTS 6
#define CURRENT OTHERS
#define GONE(s) (OTHERS + 1 + (s))
/* The subscriber's own memory: what its callbacks write. */
#define DATA(s) (OTHERS + 3 + (s))
#define PLACES (OTHERS + 5)
#define arrival(where, what) ((where != DATA(0) || !dropped[0]) && (where != DATA(1) || !dropped[1]))

/* What is true, whoever knows of it. */
bit subscribed[2];      /* subscribe has returned, the drop not begun */
bit dropped[2];         /* the drop has returned */
bit told[2];            /* the start of the open change has returned */
bit changes_pages;      /* the change itself takes place */
byte finished;          /* threads that are done */

#include "memory.h"
#include "record.h"
#include "lists.h"

/* A callback takes its time, and its subscriber must live for as long. */
inline callback(s) { assert(!dropped[s]); store(DATA(s), 1); assert(!dropped[s]) }

/* The subscriber 0, if it is on the list and has not gone. */
inline walk(list, is_start) {
    atomic { alive(list); is_on = has(list, 0) };
    if
    :: is_on ->
#ifdef WITHOUT_GONE
        gone = 0;
#else
        load(gone, GONE(0));
#endif
        if
        :: !gone && is_start ->
            assert(!changes_pages && !told[0]); callback(0); told[0] = 1
        :: !gone && !is_start ->
            /* G4: an end is for somebody who was told. */
            assert(!changes_pages && told[0]); callback(0); told[0] = 0
        :: else
        fi
    :: else
    fi;
    atomic { is_on = 0; gone = 0 }
}

#define everybody_is_told (!subscribed[0] || told[0])

proctype changer(byte me) {
    record_locals; byte list; byte gone; bit is_on; byte round;
    do
    :: round < CHANGES ->
#ifdef AGING
        claim(Calling, EVERYTHING);
        load(list, CURRENT);
        walks(list);
        walk(list, true);
        told[0] = 0;
#else
        claim(Starting, 1);
        load(list, CURRENT);
        if
        :: list == 0 -> skip
        :: else ->
            load(list, CURRENT);
            walks(list);
            walk(list, true)
        fi;
        changing();
        atomic { changes_pages = 1; assert(everybody_is_told) };
#ifdef LONG_CHANGE
        finished == 1;
#endif
        atomic { assert(everybody_is_told); changes_pages = 0 };
        if
        :: list == 0 -> skip
        :: else -> finish()
        fi;
#ifdef CURRENT_AT_END
        load(list, CURRENT);
#endif
        walk(list, false);
        /* G1: who was told and has not left has had an end. */
        atomic { assert(!subscribed[0] || !told[0]); told[0] = 0 };
#endif
        free_slot();
        round++
    :: else -> break
    od
}

proctype leaver(byte me; byte who) {
    record_locals; list_locals;
#ifndef LONG_CHANGE
    claim(Editing, EVERYTHING);
    replace(0, 1 << who);
    free_slot();
#ifndef AGING
#ifndef WITHOUT_STRANGERS
    scan(1, (is_change(ph) || ph == Ending) && li != new + 1);
#endif
#endif
    collect();
    subscribed[who] = 1;
    /* Subscribed for a while. On the list: nobody's edit has undone another's. */
#ifdef EDITORS
    atomic { load(new, CURRENT); assert(has(new, who)) };
#endif
#endif
    subscribed[who] = 0;
    store_release(GONE(who), 1);
    claim(Editing, EVERYTHING);
    replace(1 << who, 0);
    free_slot();
#ifdef WAITS_FOR_CHANGES
    scan(0, calls(ph) || is_change(ph));
#else
#ifndef WITHOUT_CALLBACKS
    scan(0, calls(ph));
#endif
#endif
    dropped[who] = 1;
    collect();
    finished++
}

init {
    atomic {
#ifdef EDITORS
        run leaver(0, 1);
#else
        /* Somebody else is on the list, so that there is one to be replaced and freed. */
#ifndef NOBODY
        memory[CURRENT] = 1; lives[1] = 1; content[1] = 2;
#endif
#ifdef LONG_CHANGE
        content[1] = 3; subscribed[0] = 1;
#endif
        run changer(0);
#endif
        run leaver(1, 0);
    }
}
