# shellcheck shell=bash
# ./build.sh bench: times ways of doing the same work against each other in one run. Only the ratios travel between
# machines; seconds do not.

now_ms() { node -e 'console.log(Math.round(performance.timeOrigin + performance.now()))'; }

# Sets took to the milliseconds of one generation on a device; false when the device is not there.
time_native() {
    local started
    started=$(now_ms)
    "$target_dir/release/kinora" generate --model "$root/model-shards" \
        --prompt "a red ball bounces on green grass" --seed 7 --device "$1" --out "$logs/$1" >"$logs/$1.log" 2>&1 || return 1
    took=$(($(now_ms) - started))
}

bench_native() {
    local cpu took
    time_native cpu || { tail -n 3 "$logs/cpu.log" >&2; fail "The command line did not generate on the CPU."; }
    cpu=$took
    say "native cpu: $cpu ms for one clip"
    if time_native gpu; then
        say "native gpu: $took ms for one clip"
        awk -v cpu="$cpu" -v gpu="$took" 'BEGIN { printf "ratio native cpu/gpu: %.2f\n", cpu / gpu }'
    else
        say "native gpu: not measured ($(tail -n 1 "$logs/gpu.log"))"
    fi
}

run_bench() {
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
    need rust cc wasm node browser
    build_cli
    build_page
    bench_native
    attempt "The browser benchmark" node "$root/web/scripts/bench.mjs" "$@"
}
