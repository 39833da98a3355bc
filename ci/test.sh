#!/usr/bin/env bash
# Everything that a change must pass: format, lints, documentation, tests, audit. Ten to fifteen minutes on two cores.
# On Debian and Ubuntu, as root, it first installs the programs that the tests watch; elsewhere the tests say
# what they had to skip.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(gcc libc6-dev golang-go musl-tools strace stress-ng sqlite3 python3-numpy libucx-dev libjemalloc2 libmimalloc2.0
    libtcmalloc-minimal4 fio qemu-system-x86 libopenmpi3 libfabric-dev libibverbs-dev valgrind gdb)
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    missing=()
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "installing: ${missing[*]}"
        (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}") \
            >/dev/null || echo "could not install ${missing[*]}: the tests that need them are skipped, loudly"
    fi
fi

step() { printf '\n== %s\n' "$*"; "$@"; }
if cargo fmt --version >/dev/null 2>&1; then step cargo fmt --all --check; else echo "SKIPPED: rustfmt is not installed"; fi
if cargo clippy --version >/dev/null 2>&1; then
    step cargo clippy --workspace --all-targets --quiet -- -D warnings
    step cargo clippy --manifest-path benches/peers/Cargo.toml --quiet -- -D warnings
else
    echo "SKIPPED: clippy is not installed"
fi
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --quiet
step ci/mutations.sh check
# The tests send signals, which whoever runs this in the background may have had ignored.
defaults=(env --default-signal)
"${defaults[@]}" true 2>/dev/null || defaults=()
step "${defaults[@]}" cargo test --workspace
# Where nobody is subscribed an optimised hook takes a shorter way, which those of the tests above do not have.
step "${defaults[@]}" cargo test --quiet --release -p mmu-notifier-primary --test hot
for example in fixed_buffers hole subscriber; do
    step cargo run --quiet -p mmu-notifier-secondary --example "$example"
done
# The kernel as judge: nothing may escape, from no program of the tests and from none of a million random changes.
step "${defaults[@]}" ci/audit.sh
