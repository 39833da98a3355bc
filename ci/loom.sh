#!/usr/bin/env bash
# Every interleaving of the races of the core, of the registration cache and of the kernel's subscribers, under loom. A quarter
# of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier --test loom --target-dir target/loom "$@"
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier-secondary --lib --target-dir target/loom "$@" loom
echo "loom: passed"
