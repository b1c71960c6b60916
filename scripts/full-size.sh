# shellcheck shell=bash
# ./build.sh full-size: a random checkpoint of the public model's exact shapes through packer, engine and browser, each
# held to PyTorch. Far too heavy for CI; docs/FULL_SIZE.md has the figures of a run.

run_full_size() {
    need rust cc wasm node browser python
    build_cli
    build_page
    attempt "The full-size run" "$python" "$root/tests/full-size/run.py" --kinora "$target_dir/release/kinora" "$@"
}
