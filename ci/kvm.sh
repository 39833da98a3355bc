#!/usr/bin/env bash
# `stage2` against the real KVM: random changes of memory, and after each the pages that both have. `ci/kvm.sh [changes]`,
# default 30,000 for each of six seeds: some minutes. Takes root and /dev/kvm; says so where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
MMU_KVM_STEPS=${1:-30000} cargo test -q --release -p mmu-notifier-secondary --test kvm -- --nocapture
