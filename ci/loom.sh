#!/usr/bin/env bash
# Every interleaving of the core's races, under loom. A few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier --test loom --target-dir target/loom "$@"
echo "loom: passed"
