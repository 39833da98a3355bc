/* The record of open changes: slots, and who waits for which (open.rs and held.rs in crates/mmu-notifier/src).
 *
 * To be defined before: SLOTS, and OTHERS as 5 * SLOTS: the first place that is not of a slot. Each thread has the locals of `record_locals`.
 */

#define Free 0
#define Starting 1
#define Changing 2
#define Ending 3
#define Taken 4
#define Calling 5
#define Editing 6

/* A state is the number of uses of the slot and a phase. */
#define state_of(use, phase) ((use) * 8 + (phase))
#define phase_of(state) ((state) & 7)
#define use_of(state) ((state) >> 3)

/* Places of a slot: its state, the name of its holder (0: not written), the list that is walked (0: not known, else
 * the list's number + 1), the pages that change (a set of bits), the era of the tree that is walked (0: not known). */
#define STATE(i) (i)
#define NAME(i) (SLOTS + (i))
#define LIST(i) (2 * SLOTS + (i))
#define RANGE(i) (3 * SLOTS + (i))
#define ERA(i) (4 * SLOTS + (i))

#define NO_ERA 255
#define EVERYTHING 255

#define record_locals \
    byte slot; byte use; byte i; byte st; byte first; byte ph; byte li; byte ra; byte na

#define is_change(ph) ((ph) == Starting || (ph) == Changing || (ph) == Taken)
#define calls(ph) ((ph) == Starting || (ph) == Ending || (ph) == Calling)

#define taken(i) (phase_of(memory[STATE(i)]) != Free)

/* Takes a free slot: one read-modify-write and a full fence. */
inline claim(phase, range) {
    atomic {
#ifdef WITHOUT_CLAIM_FENCE
        buffer[me].count < ROOM;
#else
        drained;
#endif
        if
        :: !taken(0) && !reserved[STATE(0)] -> slot = 0
#if SLOTS > 1
        :: taken(0) && !taken(1) && !reserved[STATE(1)] -> slot = 1
#endif
#if SLOTS > 2
        :: taken(0) && taken(1) && !taken(2) && !reserved[STATE(2)] -> slot = 2
#endif
        fi;
        use = use_of(memory[STATE(slot)]) + 1;
#ifdef WITHOUT_CLAIM_FENCE
        reserved[STATE(slot)] = 1; push(STATE(slot), state_of(use, phase), 0)
#else
        memory[STATE(slot)] = state_of(use, phase)
#endif
    };
    store(RANGE(slot), range);
    store_release(NAME(slot), me + 1)
}

/* On record with a list; the range was written before. */
inline walks(list) {
#ifdef WITHOUT_RELEASE_OF_LIST
    store(LIST(slot), (list) + 1)
#else
    store_release(LIST(slot), (list) + 1)
#endif
}

inline changing() {
#ifdef WITHOUT_RELEASE_OF_CHANGING
    store(STATE(slot), state_of(use, Changing))
#else
    store_release(STATE(slot), state_of(use, Changing))
#endif
}

/* Refused, or adopted: no fence. */
inline ending() { store_release(STATE(slot), state_of(use, Ending)) }

/* By who started the change: one read-modify-write and a full fence. */
inline finish() {
    atomic {
#ifdef WITHOUT_FINISH_FENCE
        buffer[me].count < ROOM;
        reserved[STATE(slot)] = 1; push(STATE(slot), state_of(use, Ending), 0)
#else
        drained; assert(memory[STATE(slot)] == state_of(use, Changing));
        memory[STATE(slot)] = state_of(use, Ending)
#endif
    }
}

inline free_slot() {
#ifndef WITHOUT_CLEARING_LIST
    store(LIST(slot), 0);
#endif
    store(ERA(slot), 0);
#ifndef WITHOUT_CLEARING_NAME
    store(NAME(slot), 0);
#endif
#ifdef WITHOUT_RELEASE_OF_FREE
    store(STATE(slot), state_of(use, Free))
#else
    store_release(STATE(slot), state_of(use, Free))
#endif
}

/* Waits, slot by slot, as long as it is in the same use and `concerns` holds of its phase `ph`, list `li` and range
 * `ra`, unless it is the caller's own. `looks`: 0 at the phase, 1 also at the list, 2 also at the range. */
inline scan(looks, concerns) {
#ifndef WITHOUT_SCAN_FENCE
    fence();
#endif
    i = 0;
    do
    :: i < SLOTS ->
        load(st, STATE(i));
        first = use_of(st);
        do
        :: use_of(st) == first && phase_of(st) != Free ->
            ph = phase_of(st);
            if :: looks > 0 -> load(li, LIST(i)) :: else fi;
            if :: looks > 1 -> load(ra, RANGE(i)) :: else fi;
            if
            :: concerns ->
                load(na, NAME(i));
                if
                :: na == me + 1 -> break
                :: else ->
                    /* Polls; here: sleeps until there is something new to see. */
                    memory[STATE(i)] != st || (looks > 0 && memory[LIST(i)] != li) || memory[NAME(i)] != na;
                    load(st, STATE(i))
                fi
            :: else -> break
            fi
        :: else -> break
        od;
        i++
    :: else -> break
    od;
    atomic { i = 0; st = 0; first = 0; ph = 0; li = 0; ra = 0; na = 0 }
}

/* Whether a change overlaps `range`, or may: for `scan(2, ..)`. */
#ifdef WITHOUT_RANGE
#define touches(range) true
#else
#ifdef WITHOUT_UNKNOWN_RANGE
#define touches(range) ((ra & (range)) != 0)
#else
#define touches(range) (li == 0 || (ra & (range)) != 0)
#endif
#endif
