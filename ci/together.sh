#!/usr/bin/env bash
# All subscribers and the registration cache, told of the changes of one live process, under load: `ci/together.sh [seconds]`,
# default 60. Root compares page frames; others only see whether there is a page.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run -q --release -p mmu-notifier-secondary --example together -- "${1:-60}"
