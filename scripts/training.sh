# shellcheck shell=bash
# ./build.sh test-training: takes every model through all stages of training with tiny settings, on the CPU.
# Apart from ./build.sh test because it needs PyTorch.

run_training_tests() {
    need python
    cd "$root"
    attempt "The check of the drawn world" "$python" -m training.harbour.check
    attempt "The dry run of the training" "$python" -m training.smoke "$@"
}
