# shellcheck shell=bash
# What every part of build.sh shares: messages, places, stamps.

if [[ -n ${XDG_CACHE_HOME:-} ]]; then
    cache_dir=$XDG_CACHE_HOME/kinora
elif [[ -n ${HOME:-} ]]; then
    cache_dir=$HOME/.cache/kinora
else
    cache_dir=$root/target/cache
fi
# One target folder for every checkout: the dependencies take far longer to build than the project.
target_dir=${KINORA_TARGET_DIR:-$cache_dir/target}
wasm_target_dir=$target_dir-wasm

say() { printf '%s\n' "$*"; }

fail() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

# attempt WHAT COMMAND...: runs it; a failure is one sentence that begins with WHAT.
attempt() {
    local what=$1 status=0
    shift
    "$@" || status=$?
    ((status == 0)) || fail "$what failed with exit status $status; the lines above say why."
}

has() { command -v "$1" >/dev/null 2>&1; }

# The hash of standard input.
hash_input() {
    if has sha256sum; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

# One hash over the names and contents of the named files and of every file in the named folders.
hash_tree() {
    {
        find "$@" -type f -print0 | LC_ALL=C sort -z
        find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
    } | hash_input
}

# version_at_least 1.95 1.96.0: true when the second is the first or newer.
version_at_least() {
    [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}
