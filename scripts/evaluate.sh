# shellcheck shell=bash
# ./build.sh evaluate: judges the shipped model, as packed and packed smaller, beside its teacher and real renders.
# Everything it needs is in the repository: the shards, the teacher and the probe (training/checkpoints).

run_evaluate() {
    local exported q4 model
    need rust cc python
    build_cli
    work=$(mktemp -d) # not local: the trap below looks at it after the function has ended
    trap 'rm -rf "$work"' EXIT
    exported=$work/exported q4=$work/q4
    model=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["training"]["model"])' \
        "$root/model-shards/manifest.json")
    cd "$root"
    # The sheet is taken from there below, whatever the caller's own setting is.
    export KINORA_MODEL=$model KINORA_WORK=$work KINORA_REPORTS=$root/training/reports
    # The shipped weights take the student's place, and are packed once more in four bits.
    attempt "Reading model-shards" "$python" -m training.shards model-shards --as student
    # After the shards: what is there is kept, so that the autoencoder is the shipped one.
    attempt "Reading the teacher and the probe" "$python" -m training.parts join "training/checkpoints/$model"
    attempt "Exporting" "$python" -m training.export --from student --out "$exported"
    attempt "Packing in four bits" "$target_dir/release/kinora" pack --in "$exported" --out "$q4" --format q4 --group 32
    attempt "The evaluation" "$python" -m training.evaluate \
        --sources "renders,autoencoder,packed=model-shards,packed=$q4,teacher=50" \
        --out model-shards/evaluation.json --card model-shards/MODEL_CARD.md "$@"
    cp training/reports/heldout.png docs/images/heldout.png
}
