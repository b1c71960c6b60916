"""The models and the settings of every training stage.

A model (`meadow`, `harbour`, `harbour-large`) is a world and the shapes of its networks; `--model` or
$KINORA_MODEL picks one. A preset (`cpu`, `gpu`) holds the budgets and rates of the stages. Every stage reads its part
from here.
"""

import argparse
import copy
import json
import os
from pathlib import Path

# What a model is: the world it shows, the sizes of its clips and its three networks.
MEADOW = {
    "world": "meadow",
    "video": {"sizes": [[128, 128], [176, 96]], "frames": 17, "fps": 12, "caption_tokens": 28},
    # sizes that the denoiser makes with a low-rank change of its weights (`lora.py`), and the change's rank
    "loras": {"176x96": 10},
    "autoencoder": {
        "kind": "taehv",
        "image_channels": 3,
        # Latents of 8x8 pixels: of 16x16 fast balls changed their outline from frame to frame, and boats and cones came
        # back as blobs.
        "latent_channels": 16,
        "patch_size": 1,
        "encoder_channels": [32, 32, 48, 64],
        "decoder_channels": [128, 96, 32, 24],
        "encoder_time_downscale": [True, True, False],
        # early, so that memory blocks work on every single frame: made of pairs at the end, two of four frames smear
        "decoder_time_upscale": [True, True, False],
        "decoder_space_upscale": [True, True, True],
        "encoder_padding": "leading",
    },
    "text_encoder": {
        "d_model": 256,
        "d_kv": 64,
        "num_heads": 4,
        "num_layers": 2,
        "d_ff": 512,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "max_tokens": 48,
    },
    "transformer": {
        "num_layers": 7,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "ffn_dim": 1024,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 256,
        "freq_dim": 256,
        "patch_size": [1, 2, 2],
        "eps": 1e-6,
        "cross_attn_norm": True,
        "rope_max_seq_len": 1024,
    },
    # pixels along the side of what it sees, channels; softened clips keep at least `softest` of 128 pixels
    "probe": {"side": 64, "convolutions": [48, 96, 128, 160], "layers": 0, "softest": 40},
    # the attributes of each object that the probe and the denoiser learn to name where it stands; one object needs none
    "things": [],
}

HARBOUR = copy.deepcopy(MEADOW)
HARBOUR.update(world="harbour", loras={})
# Scenery has no detail finer than `grain` pixels: what latents do not hold a decoder blurs.
HARBOUR["video"].update(caption_tokens=48, grain=3.0)
HARBOUR["probe"] = {"side": 128, "patch": 4, "convolutions": [64, 128, 128], "layers": 2, "width": 192, "softest": 72,
                    "closer": 0.12}
HARBOUR["things"] = ["kind", "colour", "material", "size"]

HARBOUR_LARGE = copy.deepcopy(HARBOUR)
HARBOUR_LARGE["video"].update(sizes=[[256, 256], [320, 176], [176, 320]], frames=33, fps=16, grain=2.0)
HARBOUR_LARGE["autoencoder"].update(patch_size=2, latent_channels=64, encoder_channels=[48, 64, 128, 192],
                                    decoder_channels=[192, 128, 64, 32])
HARBOUR_LARGE["text_encoder"].update(d_model=384, num_heads=6, d_ff=1024, num_layers=3)
HARBOUR_LARGE["transformer"].update(num_layers=8, num_attention_heads=6, ffn_dim=1536, text_dim=384, in_channels=64,
                                    out_channels=64)

MODELS = {"meadow": MEADOW, "harbour": HARBOUR, "harbour-large": HARBOUR_LARGE}

CPU = {
    "device": "cpu",
    "seed": 20240,
    "autoencoder": {"minutes": 45, "batch": 6, "frames": 9, "crop": 64, "whole": 1, "whole_every": 4, "lr": 1e-3,
                    "muon_lr": 1e-3, "pool": 384, "noise": 0.1, "fast": 0.25, "ahead": False, "renew": 30,
                    "scenes": 8, "report": 100},
    "decoder": {"minutes": 15, "batch": 6, "frames": 9, "crop": 64, "whole": 1, "whole_every": 6, "lr": 1e-3,
                "muon_lr": 1e-3, "pool": 384, "noise": 0.12, "ema": 0.995, "fast": 0.5, "guesses": 2, "scenes": 8,
                "report": 100, "bf16": False},
    "latents": {"clips": 8192, "shard": 256, "batch": 2, "minutes": 20, "fast": 0.25, "ahead": False, "seen": False},
    "probe": {"minutes": 4, "batch": 32, "lr": 1e-3, "muon_lr": 1e-3, "pool": 256, "held": 512,
              "fresh": 1, "workers": 0, "ahead": False, "report": 100, "bf16": False},
    "text": {"minutes": 2, "batch": 64, "lr": 1e-3, "muon_lr": 2e-3, "confusable": 0.3},
    "teacher": {"minutes": 65, "batch": 32, "lr": 1e-3, "muon_lr": 2e-3, "ema": 0.995, "given": 0.15,
                "naming": 0.1, "placing": 0.1, "reading": 0.1, "confusable": 0.15, "bake": 1.0, "guidance": 2.5},
    "lora": {"minutes": 90, "batch": 8, "lr": 4e-3, "ema": 0.998, "given": 0.15, "confusable": 0.15, "guidance": 3.0},
    "distill": {"minutes": 15, "batch": 16, "lr": 3e-4, "muon_lr": 5e-4, "lora_lr": 1e-3, "ema": 0.98, "given": 0.15,
                "guidance": 3.0, "steps": 4, "substeps": 2, "walkers": 8, "replay": 3, "keep": 2048},
}

