#!/usr/bin/env bash
# Every interleaving of the races of the core, of the registration cache, of the kernel's subscribers, and of calls that map files
# and change them, under loom. A quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier --test loom --target-dir target/loom "$@"
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier-secondary --lib --target-dir target/loom "$@" loom
RUSTFLAGS="--cfg mmu_loom" cargo test --release -p mmu-notifier-primary --lib --target-dir target/loom "$@" loom
echo "loom: passed"
