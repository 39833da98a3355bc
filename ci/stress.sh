#!/usr/bin/env bash
# Changes, intervals, readers and subscribers of every kind at once: `ci/stress.sh [seconds]`, default 60.
set -euo pipefail
cd "$(dirname "$0")/.."
MMU_STRESS_SECONDS=${1:-60} cargo test -q --release -p mmu-notifier --test stress -- --nocapture
