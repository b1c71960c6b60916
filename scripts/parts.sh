# shellcheck shell=bash
# Builds the parts: native tools, the engine as wasm, the page. Each is quick when nothing changed.

pinned=(--locked --manifest-path "$root/Cargo.toml")

# claim DIR: makes cargo look at this checkout's sources again if another checkout used the target folder last. Cargo
# tells sources by their times, and those of an older checkout look like what the newer one has built.
claim() {
    local owner=$1/.kinora-checkout
    mkdir -p "$1"
    [[ $(cat "$owner" 2>/dev/null) == "$root" ]] && return 0
    find "$root/crate" "$root/cli" "$root/tools" -name '*.rs' -exec touch {} +
    say "$root" >"$owner"
}

native_cargo() {
    local verb=$1
    shift
    claim "$target_dir"
    CARGO_TARGET_DIR=$target_dir cargo "$verb" --release "${pinned[@]}" "$@"
}

build_bindgen() {
    need rust cc
    attempt "Building kinora-bindgen" native_cargo build -p kinora-bindgen
}

build_cli() {
    need rust cc
    say "Building the command line"
    # The whole workspace, as the tests do: another selection unifies features otherwise and builds burn again.
    attempt "Building the command line" native_cargo build --workspace
}

wasm_cargo() (
    claim "$wasm_target_dir"
    # .cargo/config.toml, found from the working folder, holds the target's flags.
    cd "$root" || exit 1
    local arguments=(build --profile wasm "${pinned[@]}" -p kinora --lib --target "$wasm_target")
    if [[ $wasm_route == debian ]]; then
        RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_DIR=$wasm_target_dir \
            CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$wasm_linker \
            /usr/bin/cargo "${arguments[@]}" -Z build-std=std,panic_abort
    else
        CARGO_TARGET_DIR=$wasm_target_dir cargo "${arguments[@]}"
    fi
)

build_engine() {
    need wasm
    build_bindgen
    [[ -d $wasm_target_dir ]] || say "Building the engine for the first time; this takes 10 to 20 minutes on two cores"
    attempt "Building the engine for wasm" wasm_cargo
    local wasm=$wasm_target_dir/$wasm_target/wasm/kinora.wasm
    local bindgen=$target_dir/release/kinora-bindgen out=$root/web/engine stamp
    stamp=$(hash_tree "$wasm" "$bindgen")
    if [[ $(cat "$out/.stamp" 2>/dev/null) != "$stamp" ]]; then
        rm -rf "$out"
        mkdir -p "$out"
        attempt "Writing the engine's JavaScript" "$bindgen" "$wasm" "$out"
        say "$stamp" >"$out/.stamp"
    fi
}

install_web_packages() {
    local stamp modules=$root/web/node_modules
    stamp=$(hash_input <"$root/web/package-lock.json")
    [[ $(cat "$modules/.stamp" 2>/dev/null) == "$stamp" ]] && return 0
    say "Installing the page's packages"
    (cd "$root/web" && npm ci --silent --no-audit --no-fund) || fail "npm ci failed in web/."
    say "$stamp" >"$modules/.stamp"
}

build_page() {
    need rust cc wasm node
    install_web_packages
    build_engine
    local stamp inputs=() name
    for name in "$root"/web/* "$root"/model-shards; do
        case ${name##*/} in node_modules | dist) ;; *) [[ ! -e $name ]] || inputs+=("$name") ;; esac
    done
    stamp=$(hash_tree "${inputs[@]}")
    [[ $(cat "$root/web/node_modules/.page-stamp" 2>/dev/null) == "$stamp" && -d $root/web/dist ]] && return 0
    say "Building the page"
    (cd "$root/web" && npm run --silent build) || fail "npm run build failed in web/."
    say "$stamp" >"$root/web/node_modules/.page-stamp"
}
