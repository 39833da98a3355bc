#!/usr/bin/env bash
# The kernel as judge of mmun over every kind of program that the tests watch, and over random changes. Root, KVM. About
# five minutes.
#
#   ci/audit.sh [CHANGES]     of the random program, 1100000
#
# One line for each program, as in docs/coverage.md. Fails unless everything is explained and nothing is lost, and unless
# what escapes is found. MMUN=file takes a build that is there. Where there is no such judge, it says so, and is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
changes=${1:-1100000}
programs=$PWD/crates/mmun/tests/programs
mmun=${MMUN:-}
if [ -z "$mmun" ]; then
    cargo build --quiet --release -p mmun
    mmun=${CARGO_TARGET_DIR:-target}/release/mmun
fi
mmun=$(realpath "$mmun")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
status=0
"$mmun" run --quiet --audit -- true >out 2>err </dev/null || status=$?
if [ "$status" = 125 ]; then
    echo "SKIPPED: the audit: $(cat err)"
    exit 0
fi
for program in torture vfork cancel signals jumpexit rawclone late random escape; do
    gcc -O2 -pthread -o "$program" "$programs/$program.c" -ldl
done
gcc -shared -fPIC -O2 -o late_object.so "$programs/late_object.c"
mkdir stress
failed=0

# The number of a key of the object `audit`; keys of the same name come later in it.
number() { sed -n '/^  "audit"/,$p' report.json | sed -n "s/^ *\"$1\": \([0-9]*\),*\$/\1/p" | head -1; }

# audit NAME clean|NUMBER PROGRAM ..: nothing, or so much, may be unexplained.
audit() {
    local name=$1 expected=$2 status=0
    shift 2
    timeout 1800 "$mmun" run --quiet --audit --json report.json -- "$@" >out 2>err </dev/null || status=$?
    if ! grep -q '"audit": {' report.json 2>/dev/null; then
        echo "$name: no verdict: $(tail -1 err)"
        failed=1
        return
    fi
    local lost=$(($(number samples) + $(number brackets) + $(number processes)))
    printf '| %-22s | %10s | %10s | %10s | %11s | %4s | %9s | %s |\n' "$name" "$(number invalidations)" "$(number covered)" \
        "$(number by_cause)" "$(number unexplained)" "$lost" "$(number address_spaces)" \
        "$(sed -n '/"causes": {/,/}/p' report.json | sed -n 's/^ *"\([a-z_]*\)": \([0-9]*\),*$/\1 \2/p' | paste -sd ',' | sed 's/,/, /g')"
    if [ "$expected" = clean ] && [ "$(number unexplained)$lost" != 00 ]; then
        failed=1
        sed -n '/"places": \[/,/^    \]/p' report.json
    fi
    if [ "$expected" -gt 0 ] 2>/dev/null && [ "$(number unexplained) $lost $status" != "$expected 0 123" ]; then
        failed=1
        echo "$name: expected $expected unexplained, none lost, and status 123, which is $status"
    fi
}
have() { command -v "$1" >/dev/null || { echo "SKIPPED: no $1 on this machine"; return 1; }; }

printf '| %-22s | %10s | %10s | %10s | %11s | %4s | %9s | %s |\n' program kernel covered 'by cause' unexplained lost spaces causes
echo '| --- | --- | --- | --- | --- | --- | --- | --- |'
audit escape 60 ./escape 10
audit bash clean bash "$programs/processes.sh"
have /usr/bin/python3 && audit python clean /usr/bin/python3 "$programs/dictionaries.py"
have /usr/bin/python3 && /usr/bin/python3 -c 'import numpy' 2>err && audit numpy clean /usr/bin/python3 "$programs/arrays.py"
have sqlite3 && audit sqlite clean sh -c "sqlite3 test.db < $programs/bulk.sql"
audit gcc clean sh -c "gcc -O2 -flto -pthread -o built $programs/torture.c && ./built 2 20"
have node && audit node clean node "$programs/worker.js"
if have javac; then
    javac -d . "$programs/Threads.java"
    audit java clean java -Xmx256m -cp . Threads
fi
if have rustc; then
    rustc --edition 2024 -O -o threads "$programs/threads.rs"
    audit rust clean ./threads
fi
if have redis-server && have redis-benchmark; then
    audit redis clean sh -c 'redis-server --port 17391 --save "" --daemonize no >/dev/null & sleep 1
        redis-benchmark -p 17391 -q -n 20000 -d 4096 -t set,get,lpush >/dev/null; redis-cli -p 17391 bgsave >/dev/null
        sleep 1; redis-cli -p 17391 shutdown nosave; wait'
fi
if have go; then
    printf 'package main\n// #include <stdlib.h>\nimport "C"\nfunc main() {\n\tfor i := 0; i < 2000; i++ {\n\t\tp := C.malloc(300000)\n\t\tC.free(p)\n\t\t_ = make([]byte, 1<<20)\n\t}\n}\n' >cgo.go
    # Stacks of goroutines have no room for the hook: what these do is caught by the kernel (strict mode, by itself).
    CGO_ENABLED=1 GOCACHE=$work/go go build -o cgo cgo.go 2>err && audit go clean ./cgo
fi
audit 'C, 16 threads' clean ./torture 16 250
audit 'new programs' clean ./vfork 100
gcc -O2 -static -o started "$programs/started.c" && gcc -O2 -pthread -o starts "$programs/starts.c"
audit 'static children' clean sh -c "./starts $work/started 7; ./starts $work/started"
if have go; then
    for name in starts goroutines; do CGO_ENABLED=0 GO111MODULE=off GOCACHE=$work/go go build -o "go-$name" "$programs/$name.go"; done
    audit 'Go children' clean sh -c './go-starts ./go-goroutines'
fi
audit 'cancelled threads' clean ./cancel 200
audit 'jumping handlers' clean ./signals 500
audit 'jumps at the end' clean ./jumpexit 20
audit 'raw clones' clean ./rawclone
audit 'late library' clean ./late ./late_object.so 50
if have stress-ng; then
    while read -r mode options; do
        # shellcheck disable=SC2086
        audit "stress-ng $mode" clean stress-ng --quiet --temp-path stress --timeout 20 "--$mode" 1 $options
    done <<'END'
mmap --mmap-ops 2 --mmap-bytes 4M
munmap --munmap-ops 2
madvise --madvise-ops 4
mprotect --mprotect-ops 20000
brk --brk-ops 100000
mremap --mremap-ops 50
malloc --malloc-ops 100000
fork --fork-ops 500
vfork --vfork-ops 500
clone --clone-ops 200
memfd --memfd-ops 50
msync --msync-ops 500
vm-rw --vm-rw-ops 50
shm --shm-ops 5
shm-sysv --shm-sysv-ops 5
mlock --mlock-ops 5
fault --fault-ops 2000
remap --remap-ops 20
userfaultfd --userfaultfd-ops 5000
mmapfork --mmapfork-ops 5
vm --vm-ops 2000 --vm-bytes 16M
stack --stack-ops 50
bigheap --bigheap-ops 500
END
fi
audit "random, $changes" clean ./random 2 $((changes / 2)) 3
exit $failed
