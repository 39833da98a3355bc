/* Weak memory: what a thread has stored is seen by others later, and not in the order of the program.
 *
 * Each thread has a buffer of stores on their way. They reach the memory in any order, except that two stores to one
 * place keep their order, and a release store goes only when nothing older of its thread is on the way (that is PSO
 * with releases; -DTSO: in order, as on x86-64). A fence waits until the buffer is empty, and so does a
 * read-modify-write, unless a mutation says otherwise. Loads are made in the order of the program: that they, too, may be
 * reordered is what loom is for.
 *
 * To be defined before: THREADS (2 or 3), PLACES. A thread's number is its local `me`.
 */

#ifndef ROOM
#define ROOM 2
#endif

typedef Buffer {
    byte place[ROOM];
    byte value[ROOM];
    bit release[ROOM];
    byte count;
}

byte memory[PLACES];
/* A read-modify-write that is no fence is on its way to this place: it may be overtaken by later loads and stores of
 * its thread, but by no other read-modify-write of the place. */
bit reserved[PLACES];
Buffer buffer[THREADS];
hidden byte k;

inline load(x, where) {
    d_step {
        x = memory[where];
        k = 0;
        do
        :: k < buffer[me].count ->
            if
            :: buffer[me].place[k] == (where) -> x = buffer[me].value[k]
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    }
}

inline push(where, x, is_release) {
    buffer[me].place[buffer[me].count] = where;
    buffer[me].value[buffer[me].count] = x;
    buffer[me].release[buffer[me].count] = is_release;
    buffer[me].count++
}

inline store(where, x)         { d_step { buffer[me].count < ROOM -> push(where, x, 0) } }
inline store_release(where, x) { d_step { buffer[me].count < ROOM -> push(where, x, 1) } }

#define drained (buffer[me].count == 0)
inline fence() { drained }

/* What must hold when a store arrives: to be defined before. */
#ifndef arrival
#define arrival(where, what) true
#endif

inline arrive(t, i) {
    assert(arrival(buffer[t].place[i], buffer[t].value[i]));
    memory[buffer[t].place[i]] = buffer[t].value[i];
    reserved[buffer[t].place[i]] = 0;
    k = i;
    do
    :: k + 1 < buffer[t].count ->
        buffer[t].place[k] = buffer[t].place[k + 1];
        buffer[t].value[k] = buffer[t].value[k + 1];
        buffer[t].release[k] = buffer[t].release[k + 1];
        k++
    :: else -> break
    od;
    buffer[t].count--;
    buffer[t].place[buffer[t].count] = 0;
    buffer[t].value[buffer[t].count] = 0;
    buffer[t].release[buffer[t].count] = 0;
    k = 0
}

#define differs(t, i, j) (buffer[t].place[i] != buffer[t].place[j])
#define may(t, i) (buffer[t].count > i && !buffer[t].release[i])
#define oldest(t) (buffer[t].count > 0)
#define second(t) (may(t, 1) && differs(t, 1, 0))
#define third(t) (may(t, 2) && differs(t, 2, 0) && differs(t, 2, 1))
#define fourth(t) (may(t, 3) && differs(t, 3, 0) && differs(t, 3, 1) && differs(t, 3, 2))
#if ROOM > 4 && !defined(TSO)
#error "overtaking is written for four stores"
#endif

/* Brings stores to memory, at any time. */
active proctype bus() {
end:
    do
    :: d_step { oldest(0) -> arrive(0, 0) }
    :: d_step { oldest(1) -> arrive(1, 0) }
#ifndef TSO
    :: d_step { second(0) -> arrive(0, 1) }
    :: d_step { second(1) -> arrive(1, 1) }
#if ROOM > 2
    :: d_step { third(0) -> arrive(0, 2) }
    :: d_step { third(1) -> arrive(1, 2) }
#endif
#if ROOM > 3
    :: d_step { fourth(0) -> arrive(0, 3) }
    :: d_step { fourth(1) -> arrive(1, 3) }
#endif
#endif
#if THREADS > 2
    :: d_step { oldest(2) -> arrive(2, 0) }
#ifndef TSO
    :: d_step { second(2) -> arrive(2, 1) }
#endif
#endif
    od
}
