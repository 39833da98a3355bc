/* One change from its first start to its last end: three subscribers, of which the one in the middle may refuse; the
 * thread may jump out of any callback or of the change itself, and its next change finds that; or another thread ends
 * the change, while the one who started it unsubscribes somebody.
 *
 * G1  exactly one end for each start that returned, whatever happens
 * G2  a refusal leaves nothing: everybody who started is ended, the slot is free
 * G3  starts before the change, ends after it
 * G5  no callback after the drop has returned
 *
 * -DJUMPS   the thread may jump away
 * -DHANDED  another thread ends the change
 * -DANYWHERE (with -DJUMPS)  also between a callback's return and the note of what comes next: the known limit
 */
#define THREADS 2
#define SLOTS 2
#define OTHERS (5 * SLOTS)
#define GONE OTHERS
#define PLACES (OTHERS + 1)

#define SUBSCRIBERS 3
#define REFUSER 1       /* has no end */
#define LEAVES 2        /* is unsubscribed in -DHANDED */

/* On record in the slot: whose start runs or ran last, 1 + s; or whose end, END + 1 + s. Not cleared between two phases, nor
 * between two uses if all went well. */
#define END 8
byte calling;
/* Where a start was cut short: 1 + how many have started. */
byte cut;

bit returned[SUBSCRIBERS];      /* a start has returned, its end has not begun */
bit changes_pages;
bit was_refused;
bit dropped;
byte handed;                    /* 1: may be ended by the other thread; 2: has been */
byte handed_slot;
byte handed_use;

#include "memory.h"
#include "record.h"

/* The thread leaves a callback, or the change, by a jump. */
#ifdef JUMPS
#define may_jump :: true -> goto jumped
#else
#define may_jump
#endif

inline end_all() {
#ifdef START_IS_END
    s = (calling > END -> calling - END : calling);
#else
    s = (calling > END -> calling - END : 0);
#endif
    do
    :: s < (cut -> cut - 1 : SUBSCRIBERS) ->
#ifndef NOTED_BEHIND
        calling = END + 1 + s;
#endif
        gone = 0;
        if
        :: s == LEAVES -> load(gone, GONE)
        :: else
        fi;
        if
        :: s != REFUSER && !gone ->
            atomic { assert(!changes_pages && returned[s]); returned[s] = 0 };
            assert(s != LEAVES || !dropped);
            if
            :: true
            may_jump
            fi;
            assert(s != LEAVES || !dropped)
        :: else -> returned[s] = 0
        fi;
#ifdef NOTED_BEHIND
        calling = END + 1 + s;
#endif
        s++
    :: else -> break
    od;
    s = 0; gone = 0
}

/* Nothing of this is left to the next use. */
inline forget() {
#ifdef WITHOUT_FORGETTING
    skip
#else
    calling = 0; cut = 0
#endif
}

#define nobody_is_owed (!returned[0] && !returned[2])

proctype changer(byte me) {
    record_locals; byte s; byte gone; bit refused; bit blocking; byte round;
again:
    do
    :: round < 2 ->
        round++;
        if :: blocking = 1 :: blocking = 0 fi;
        claim(Starting, 1);
        refused = 0;
        walks(1);
        s = 0;
        do
        :: s < SUBSCRIBERS ->
            calling = 1 + s;
            gone = 0;
            if
            :: s == LEAVES -> load(gone, GONE)
            :: else
            fi;
            if
            :: !gone ->
                /* In the callback. */
                assert(!changes_pages && (s != LEAVES || !dropped));
                if
                :: s == REFUSER && !blocking ->
                    refused = 1;
#ifdef REFUSAL_ENDS_WALK
                    break
#endif
                may_jump
                :: s != REFUSER || blocking -> returned[s] = 1
                fi;
#ifdef ANYWHERE
                if
                :: true -> goto jumped
                :: true
                fi
#endif
            :: else
            fi;
            s++
        :: else -> break
        od;
        /* Everybody was asked. */
        assert(s == SUBSCRIBERS);
        s = 0;
        if
        :: refused ->
            ending();
#ifndef WITHOUT_ENDS
            end_all();
#endif
            assert(nobody_is_owed);
            forget();
            free_slot()
        :: else ->
            changing();
            changes_pages = 1;
            if
            :: changes_pages = 0
#ifdef JUMPS
            :: changes_pages = 0; goto jumped
#endif
            fi;
#ifdef HANDED
            atomic { handed_slot = slot; handed_use = use; handed = 1 };
            break
#else
            finish();
            end_all();
            assert(nobody_is_owed);
            free_slot()
#endif
        fi
    :: else -> break
    od;
#ifdef HANDED
    /* Unsubscribes while the other thread ends the change. */
    store_release(GONE, 1);
    scan(0, calls(ph));
    dropped = 1
#endif
    goto over;
jumped:
    /* The next change of this thread finds it: same slot, same use, its own name. */
    s = 0; gone = 0;
    load(st, STATE(slot));
    if
    :: phase_of(st) == Changing -> finish()
    :: phase_of(st) == Starting ->
#ifndef WITHOUT_CUT
        cut = 1 + (calling > 0 && calling <= END -> calling - 1 : 0);
#endif
        ending()
    :: phase_of(st) == Ending
    fi;
#ifdef ADOPTED_FROM_SCRATCH
    calling = 0;
#endif
#ifdef WITHOUT_ADOPTION
    free_slot();
#else
    end_all();
    assert(nobody_is_owed);
    forget();
    free_slot();
#endif
    goto again;
over:
    atomic { assert(handed || nobody_is_owed) }
}

proctype ender(byte me) {
    record_locals; byte s; byte gone;
end:
    handed == 1;
    slot = handed_slot; use = handed_use;
    /* Takes it over, writes its name, and only then is who calls. */
#ifdef WITHOUT_TAKEN
    atomic { drained && memory[STATE(slot)] == state_of(use, Changing); memory[STATE(slot)] = state_of(use, Ending) };
    store(NAME(slot), me + 1);
#else
    atomic { drained && memory[STATE(slot)] == state_of(use, Changing); memory[STATE(slot)] = state_of(use, Taken) };
    store(NAME(slot), me + 1);
    atomic { drained; memory[STATE(slot)] = state_of(use, Ending) };
#endif
    end_all();
    free_slot();
    atomic { assert(nobody_is_owed || dropped); handed = 2 };
#ifdef JUMPS
jumped: skip
#endif
}

init {
    atomic {
        run changer(0);
#ifdef HANDED
        run ender(1)
#endif
    }
}
