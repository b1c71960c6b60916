# shellcheck shell=bash
# ./build.sh evaluate: judges the shipped model, as packed, packed smaller and in as many steps and in half as many
# before packing, beside its teacher and real renders. Everything it needs is in the repository: the shards and what
# they were made from (training/checkpoints).

run_evaluate() {
    local exported q4 model parts
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
    for parts in "training/checkpoints/$model" "training/checkpoints/$model"-*; do
        attempt "Reading $parts" "$python" -m training.parts join "$parts"
    done
    attempt "Exporting" "$python" -m training.export --from student --out "$exported"
    attempt "Packing in four bits" "$target_dir/release/kinora" pack --in "$exported" --out "$q4" --format q4 --group 32
    # student: what the shards were packed from; student2: its distillation to two steps
    attempt "The evaluation" "$python" -m training.evaluate \
        --sources "renders,autoencoder,packed=model-shards,packed=$q4,student,student=student2,teacher=50" \
        --out model-shards/evaluation.json --card model-shards/MODEL_CARD.md "$@"
    cp training/reports/heldout*.png docs/images/
}
