#!/usr/bin/env bash
# What the core costs beside its peers: the chain of subscribers in windows, for noisy machines, then criterion benches of
# the chain and of intervals. About seven minutes. Prints medians, and one line `ratio <cell> <value>` a cell, so that runs on different machines compare.
set -euo pipefail
cd "$(dirname "$0")/.."
# Where the linker happens to put a loop moves a cell by a fifth: here each begins a cache line.
RUSTFLAGS="-C llvm-args=-align-all-functions=6 -C llvm-args=-align-all-nofallthru-blocks=6" \
    cargo bench -p mmu-notifier --bench windows --target-dir target/aligned
cargo bench -p mmu-notifier --bench chain -- "$@" 2>&1 | grep -E '^(error|warning)|time:|^chain' || true
cargo bench -p mmu-notifier --bench intervals -- "$@" 2>&1 | grep -E '^(error|warning)|time:|^intervals' || true
[ -d target/criterion ] || { echo "bench-core: no results"; exit 1; }

python3 - <<'PYTHON'
import glob, json, os
cells = {}
for path in glob.glob("target/criterion/*/*/*/new/estimates.json") + glob.glob("target/criterion/*/*/new/estimates.json"):
    parts = path.split(os.sep)[2:-2]
    with open(path) as file:
        cells[tuple(parts)] = json.load(file)["median"]["point_estimate"]
print()
for threads in ("chain-1-threads", "chain-2-threads"):
    for subscribers in ("0-subscribers", "1-subscribers", "4-subscribers", "16-subscribers"):
        ours = cells.get((threads, "ours", subscribers))
        if ours is None:
            continue
        for peer in ("plain", "rwlock", "rwlock-twice", "arc-swap", "epoch"):
            theirs = cells.get((threads, peer, subscribers))
            if theirs:
                print(f"ratio {threads}/{subscribers}/ours-to-{peer} {ours / theirs:.2f} ({ours:.1f} ns / {theirs:.1f} ns)")
for subscribers in ("0-subscribers", "1-subscribers", "4-subscribers", "16-subscribers"):
    for who in ("ours", "rwlock", "rwlock-twice", "arc-swap", "epoch"):
        one = cells.get(("chain-1-threads", who, subscribers))
        two = cells.get(("chain-2-threads", who, subscribers))
        if one and two:
            print(f"ratio per-thread-cost-on-2-to-1/{who}/{subscribers} {two / one:.2f}")
for (group, *rest), ours in sorted(cells.items()):
    if group.startswith("intervals-") and rest[0] == "start-end":
        theirs = cells.get((group, "rwlock-btreemap", rest[1]))
        if theirs:
            print(f"ratio {group}/{rest[1]}/ours-to-rwlock-btreemap {ours / theirs:.2f} ({ours:.0f} ns / {theirs:.0f} ns)")
PYTHON
