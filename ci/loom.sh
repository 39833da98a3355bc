#!/usr/bin/env bash
# Every interleaving of the races of the core and of the registration cache, under loom. A quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier --test loom --target-dir target/loom "$@"
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier-secondary --lib --target-dir target/loom "$@" loom
echo "loom: passed"