GPU = copy.deepcopy(CPU)
GPU["device"] = "cuda"
GPU["autoencoder"].update(minutes=30, batch=96, whole=8, pool=24000, renew=10, scenes=64, report=500)
GPU["decoder"].update(minutes=20, batch=96, whole=8, pool=768, guesses=16, scenes=64, bf16=True)
GPU["latents"].update(clips=400000, shard=128, batch=64, minutes=20)
GPU["text"].update(batch=128)
GPU["probe"].update(batch=256, pool=16000, bf16=True)
# activations of harbour-large take about 0.23 GB a clip
GPU["teacher"].update(minutes=60, batch=256, muon_lr=3e-3, ema=0.998, given=0.25)
GPU["distill"].update(minutes=30, batch=128, walkers=128, muon_lr=1e-3, given=0.25)

PRESETS = {"cpu": CPU, "gpu": GPU}


def use(model):
    """Makes a model's parts the module's MODEL, WORLD, VIDEO, AUTOENCODER, TEXT_ENCODER, TRANSFORMER, PROBE and
    THINGS and LORAS."""
    globals().update({part.upper(): value for part, value in MODELS[model].items()}, MODEL=model)


use(os.environ.get("KINORA_MODEL", "meadow"))


def named(size):
    return f"{size[0]}x{size[1]}"


def own_sizes():
    """The sizes that the denoiser makes with its weights as they are."""
    return [size for size in VIDEO["sizes"] if named(size) not in LORAS]


def lora_size(text=None):
    """The size of this name that has a low-rank change, the first one if absent."""
    offered = [size for size in VIDEO["sizes"] if named(size) in LORAS]
    for size in offered:
        if text in (None, named(size)):
            return size
    raise SystemExit(f"--size {text}: sizes with a low-rank change are {', '.join(map(named, offered)) or 'none'}")


def cell():
    """Pixels along the side of a latent element."""
    return 8 * AUTOENCODER["patch_size"]


def padded(size):
    """The size (width, height) rounded up to whole tokens: 176x96 is the middle of a clip of 192x96."""
    token = cell() * TRANSFORMER["patch_size"][1]
    return [-(-length // token) * token for length in size]


def work_dir(value=None):
    """The folder of checkpoints and caches: --work, $KINORA_WORK or training/runs."""
    path = Path(value or os.environ.get("KINORA_WORK") or Path(__file__).parent / "runs")
    path.mkdir(parents=True, exist_ok=True)
    return path


class Parser(argparse.ArgumentParser):
    """Puts the model that the command line names into use."""

    def parse_args(self, *args, **options):
        parsed = super().parse_args(*args, **options)
        use(parsed.model)
        return parsed


def arguments(stage, description):
    """Parser shared by the stages: --model, --preset, --device, --work, --minutes, --set key=value."""
    cores = len(os.sched_getaffinity(0))
    parser = Parser(description=description)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--model", choices=sorted(MODELS), default=os.environ.get("KINORA_MODEL", "meadow"))
    parser.add_argument("--device", help="cpu or cuda; the preset's choice if absent")
    parser.add_argument("--work", help="folder of checkpoints and caches")
    parser.add_argument("--minutes", type=float, help="wall time of this run of the stage")
    parser.add_argument("--until", type=float, metavar="TIME",
                        help="seconds since 1970 at which this run ends, to be gone on with")
    parser.add_argument("--threads", type=int, default=max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))),
                        help="CPU threads")
    parser.add_argument("--eager", action="store_true", help="do not use torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change one setting of the stage, a JSON value")
    parser.set_defaults(stage=stage)
    return parser


def settings(args):
    """The preset's dictionary for args.stage, with the command line applied."""
    import torch

    use(args.model)  # again, for processes that were spawned
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
    options["until"] = args.until
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    torch.backends.cudnn.benchmark = True  # shapes are few and come back
    return options
