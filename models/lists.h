/* The lists of subscribers: replaced as a whole, freed when nobody can walk them (crates/mmu-notifier/src/list.rs).
 *
 * To be defined before: CURRENT (a place), LISTS. List 0 is the empty one. A list's number comes back when it was
 * freed: the address of its memory. Each thread has the locals of `list_locals`.
 */

byte content[LISTS];
bit lives[LISTS];
bit retired[LISTS];

#define list_locals byte old; byte new; byte mine; byte c

/* Whoever reads a list must find it alive. */
#define has(list, s) ((content[list] >> (s)) & 1)
#define alive(list) assert((list) == 0 || lives[list])

/* Publishes the list in force without some and with others. For who is on record with any list. */
inline replace(without, with) {
    do
    :: load(old, CURRENT);
        atomic { alive(old); c = content[old] };
        c = (c & ~(without)) | (with);
        if
        :: c == content[old] -> new = old; break
        :: else
        fi;
        atomic {
            if
            :: c == 0 -> new = 0
            :: else ->
                new = 1;
                do :: lives[new] -> new++ :: else -> break od;
                assert(new < LISTS);
                lives[new] = 1; content[new] = c
            fi
        };
        /* Exchanges the pointer: releases, but is no full fence. */
        atomic {
            buffer[me].count < ROOM && !reserved[CURRENT];
            if
#ifdef STORE_INSTEAD_OF_EXCHANGE
            :: true ->
#else
            :: memory[CURRENT] == old ->
#endif
                reserved[CURRENT] = 1; push(CURRENT, new, 1);
                if :: old != 0 -> retired[old] = 1 :: else fi;
                break
            :: else -> if :: new != 0 -> lives[new] = 0; content[new] = 0 :: else fi
            fi
        }
    od;
    atomic { c = 0; old = 0 }
}

/* Frees what nobody on record can walk. */
inline collect() {
    old = 1;
    do
    :: old < LISTS ->
        atomic { mine = retired[old]; retired[old] = 0 };
        if
        :: mine ->
#ifndef WITHOUT_HOLDS_FENCE
            fence();
#endif
            i = 0;
            do
            :: i < SLOTS ->
                load(st, STATE(i));
                load(li, LIST(i));
                if
#ifdef WITHOUT_ANY_LIST
                :: phase_of(st) != Free && li == old + 1 -> mine = 0
#else
                :: phase_of(st) != Free && li == old + 1 -> mine = 0
                /* Behind the starts no list on record is none: there was nobody to tell. */
                :: (phase_of(st) == Starting || phase_of(st) == Calling || phase_of(st) == Editing) && li == 0 -> mine = 0
#endif
                :: else
                fi;
                i++
            :: else -> break
            od;
            atomic {
                if
                :: mine -> lives[old] = 0; content[old] = 0
                :: else -> retired[old] = 1
                fi;
                mine = 0
            }
        :: else
        fi;
        old++
    :: else -> break
    od;
    atomic { i = 0; st = 0; li = 0; old = 0 }
}
