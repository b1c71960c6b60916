"""Stage 8: write the directory `kinora pack` takes: model.json, tokenizer.json, weights.safetensors.

    python -m training.export --out DIR [--from teacher|student]

Weights are f32 under the names of the networks: text_encoder.* (transformers),
transformer.* (diffusers), autoencoder.* (TAEHV), and transformer.size_loras.WxH.*
for sizes that have a low-rank change (`lora.py`). Such a size is offered only if
its change has been learnt.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import lora, presets, sampling, tokenizer as tokenizers, worlds


def read_json(path):
    return json.loads(path.read_text()) if path.exists() else {}


def offered(work, source):
    """The sizes that there are weights for, by name, as the manifest has them."""
    sizes = {}
    for width, height in presets.VIDEO["sizes"]:
        name = presets.named((width, height))
        size = {"width": width, "height": height, "frames": [presets.VIDEO["frames"]]}
        if name not in presets.LORAS:
            sizes[name] = size
        elif lora.path_of(work, source, (width, height)).exists():
            sizes[name] = {**size, "lora_rank": presets.LORAS[name]}
    return sizes


def manifest(work, source, tokenizer, sigmas, shift):
    video = presets.VIDEO
    facts = {name: read_json(work / f"{name}.json") for name in ("autoencoder", "decoder", "teacher", source)}
    facts = {name: part for name, part in facts.items() if part}  # of the stages that there were
    sizes = offered(work, source)
    for name in sizes:
        if name in presets.LORAS:
            facts.update({key: read_json(work / f"{key}.json") for key in (f"teacher-{name}", f"{source}-{name}")})
    for part in facts.values():
        for curve in ("log", "loss"):  # kept in reports/, too long for a manifest
            part.pop(curve, None)
    text = {"kind": "umt5", "vocab_size": tokenizer.get_vocab_size(), **presets.TEXT_ENCODER,
            "tokenizer": {"path": "tokenizer.json"}}
    return {
        "interface": "kinora-wan-1",
        "name": worlds.TITLE.lower().replace(" ", "-"),
        "title": worlds.TITLE,
        "description": worlds.DESCRIPTION,
        "license": "CC0-1.0 (weights)",
        "text_encoder": text,
        "transformer": {"kind": "wan", **presets.TRANSFORMER},
        "autoencoder": presets.AUTOENCODER,
        "sampler": {"sigmas": [round(s, 6) for s in sigmas], "shift": 1.0, "step": "euler", "timestep_scale": 1000.0},
        "video": {"fps": video["fps"], "sizes": list(sizes.values())},
        "vocabulary": json.loads((work / "vocabulary.json").read_text()),
        "examples": list(worlds.EXAMPLES),
        # The packer fills in what the most demanding clip needs.
        "requires": {"features": [], "max_buffer_size": 0, "max_storage_buffer_binding_size": 0, "memory_bytes": 0},
        "training": {"model": presets.MODEL, "weights": source, "sigma_shift": shift, "dtype": "f32",
                     "data": "procedural world of this repository (training/" + presets.WORLD + ")", **facts},
    }


def tensors_of(work, source):
    model = torch.load(work / f"{source}.pt", map_location="cpu")
    out = {}
    for name, value in model.items():
        # transformers ties this one to text_encoder.shared.weight
        if name != "text_encoder.encoder.embed_tokens.weight":
            out[name] = value.float().contiguous().clone()
    for name, size in offered(work, source).items():
        if "lora_rank" in size:
            out.update(lora.exported(name, lora.load(lora.path_of(work, source, (size["width"], size["height"])))))
    for name, value in torch.load(work / "autoencoder.pt", map_location="cpu").items():
        out[f"autoencoder.{name}"] = value.float().contiguous().clone()
    return out


def main():
    parser = presets.arguments("export", __doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--from", dest="source", default="teacher", help="teacher, or the --name of a distillation")
    parser.add_argument("--shift", type=float, help="sigma shift of the teacher's sampling steps")
    args = parser.parse_args()
    work = presets.work_dir(args.work)
    tokenizer = tokenizers.load(work)
    if args.source != "teacher":
        facts = read_json(work / f"{args.source}.json")
        sigmas, shift = facts["sigmas"], facts["shift"]
    else:
        shift = args.shift or 3.0
        sigmas = sampling.schedule(presets.PRESETS[args.preset]["distill"]["steps"], shift)
    tensors = tensors_of(work, args.source)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "weights.safetensors")
    shutil.copy(work / "tokenizer.json", args.out / "tokenizer.json")
    text = json.dumps(manifest(work, args.source, tokenizer, sigmas, shift), indent=1, ensure_ascii=False)
    (args.out / "model.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()) / 1e6:.2f} M parameters -> {args.out}")


if __name__ == "__main__":
    main()
