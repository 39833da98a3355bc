/* `synchronize` returns when every subscriber that was put before has been dropped: also if another thread is just
 * freeing lists, and if a change begins that is not on record with a list yet, which keeps every list.
 *
 * Memory is strong here: what matters is who knows of a list, and when. Lists 1 and 2 were replaced before; list 0 is
 * in force.
 */
#define OLD 3

bit stacked[OLD];       /* on the stack of lists that were replaced */
bit lives[OLD];
byte collector;         /* who frees lists, + 1 */
bit walked;             /* the walker is on record with list 1 */
bit unknown;            /* the newcomer is on record with no list yet */

/* Frees what nobody holds. The stack is taken as a whole. */
inline collect() {
    atomic { taken[1] = stacked[1]; taken[2] = stacked[2]; stacked[1] = 0; stacked[2] = 0; all = 1 };
    n = 1;
    do
    :: n < OLD ->
        if
        :: taken[n] ->
            if
            :: unknown || (n == 1 && walked) -> stacked[n] = 1; all = 0
            :: !unknown && !(n == 1 && walked) -> lives[n] = 0
            fi
        :: else
        fi;
        n++
    :: else -> break
    od;
    n = 0
}

proctype walker() { walked = 0 }

/* A change that begins meanwhile, twice. */
proctype newcomer() { unknown = 1; unknown = 0; unknown = 1; unknown = 0 }

/* Somebody who frees lists behind his own unsubscribing, if nobody else does. */
proctype another() {
    byte n; bit taken[OLD]; bit all;
#ifdef ANYBODY_COLLECTS
    collect()
#else
    if
    :: atomic { collector == 0 -> collector = 1 }; collect(); collector = 0
    :: atomic { collector != 0 }
    fi
#endif
}

proctype synchronizer() {
    byte n; bit taken[OLD]; bit all;
    do
    ::
#ifndef ANYBODY_COLLECTS
        atomic { collector == 0 -> collector = 2 };
#endif
        collect();
#ifndef ANYBODY_COLLECTS
        collector = 0;
#endif
        if
        :: all -> break
        :: else
        fi;
        /* Waits for those who hold an old list now, slot by slot. */
        !walked;
        !unknown;
#ifdef SECOND_TIME_IS_ENOUGH
#ifndef ANYBODY_COLLECTS
        atomic { collector == 0 -> collector = 2 };
#endif
        collect();
        collector = 0;
        break
#endif
    od;
    assert(!lives[1] && !lives[2])
}

init {
    atomic {
        lives[1] = 1; lives[2] = 1; stacked[1] = 1; stacked[2] = 1; walked = 1;
        run walker(); run newcomer(); run another(); run synchronizer()
    }
}
