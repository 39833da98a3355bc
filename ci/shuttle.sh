#!/usr/bin/env bash
# Four to eight threads in random and in PCT schedules, under shuttle: `ci/shuttle.sh [schedules of each]`, default 2000.
set -euo pipefail
cd "$(dirname "$0")/.."
MMU_SHUTTLE_ROUNDS=${1:-2000} RUSTFLAGS="--cfg mmu_shuttle" \
    cargo test --release -p mmu-notifier --test shuttle --target-dir target/shuttle
echo "shuttle: passed"
