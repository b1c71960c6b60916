"""Settings of every training stage, as two presets.

`cpu` is what two cores train in about three hours; `gpu` keeps the same world
and file layout and raises the budgets. Every stage reads its part from here.
"""

import argparse
import copy
import json
import os
from pathlib import Path

VIDEO = {"width": 128, "height": 128, "frames": 17, "fps": 12}

AUTOENCODER = {
    "kind": "taehv",
    "image_channels": 3,
    "latent_channels": 32,
    "patch_size": 2,
    "encoder_channels": [32, 32, 48, 64],
    "decoder_channels": [128, 96, 48, 24],
    "encoder_time_downscale": [True, True, False],
    "decoder_time_upscale": [False, True, True],
    "decoder_space_upscale": [True, True, True],
    "encoder_padding": "leading",
}

TEXT_ENCODER = {
    "d_model": 256,
    "d_kv": 64,
    "num_heads": 4,
    "num_layers": 2,
    "d_ff": 512,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "max_tokens": 48,
}

TRANSFORMER = {
    "num_layers": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "ffn_dim": 1024,
    "in_channels": 32,
    "out_channels": 32,
    "text_dim": 256,
    "freq_dim": 256,
    "patch_size": [1, 2, 2],
    "eps": 1e-6,
    "cross_attn_norm": True,
    "rope_max_seq_len": 1024,
}

CPU = {
    "device": "cpu",
    "seed": 20240,
    "autoencoder": {"minutes": 45, "batch": 6, "frames": 9, "crop": 64, "whole": 1, "whole_every": 4, "lr": 1e-3,
                    "muon_lr": 1e-3, "pool": 384, "noise": 0.1},
    "decoder": {"minutes": 15, "batch": 6, "frames": 9, "crop": 64, "whole": 1, "whole_every": 6, "lr": 1e-3,
                "muon_lr": 1e-3, "pool": 384, "noise": 0.12, "ema": 0.995},
    "latents": {"clips": 8192, "shard": 256, "batch": 2, "minutes": 20},
    "probe": {"minutes": 4, "batch": 32, "lr": 1e-3, "muon_lr": 1e-3, "pool": 256, "held": 512},
    "text": {"minutes": 2, "batch": 64, "lr": 1e-3},
    "teacher": {"minutes": 65, "batch": 32, "lr": 1e-3, "muon_lr": 2e-3, "ema": 0.995, "given": 0.15,
                "naming": 0.1, "bake": 1.0, "guidance": 2.5},
    "distill": {"minutes": 15, "batch": 16, "lr": 3e-4, "muon_lr": 5e-4, "ema": 0.98, "given": 0.15, "guidance": 3.0,
                "steps": 4, "substeps": 2, "replay": 3, "keep": 2048},
}

GPU = copy.deepcopy(CPU)
GPU["device"] = "cuda"
GPU["autoencoder"].update(muon_lr=2e-3, minutes=30, batch=48, whole=8, pool=2048)
GPU["decoder"].update(minutes=20, batch=48, whole=8, pool=2048)
GPU["latents"].update(clips=200000, shard=4096, batch=64, minutes=20)
GPU["text"].update(batch=512)
GPU["teacher"].update(minutes=60, batch=256, muon_lr=4e-3, ema=0.9995, given=0.25)
GPU["distill"].update(minutes=30, batch=256, muon_lr=1e-3, given=0.25)

PRESETS = {"cpu": CPU, "gpu": GPU}


def work_dir(value=None):
    """The folder of checkpoints and caches: --work, $KINORA_WORK or training/runs."""
    path = Path(value or os.environ.get("KINORA_WORK") or Path(__file__).parent / "runs")
    path.mkdir(parents=True, exist_ok=True)
    return path


def arguments(stage, description):
    """Parser shared by the stages: --preset, --device, --work, --minutes, --set key=value."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--device", help="cpu or cuda; the preset's choice if absent")
    parser.add_argument("--work", help="folder of checkpoints and caches")
    parser.add_argument("--minutes", type=float, help="wall time of this run of the stage")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change one setting of the stage, a JSON value")
    parser.set_defaults(stage=stage)
    return parser


def settings(args):
    """The preset's dictionary for args.stage, with the command line applied."""
    import torch

    preset = copy.deepcopy(PRESETS[args.preset])
    options = preset.get(args.stage, {})
    options["device"] = args.device or preset["device"]
    options["seed"] = preset["seed"]
    if args.minutes is not None:
        options["minutes"] = args.minutes
    for change in args.set:
        key, _, value = change.partition("=")
        if key not in options:
            raise SystemExit(f"unknown setting {key!r} of {args.stage}; known: {', '.join(sorted(options))}")
        options[key] = json.loads(value)
    torch.set_num_threads(args.threads)
    return options
