#!/usr/bin/env bash
# The tests of the core and of the registration cache under Miri: undefined behaviour, data races and weak memory, one schedule a seed.
# Takes new seeds for `ci/miri.sh [seconds]` (default 600), but always finishes the first.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly miri --version >/dev/null 2>&1 &&
    ! rustup toolchain install nightly --profile minimal -c miri -c rust-src >/dev/null 2>&1; then
    echo "SKIPPED: Miri is not installed: rustup toolchain install nightly -c miri -c rust-src"
    exit 0
fi
seconds=${1:-600}
# What a forked child leaves to its parent is a leak by intent.
skip=(--skip forked --skip parent)
# Of the cache, what maps no memory, reads no mappings, makes no process and does not take hours.
cache=(changes:: hits:: tokens:: races:: waiting:: rust_vmm:: cache::tests --skip the_index_holds_many
    --skip rights_that_cannot_be_widened --skip threads_that_get --skip more_misses_at_a_time --skip abort_ends)
export MIRIFLAGS RUST_BACKTRACE=0
MIRIFLAGS="-Zmiri-permissive-provenance"
cargo +nightly miri test -q -p mmu-notifier --doc --target-dir target/miri
seed=0
while [ "$seed" = 0 ] || [ "$SECONDS" -lt "$seconds" ]; do
    MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-seed=$seed -Zmiri-preemption-rate=0.05"
    echo "seed $seed"
    cargo +nightly miri test -q -p mmu-notifier --test it --test stress --target-dir target/miri -- "${skip[@]}"
    cargo +nightly miri test -q -p mmu-notifier-secondary --lib --test it --target-dir target/miri -- "${cache[@]}"
    seed=$((seed + 1))
done
echo "miri: passed with $seed seeds in $SECONDS s"
