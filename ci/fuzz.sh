#!/usr/bin/env bash
# Fuzzes the model: its reader of traces with any bytes, its state machine with any operations.
#
#   ci/fuzz.sh [SECONDS]     for each target; 60 if not given
#
# Needs cargo-fuzz and a nightly compiler; says so and ends well if one is missing. What is found stays in
# fuzz/artifacts, what was learnt in fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
case $seconds in '' | *[!0-9]*) echo "usage: ci/fuzz.sh [SECONDS], not $seconds" >&2; exit 2 ;; esac

missing=
cargo fuzz --version >/dev/null 2>&1 || missing="cargo-fuzz is not installed (cargo install cargo-fuzz)"
cargo +nightly --version >/dev/null 2>&1 || missing="${missing:+$missing, and }there is no nightly compiler (rustup toolchain install nightly)"
if [ -n "$missing" ]; then
    echo "SKIPPED: fuzz targets trace and ops: $missing. NOTHING WAS FUZZED." >&2
    exit 0
fi

# The reader starts from the short golden traces, and from the words in all of them.
golden=crates/mmu-notifier-model/golden/traces.jsonl.gz
mkdir -p fuzz/corpus/trace fuzz/corpus/ops
zcat "$golden" | awk -v to=fuzz/corpus/trace/golden- '
    function write() { if (text != "" && length(text) < 4096) { file = to n; printf "%s", text > file; close(file) } }
    /^{"format":/ { write(); text = ""; n++ }
    { text = text $0 "\n" }
    END { write() }'
# (No grep -q and no head behind zcat: it would be killed, and so would this script.)
zcat "$golden" | grep -o '"[a-zA-Z_]*"' | sort -u | sed 's/"\(.*\)"/"\\"\1\\""/' >fuzz/corpus/trace.dict

for target in trace ops; do
    printf '\n== %s, %s seconds\n' "$target" "$seconds"
    options=(-max_total_time="$seconds" -timeout=10 -print_final_stats=1)
    case $target in
        trace) options+=(-max_len=8192 -dict=fuzz/corpus/trace.dict) ;;
        ops) options+=(-max_len=800 -len_control=0) ;;
    esac
    # All of it is safe code: the address sanitizer has nothing to find and would take most of the time.
    cargo +nightly fuzz run --sanitizer none "$target" -- "${options[@]}" 2>&1 |
        { grep -vE '^#[0-9]+[[:space:]]+(NEW|REDUCE|RELOAD|pulse)|NEW_FUNC|__sanitizer_|^###|^"|^INFO: ' || true; }
done
echo "fuzz: nothing found in $seconds seconds for each target"
