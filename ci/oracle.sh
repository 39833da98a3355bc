#!/usr/bin/env bash
# The core against the model: the recorded traces, and many generated sequences of operations (20,000: ten minutes).
set -euo pipefail
cd "$(dirname "$0")/.."
export MMU_ORACLE_CASES=${1:-20000}
cargo test -p mmu-notifier --test oracle -- --nocapture
