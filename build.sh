#!/usr/bin/env bash
# Builds, runs and checks Kinora. ./build.sh help lists the commands.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"
# shellcheck source=scripts/tools.sh
source "$root/scripts/tools.sh"
# shellcheck source=scripts/parts.sh
source "$root/scripts/parts.sh"
# shellcheck source=scripts/test.sh
source "$root/scripts/test.sh"
# shellcheck source=scripts/bench.sh
source "$root/scripts/bench.sh"
# shellcheck source=scripts/evaluate.sh
source "$root/scripts/evaluate.sh"
# shellcheck source=scripts/training.sh
source "$root/scripts/training.sh"
# shellcheck source=scripts/full-size.sh
source "$root/scripts/full-size.sh"

usage() {
    cat <<'TEXT'
Usage: ./build.sh COMMAND [ARGUMENTS]

  demo "PROMPT" [...]   make a clip of the prompt in a headless browser; arguments go to web/scripts/demo.mjs
  serve [--model DIR]   serve the page on this machine and print its address, with a packed model beside it
  test                  run every check; the last line is "N passed, N failed"
  test-training [MODEL] dry-run every stage of training, also the gpu preset, on the CPU (needs PyTorch)
  dist                  write the page as a folder of static files, ./dist
  bench [...]           time devices and kernels against each other and print ratios
  evaluate [...]        judge the shipped model and renew model-shards/evaluation.json and the model card's tables
  full-size [...]       run a random checkpoint of the public model's size, held to PyTorch; 30 GB of disk
                        (--keep DIR leaves its files there)
  build                 build the page and the engine only
  help                  print this

On Debian and Ubuntu, what is missing is installed with apt-get (as root or through sudo).
Environment: CHROMIUM (browser to use), KINORA_TARGET_DIR (cargo's target folder, shared between checkouts).
TEXT
}

# The browser scripts report a failure in their own words; only the exit status is passed on.
demo() {
    need rust cc wasm node browser
    build_page
    exec node "$root/web/scripts/demo.mjs" "$@"
}

serve() {
    build_page
    exec node "$root/web/scripts/serve.mjs" "$@"
}

dist() {
    build_page
    rm -rf "$root/dist"
    attempt "Copying the page" cp -R "$root/web/dist" "$root/dist"
    say "dist/ holds the page, $(du -sh "$root/dist" | cut -f 1) of static files."
    say "Any static host serves it. Use HTTPS: browsers offer WebGPU and WebCodecs to secure pages (and localhost) only."
}

command=${1:-help}
(($# == 0)) || shift
case $command in
demo | serve | dist) "$command" "$@" ;;
build) build_page ;;
test) run_tests ;;
test-training) run_training_tests "$@" ;;
bench) run_bench "$@" ;;
evaluate) run_evaluate "$@" ;;
full-size) run_full_size "$@" ;;
help | -h | --help) usage ;;
*) fail "There is no command '$command'; ./build.sh help lists those there are." ;;
esac
