# shellcheck shell=bash
# ./build.sh test: every check of the project, with the counts of Rust's and Node's tests summed.

passed=0 failed=0

count() { passed=$((passed + $1)) failed=$((failed + $2)); }

# Adds up one column of numbers that follow a word, over all matching lines of a log.
sum_of() { sed -nE "s/$1/\1/p" "$2" | awk '{ total += $1 } END { print total + 0 }'; }

problem() {
    printf 'build.sh: %s\n' "$*" >&2
    count 0 1
}

test_rust() {
    local log=$logs/rust.log status=0 good bad
    say "Rust tests"
    native_cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
    good=$(sum_of '^test result: .* ([0-9]+) passed;.*' "$log")
    bad=$(sum_of '^test result: .* ([0-9]+) failed;.*' "$log")
    count "$good" "$bad"
    ((status == 0 || bad > 0)) || problem "cargo test failed before or outside a test (exit status $status)."
    ((status != 0 || good > 0)) || problem "cargo test ran no test."
}

test_types() {
    say "Types and format of the page"
    (cd "$root/web" && npm run --silent typecheck) || problem "npm run typecheck found errors."
    (cd "$root/web" && npm run --silent format:check) || problem "Some files are not formatted: run npm run format in web."
}

test_browser() {
    local log=$logs/browser.tap status=0 good bad files=() name
    for name in "$root"/tests/browser/*.test.{mjs,js,ts}; do [[ ! -e $name ]] || files+=("$name"); done
    ((${#files[@]})) || { problem "tests/browser holds no test."; return; }
    say "Browser tests"
    # One at a time: each drives a browser that may use every core.
    (cd "$root" && KINORA_CLI=$target_dir/release/kinora node --test --test-concurrency=1 \
        --test-reporter=spec --test-reporter-destination=stdout --test-reporter=tap --test-reporter-destination="$log" "${files[@]}") || status=$?
    good=$(sum_of '^# pass ([0-9]+)$' "$log")
    bad=$(($(sum_of '^# fail ([0-9]+)$' "$log") + $(sum_of '^# cancelled ([0-9]+)$' "$log")))
    count "$good" "$bad"
    ((status == 0 || bad > 0)) || problem "node --test failed outside a test (exit status $status)."
    ((status != 0 || good > 0)) || problem "node --test ran no test."
}

test_shell() {
    has shellcheck || { say "shellcheck is not installed; the shell scripts are not checked"; return; }
    say "Shell scripts"
    (cd "$root" && shellcheck -a -x build.sh .ci/run) || problem "shellcheck found errors."
}

run_tests() {
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
    need rust cc wasm node browser
    test_shell
    test_rust
    # A process of its own: if it stops, the remaining counts are still printed.
    if "$root/build.sh" build; then
        test_types
        test_browser
    else
        problem "the page did not build, so the types and the browser tests were not checked."
    fi
    say "$passed passed, $failed failed"
    ((failed == 0))
}
