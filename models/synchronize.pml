/* `synchronize` returns when every subscriber that was put before has been dropped: also if another thread is just
 * freeing lists, if another one has just replaced a list that had it and not said so yet, and if a change begins that is
 * not on record with a list yet, which keeps every list.
 *
 * Lists that are replaced are numbered. It goes on until none is left that is older than a moment. Memory is strong here:
 * what matters is who knows of a list, and when. Lists 1 and 2 have the subscriber; list 0, in force, has not.
 */
#define OLD 3

bit stacked[OLD];       /* on the stack of lists that were replaced */
bit lives[OLD];
byte number[OLD];
byte replaced;          /* lists that were ever numbered */
byte collector;         /* who frees lists, + 1 */
bit editing;            /* the editor is on record */
bit walked;             /* the walker is on record with list 1 */
bit unknown;            /* the newcomer is on record with no list yet */

#define NONE 255

/* Frees what nobody holds; the number of the oldest that is left. The stack is taken as a whole. */
inline collect() {
    atomic { taken[1] = stacked[1]; taken[2] = stacked[2]; stacked[1] = 0; stacked[2] = 0; oldest = NONE };
    n = 1;
    do
    :: n < OLD ->
        if
        :: taken[n] ->
            if
            :: unknown || (n == 1 && walked) ->
                stacked[n] = 1;
                if :: number[n] < oldest -> oldest = number[n] :: else fi
            :: !unknown && !(n == 1 && walked) -> lives[n] = 0
            fi
        :: else
        fi;
        n++
    :: else -> break
    od;
    n = 0
}

/* A long change that began when list 1 was in force. */
proctype walker() { walked = 0 }

/* A change that begins meanwhile, twice. */
proctype newcomer() { unknown = 1; unknown = 0; unknown = 1; unknown = 0 }

/* Has replaced list 1 by list 2, and now says so. */
proctype editor() {
    atomic { number[1] = replaced; replaced++ };
    stacked[1] = 1;
    editing = 0
}

/* Somebody who frees lists behind his own unsubscribing, if nobody else does. */
proctype another() {
    byte n; bit taken[OLD]; byte oldest;
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
    byte n; bit taken[OLD]; byte oldest; byte moment;
    /* The last put: list 2 is replaced by list 0. */
    atomic { number[2] = replaced; replaced++ };
    stacked[2] = 1;
#ifdef MOMENT_BEFORE_EDITORS
    moment = replaced;
#endif
#ifndef WITHOUT_EDITORS
    !editing;
#endif
#ifndef MOMENT_BEFORE_EDITORS
    moment = replaced;
#endif
    do
    ::
#ifndef ANYBODY_COLLECTS
        atomic { collector == 0 -> collector = 2 };
#endif
        collect();
        collector = 0;
#ifdef ONCE_IS_ENOUGH
        break
#endif
        if
        :: oldest >= moment -> break
        :: else -> !walked && !unknown
        fi
    od;
    assert(!lives[1] && !lives[2])
}

init {
    atomic {
        lives[1] = 1; lives[2] = 1; walked = 1; editing = 1;
        run walker(); run newcomer(); run editor(); run another(); run synchronizer()
    }
}
