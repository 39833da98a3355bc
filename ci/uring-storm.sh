#!/usr/bin/env bash
# Fixed buffers under load: threads read and write with them while others unmap, move, discard and protect the memory, and
# every byte is checked. `ci/uring-storm.sh [changes]`, default 1,000,000: so many in brackets, and so many by plain system
# calls of an intercepted process; and a quarter of that with changes that wait for whoever uses the memory. A few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
MMU_STORM_CHANGES=${1:-1000000} cargo test -q --release -p mmu-notifier-secondary --test io_uring -- \
    --nocapture --test-threads 1 under_load
