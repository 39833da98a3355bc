#!/usr/bin/env bash
# A program that meets the memory limit of its control group: killed without the reaper, alive with it, many times
# (default: 40 of each of the four ways with each of the two alarms, five minutes). As root, with cgroup version 1 and io_uring.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet -p mmun
exec target/release/mmun demo oom --runs "${1:-40}"
