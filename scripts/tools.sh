# shellcheck shell=bash
# Finds the tools that the build needs and, where apt-get is at hand, installs those that are missing.

rust_needed=1.95
node_needed=20.10
node_fallback=22.23.3 # from npm, where the distribution's own is older than node_needed
npm_chromium=147.0.0  # of @sparticuz/chromium, where neither apt nor Playwright has one
wasm_target=wasm32-unknown-unknown
rustup_failed=$cache_dir/rustup-has-no-wasm-target
apt_updated=

rust_version() { "$1" --version 2>/dev/null | cut -d ' ' -f 2 | cut -d - -f 1; }

rust_found() {
    local version
    has cargo && has rustc && version=$(rust_version rustc) && version_at_least "$rust_needed" "${version:-0}"
}

node_found() {
    local version
    [[ ! -x $cache_dir/node/bin/node ]] || PATH=$cache_dir/node/bin:$PATH
    has node && has npm && version=$(node --version) && version_at_least "$node_needed" "${version#v}"
}

# Sets and exports CHROMIUM. A candidate has to run: Ubuntu's chromium-browser may be a stub for an absent snap.
browser_found() {
    local candidate
    for candidate in "${CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" "$(cat "$cache_dir/chromium-path" 2>/dev/null)"; do
        if [[ -n $candidate ]] && has "$candidate" && "$candidate" --version >/dev/null 2>&1; then
            CHROMIUM=$(command -v "$candidate")
            export CHROMIUM
            return 0
        fi
    done
    return 1
}

linker_found() { wasm_linker=$(compgen -c wasm-ld- | grep -E '^wasm-ld-[0-9]+$' | sort -V | tail -n 1) && [[ -n $wasm_linker ]]; }

# Debian's rustc-web: a current compiler with its library's source, from which cargo builds the wasm std.
debian_wasm_found() {
    local version
    [[ -x /usr/bin/rustc && -x /usr/bin/cargo ]] && linker_found &&
        version=$(rust_version /usr/bin/rustc) && version_at_least "$rust_needed" "${version:-0}" &&
        [[ -d $(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library ]]
}

# Sets wasm_route to toolchain (cargo's own compiler has the target's std) or debian.
wasm_found() {
    if rust_found && [[ -d $(rustc --print target-libdir --target "$wasm_target") ]]; then
        wasm_route=toolchain
    elif has rustup && [[ ! -e $rustup_failed ]] && add_wasm_target; then
        wasm_route=toolchain
    elif debian_wasm_found; then
        wasm_route=debian
    else
        return 1
    fi
}

add_wasm_target() {
    say "Adding the Rust target $wasm_target"
    timeout 120 rustup target add "$wasm_target" && return 0
    # Where it cannot be had it costs two minutes to find out; later runs need not wait again.
    mkdir -p "$cache_dir" && say "rustup target add failed; delete this file to try again" >"$rustup_failed"
    return 1
}

# Sets python to one with the packages of the training.
python_found() {
    local candidate
    for candidate in "$cache_dir/py/bin/python" python3 python; do
        if has "$candidate" && "$candidate" -c 'import torch, diffusers, transformers, tokenizers, PIL, matplotlib' 2>/dev/null; then
            python=$candidate
            return 0
        fi
    done
    return 1
}

can_install() { has apt-get && { ((EUID == 0)) || has sudo; }; }

as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }

apt_install() {
    local log=$cache_dir/apt.log
    mkdir -p "$cache_dir"
    say "Installing with apt-get: $*"
    [[ -n $apt_updated ]] || as_root apt-get update >"$log" 2>&1 || true
    apt_updated=yes
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1; then
        tail -n 5 "$log" >&2
        return 1
    fi
}

install_cc() { apt_install gcc libc6-dev; }

