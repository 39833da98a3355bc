#!/usr/bin/env bash
# The tests of the core and of the registration cache, and a short stress of the core, under ThreadSanitizer:
# `ci/tsan.sh [seconds of stress]`, default 60. First a planted race, which it must find.
#
# ThreadSanitizer does not understand fences. The core's only decide who sees whom (store buffering); what is handed from
# one thread to another goes through a Release and an Acquire of the same place, which it does understand.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! rustup component list --toolchain nightly 2>/dev/null | grep -q 'rust-src (installed)' &&
    ! rustup toolchain install nightly --profile minimal -c rust-src >/dev/null 2>&1; then
    echo "SKIPPED: ThreadSanitizer needs: rustup toolchain install nightly -c rust-src"
    exit 0
fi
target=x86_64-unknown-linux-gnu
run() {
    cargo +nightly test -q -Zbuild-std --target $target --target-dir target/tsan "$@"
}
export RUSTFLAGS="-Zsanitizer=thread"
export TSAN_OPTIONS="halt_on_error=1"
if MMU_PLANTED_RACE=1 run -p mmu-notifier --test stress -- planted >target/tsan-planted.log 2>&1; then
    echo "ThreadSanitizer has not found the planted race"
    exit 1
fi
grep -m 1 'WARNING: ThreadSanitizer: data race' target/tsan-planted.log
echo "found the planted race"
run -p mmu-notifier --test it
# Not those that fork, which the sanitizer does not get over.
run -p mmu-notifier-secondary --test it -- --skip forks:: --skip abort_ends
MMU_STRESS_SECONDS=${1:-60} run -p mmu-notifier --test stress -- --nocapture
echo "tsan: passed"
