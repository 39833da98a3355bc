/* `synchronize` returns when every subscriber that was put has been dropped, also if another thread is just freeing the
 * lists that had it. Memory is strong here: what matters is who knows of a list that no stack has.
 */
#define LISTS 3

/* Lists that were replaced and not freed, whoever has them; and those that lie on the stack. */
byte unfreed;
bit stacked[LISTS];
bit lives[LISTS];
bit walked;             /* somebody walks list 1 */

inline collect() {
    atomic { taken[1] = stacked[1]; taken[2] = stacked[2]; stacked[1] = 0; stacked[2] = 0 };
    n = 1;
    do
    :: n < LISTS ->
        if
        :: taken[n] && n == 1 && walked -> stacked[n] = 1
        :: taken[n] && !(n == 1 && walked) -> lives[n] = 0; unfreed--
        :: else
        fi;
        n++
    :: else -> break
    od;
    n = 0
}

proctype walker() { walked = 0 }

proctype collector() { byte n; bit taken[LISTS]; collect() }

proctype synchronizer() {
    byte n; bit taken[LISTS];
    do
    :: collect();
#ifdef LOOKS_AT_THE_STACK
        if
        :: !stacked[1] && !stacked[2] -> break
        :: else -> stacked[1] || stacked[2]
        fi
#else
        if
        :: unfreed == 0 -> break
        :: else -> unfreed == 0 || stacked[1] || stacked[2]
        fi
#endif
    od;
    assert(!lives[1] && !lives[2])
}

init {
    atomic {
        lives[1] = 1; lives[2] = 1; stacked[1] = 1; stacked[2] = 1; unfreed = 2; walked = 1;
        run walker(); run collector(); run synchronizer()
    }
}
