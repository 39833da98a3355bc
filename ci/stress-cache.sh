#!/usr/bin/env bash
# The registration cache under load: requests, changes and evictions of many threads at once; and real memory that is
# unmapped, remapped and discarded, with a look at the page frames at each hit (which takes root).
# `ci/stress-cache.sh [seconds]`, default 120, half of them each.
set -euo pipefail
cd "$(dirname "$0")/.."
export MMU_STRESS_SECONDS=$((${1:-120} / 2))
cargo test -q --release -p mmu-notifier-secondary --test it -- --nocapture --test-threads 1 \
    threads_that_get_change_and_evict under_load_the_self_check_finds_nothing
