/* Who waits for whom: three threads, each in whatever phase it likes and with whatever wait it likes, twice. Memory is
 * strong here: what is looked for is a circle (an invalid end state).
 *
 * Nobody waits inside a callback or an open change of his own: there is no circle.
 * -DINSIDE  they do, which makes the circles that the documentation names.
 */
#define THREADS 3
#define ROUNDS 2

#define Free 0
#define Starting 1
#define Changing 2
#define Ending 3
#define Calling 5

/* Of each thread's slot: its phase, the pages, and whether its list has everybody who is subscribing. */
byte phase[THREADS];
byte pages[THREADS];

#define other(a) ((me + (a)) % THREADS)
#define calls(t) (phase[t] == Starting || phase[t] == Ending || phase[t] == Calling)
#define is_change(t) (phase[t] == Starting || phase[t] == Changing)

/* A scan looks at one slot after the other, and waits for each. */
inline wait_for() {
    if
    /* subscribe: for the changes of others that do not know the newcomer: all that are open */
    :: t = 1; do :: t < THREADS -> !(is_change(other(t)) || phase[other(t)] == Ending); t++ :: else -> break od
    /* unsubscribe: for callbacks */
    :: t = 1; do :: t < THREADS -> !calls(other(t)); t++ :: else -> break od
    /* read: for changes that overlap */
    :: t = 1; do :: t < THREADS -> !(is_change(other(t)) && pages[other(t)] == 1); t++ :: else -> break od
    /* remove: for starts that overlap */
    :: t = 1; do :: t < THREADS -> !(phase[other(t)] == Starting && pages[other(t)] == 1); t++ :: else -> break od
    fi
}

inline here() {
#ifdef INSIDE
    if :: wait_for() :: true fi
#else
    skip
#endif
}

proctype thread(byte me) {
    byte t; byte round;
    do
    :: round < ROUNDS ->
        round++;
        if
        :: wait_for()
        :: atomic { phase[me] = Starting; if :: pages[me] = 1 :: pages[me] = 2 fi };
            here();
            phase[me] = Changing;
#ifdef INSIDE_CHANGE
            wait_for();
#else
            here();
#endif
            phase[me] = Ending;
            here();
            phase[me] = Free
        :: phase[me] = Calling; here(); phase[me] = Free
        fi;
        t = 0
    :: else -> break
    od
}

init { atomic { run thread(0); run thread(1); run thread(2) } }
