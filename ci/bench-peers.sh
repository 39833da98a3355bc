#!/usr/bin/env bash
# The registration cache beside its peers: UCX's (Debian's libucx-dev), RwLock<BTreeMap>, rangemap, crossbeam-skiplist.
# Two minutes on a quiet machine, and six where other work runs: it then measures less and says so. Prints a table for each
# size and number of entries; the last lines are one `ratio <cell>/ours-to-<peer> <value>` each.
#   ci/bench-peers.sh [ROUNDS [THREADS [ENTRIES...]]]    THREADS: 1, 2, or 0 for both
# Where other work runs: FIRST=1 ci/bench-peers.sh 60 1 puts the cells of one thread first in line (needs the right to).
set -euo pipefail
cd "$(dirname "$0")/.."
ucx=/usr/include/ucs/memory/rcache.h
missing() { [ -e "$ucx" ] || echo "SKIPPED: UCX, the peer that counts: there is no $ucx (install libucx-dev)"; }
missing
cargo build --quiet --release --manifest-path benches/peers/Cargo.toml
run=(benches/peers/target/release/mmu-notifier-bench-peers)
[ -z "${FIRST:-}" ] || run=(chrt -f 20 "${run[@]}")
# A thread that waits for ever must not keep the machine.
timeout 600 "${run[@]}" "$@"
missing
