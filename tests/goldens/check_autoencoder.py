"""Holds `training/autoencoder.py` to tensors computed by madebyollin/taehv `taehv.py` with the TAEW2.1 layout.

    python tests/goldens/check_autoencoder.py FOLDER

FOLDER holds taew2_1-random-weights.safetensors and taew2_1-golden.safetensors (`latent`, `frames`, `video`,
`encoded`, batch first, then time). They are not part of the project.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2]))
from training.autoencoder import Autoencoder  # noqa: E402

TAEW2_1 = {
    "image_channels": 3, "latent_channels": 16, "patch_size": 1, "encoder_padding": "trailing",
    "encoder_channels": [64] * 4, "decoder_channels": [256, 128, 64, 64],
    "encoder_time_downscale": [True, True, False], "decoder_time_upscale": [False, True, True],
    "decoder_space_upscale": [True, True, True],
}


@torch.no_grad()
def main(folder):
    model = Autoencoder(TAEW2_1)
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "taew2_1-random-weights.safetensors").items()})
    golden = load_file(folder / "taew2_1-golden.safetensors")
    frames = model.decode(golden["latent"].transpose(1, 2)).clamp(0, 1)
    encoded = model.encode(golden["video"]).transpose(1, 2)
    for name, result in (("frames", frames), ("encoded", encoded)):
        error = (result - golden[name]).abs().max().item()
        print(f"{name}: largest difference {error:.2e}")
        assert error < 1e-4


if __name__ == "__main__":
    main(Path(sys.argv[1]))