install_node() {
    # npm install node-linux-*: the same binaries that nodejs.org publishes, through npm itself.
    local machine
    has npm || apt_install nodejs npm || return 1
    node_found && return 0
    case $(uname -m) in
    x86_64) machine=x64 ;;
    aarch64) machine=arm64 ;;
    *) return 1 ;;
    esac
    say "Installing Node $node_fallback: the one found is older than $node_needed"
    npm install --loglevel=error --no-save --no-audit --no-fund --prefix "$cache_dir/node-package" \
        "node-linux-$machine@$node_fallback" >/dev/null || return 1
    mkdir -p "$cache_dir/node/bin"
    cp "$cache_dir/node-package/node_modules/node-linux-$machine/bin/node" "$cache_dir/node/bin/node"
}

install_browser() {
    # On Ubuntu the package is a snap that many machines cannot run; Playwright's build is the way out, and npm's where
    # its servers are out of reach.
    { apt_install chromium && browser_found; } && return 0
    node_found || install_node || return 1
    install_web_packages
    local cli=$root/web/node_modules/playwright-core/cli.js log=$cache_dir/browser.log
    say "Installing Chromium by Playwright, and what it needs"
    as_root env "PATH=$PATH" node "$cli" install-deps chromium >"$log" 2>&1 || true
    if node "$cli" install chromium >>"$log" 2>&1; then
        (cd "$root/web" && node --input-type=module \
            -e 'import { chromium } from "playwright-core"; console.log(chromium.executablePath())') >"$cache_dir/chromium-path"
        return 0
    fi
    say "Playwright's Chromium cannot be had (the reason is in $log); installing one from npm"
    install_npm_browser >>"$log" 2>&1 || { tail -n 5 "$log" >&2 && return 1; }
}

# Chromium as a package of npm, for x86-64: headless only, with SwiftShader beside it.
install_npm_browser() {
    local package=$cache_dir/chromium-package folder=$cache_dir/chromium
    [[ $(uname -m) == x86_64 ]] || { say "@sparticuz/chromium has no build for $(uname -m)" && return 1; }
    npm install --loglevel=error --no-save --no-audit --no-fund --ignore-scripts --prefix "$package" \
        "@sparticuz/chromium@$npm_chromium" || return 1
    mkdir -p "$folder"
    # It unpacks itself into the folder for temporary files.
    (cd "$package" && TMPDIR=$folder node --input-type=module \
        -e 'import chromium from "@sparticuz/chromium"; console.log(await chromium.executablePath())') \
        >"$cache_dir/chromium-path"
}

install_python() {
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3 python3-venv || return 1
    say "Installing PyTorch and the reference implementations, about 6 GB"
    python3 -m venv "$cache_dir/py" && "$cache_dir/py/bin/pip" install --quiet -r "$root/training/requirements.txt"
}

install_wasm() { apt_install rustc-web cargo-web rust-web-src lld-19; }

cc_found() { has cc; }

describe() {
    case $1 in
    rust) say "Rust $rust_needed or newer, with cargo (https://rustup.rs)" ;;
    cc) say "a C compiler called cc, which Rust links with" ;;
    node) say "Node.js $node_needed or newer, with npm (https://nodejs.org)" ;;
    browser) say "Chromium or Chrome (set CHROMIUM to its path if it is somewhere unusual)" ;;
    python) say "Python with the packages of training/requirements.txt" ;;
    wasm)
        say "Rust's standard library for $wasm_target (rustup target add $wasm_target; on Debian also rustc-web," \
            "cargo-web, rust-web-src and lld-19, whose compiler is new enough with the security updates only)"
        ;;
    esac
}

# need TOOL...: installs what is missing where it can, and otherwise lists all of it and stops.
need() {
    local tool missing=()
    for tool in "$@"; do
        "${tool}_found" && continue
        if [[ $tool != rust ]] && can_install && "install_$tool" && "${tool}_found"; then continue; fi
        missing+=("$tool")
    done
    ((${#missing[@]})) || return 0
    printf 'build.sh: missing, and not to be installed from here:\n' >&2
    for tool in "${missing[@]}"; do printf '  - %s\n' "$(describe "$tool")" >&2; done
    exit 1
}
