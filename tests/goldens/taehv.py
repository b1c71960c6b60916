"""TAEHV, the tiny video autoencoder, after madebyollin/taehv `taehv.py` (MIT): same maths, same tensor names.

Video is [T, C, H, W]. The channel widths, fixed in the original, are arguments here.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Clamp(nn.Module):
    """Keeps latents in (-3, 3) smoothly."""

    def forward(self, x):
        return 3 * torch.tanh(x / 3)


class MemBlock(nn.Module):
    """Three convolutions over a frame and the frame before it (zeros before the first), plus a skip."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x):
        past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return F.relu(x + self.conv(torch.cat([x, past], dim=1)))


class TPool(nn.Module):
    """Merges `stride` neighbouring frames: their channels stacked, then a 1x1 convolution."""

    def __init__(self, channels, stride):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, 1, bias=False)

    def forward(self, x):
        frames, channels, height, width = x.shape
        return self.conv(x.reshape(frames // self.stride, channels * self.stride, height, width))


class TGrow(nn.Module):
    """Makes `stride` frames of one: a 1x1 convolution, its channels split into frames."""

    def __init__(self, channels, stride):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x):
        frames, channels, height, width = x.shape
        return self.conv(x).reshape(frames * self.stride, channels, height, width)


class Taehv(nn.Module):
    """Built from a manifest's `autoencoder` section."""

    def __init__(self, config):
        super().__init__()
        self.patch = config["patch_size"]
        self.leading = config["encoder_padding"] == "leading"
        pixels = config["image_channels"] * self.patch**2
        latent = config["latent_channels"]

        wide = config["encoder_channels"]
        layers = [nn.Conv2d(pixels, wide[0], 3, padding=1), nn.ReLU()]
        for stage, halve_time in enumerate(config["encoder_time_downscale"]):
            here, there = wide[stage], wide[stage + 1]
            layers += [TPool(here, 2 if halve_time else 1), nn.Conv2d(here, there, 3, 2, padding=1, bias=False)]
            layers += [MemBlock(there) for _ in range(3)]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(wide[3], latent, 3, padding=1))
        self.time_down = 2 ** sum(config["encoder_time_downscale"])

        wide = config["decoder_channels"]
        layers = [Clamp(), nn.Conv2d(latent, wide[0], 3, padding=1), nn.ReLU()]
        for stage in range(3):
            here, there = wide[stage], wide[stage + 1]
            layers += [MemBlock(here) for _ in range(3)]
            layers += [
                nn.Upsample(scale_factor=2 if config["decoder_space_upscale"][stage] else 1),
                TGrow(here, 2 if config["decoder_time_upscale"][stage] else 1),
                nn.Conv2d(here, there, 3, padding=1, bias=False),
            ]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(wide[3], pixels, 3, padding=1))
        self.trim = 2 ** sum(config["decoder_time_upscale"]) - 1

    def encode(self, frames):
        """[T, 3, H, W] in 0..1 -> latents [F, C, h, w]. Padding repeats the first or the last frame."""
        missing = -len(frames) % self.time_down
        if missing and self.leading:
            frames = torch.cat([frames[:1].expand(missing, -1, -1, -1), frames])
        elif missing:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        return self.encoder(F.pixel_unshuffle(frames, self.patch))

    def decode(self, latents):
        """Latents [F, C, h, w] -> [T, 3, H, W] in 0..1, without the frames that precede the clip."""
        frames = F.pixel_shuffle(self.decoder(latents), self.patch)
        return frames.clamp(0, 1)[self.trim:]


def check(folder):
    """Holds this file to tensors computed by the original implementation with the TAEW2.1 layout."""
    from safetensors.torch import load_file

    model = Taehv({
        "image_channels": 3, "latent_channels": 16, "patch_size": 1, "encoder_padding": "trailing",
        "encoder_channels": [64] * 4, "decoder_channels": [256, 128, 64, 64],
        "encoder_time_downscale": [True, True, False], "decoder_time_upscale": [False, True, True],
        "decoder_space_upscale": [True, True, True],
    })
    model.load_state_dict({k: v.float() for k, v in load_file(f"{folder}/taew2_1-random-weights.safetensors").items()})
    golden = load_file(f"{folder}/taew2_1-golden.safetensors")
    with torch.no_grad():
        for name, result in (("frames", model.decode(golden["latent"][0])), ("encoded", model.encode(golden["video"][0]))):
            error = (result - golden[name][0]).abs().max().item()
            print(f"{name}: largest difference {error:.2e}")
            assert error < 1e-4


if __name__ == "__main__":
    import sys

    check(sys.argv[1])
