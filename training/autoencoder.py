"""The video autoencoder: layers, numbering and names of TAEHV (madebyollin/taehv `taehv.py`).

Only the widths come from the settings (`encoder_channels`, `decoder_channels`)
and the frame padding of the encoder may be "leading" (frame 0 repeated in front)
instead of TAEHV's "trailing". Video is [B, T, 3, H, W] in 0..1, latents are
[B, C, F, H/16, W/16], about unit variance in each channel.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv3(n_in, n_out, **options):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


class Clamp(nn.Module):
    """Soft limit of latents to -3..3."""

    def forward(self, x):
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Residual block that also sees its own input one frame earlier."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(conv3(width * 2, width), nn.ReLU(), conv3(width, width), nn.ReLU(),
                                  conv3(width, width))

    def forward(self, x, past):
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)


class TPool(nn.Module):
    """Joins `stride` neighbouring frames into one."""

    def __init__(self, width, stride):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x):
        _, c, h, w = x.shape
        return self.conv(x.reshape(-1, self.stride * c, h, w))


class TGrow(nn.Module):
    """Turns one frame into `stride` frames."""

    def __init__(self, width, stride):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x):
        _, c, h, w = x.shape
        return self.conv(x).reshape(-1, c, h, w)


def run_over_time(layers, x, channels_last=False):
    """Apply `layers` to [B, T, C, H, W]; memory blocks get the frame before, zeros before the first."""
    batch = x.shape[0]
    x = x.flatten(0, 1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for layer in layers:
        if isinstance(layer, MemBlock):
            frames = x.unflatten(0, (batch, -1))
            past = torch.cat([torch.zeros_like(frames[:, :1]), frames[:, :-1]], 1).flatten(0, 1)
            x = layer(x, past)
        else:
            x = layer(x)
    return x.unflatten(0, (batch, -1))


class Autoencoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        patch, colours = config["patch_size"], config["image_channels"]
        pixels = colours * patch * patch
        latent = config["latent_channels"]
        e, d = config["encoder_channels"], config["decoder_channels"]

        layers = [conv3(pixels, e[0]), nn.ReLU()]
        for i, pool in enumerate(config["encoder_time_downscale"]):
            layers += [TPool(e[i], 2 if pool else 1), conv3(e[i], e[i + 1], stride=2, bias=False)]
            layers += [MemBlock(e[i + 1]) for _ in range(3)]
        self.encoder = nn.Sequential(*layers, conv3(e[3], latent))

        layers = [Clamp(), conv3(latent, d[0]), nn.ReLU()]
        for i, grow in enumerate(config["decoder_time_upscale"]):
            layers += [MemBlock(d[i]) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2 if config["decoder_space_upscale"][i] else 1),
                       TGrow(d[i], 2 if grow else 1), conv3(d[i], d[i + 1], bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), conv3(d[3], pixels))

        self.time_scale = 2 ** sum(config["encoder_time_downscale"])
        self.trim = 2 ** sum(config["decoder_time_upscale"]) - 1
        self.channels_last = False
        self._initialise()

    def _initialise(self):
        """Variance-keeping weights, memory blocks near the identity, first pictures mid-grey."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                gain = "relu" if module.kernel_size[0] == 3 else "linear"
                nn.init.kaiming_normal_(module.weight, nonlinearity=gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, MemBlock):
                    module.conv[4].weight *= 0.2
            self.decoder[-1].weight *= 0.1
            self._colour_path()

    def _colour_path(self):
        """Let the first channels carry the mean colour of each latent cell from end to end.

        The untrained network is then a coarse thumbnail with linear
        interpolation, and training starts at detail instead of at a long
        plateau of grey pictures.
        """
        colours, shuffled = self.config["image_channels"], self.config["patch_size"] ** 2
        smooth = torch.tensor([0.25, 0.5, 0.25])
        for side in (self.encoder, self.decoder):
            for index, layer in enumerate(side):
                for c in range(colours):
                    if isinstance(layer, MemBlock):
                        layer.conv[4].weight[c] = 0
                    elif isinstance(layer, TPool):
                        width = layer.conv.weight.shape[0]
                        layer.conv.weight[c] = 0
                        layer.conv.weight[c, c::width] = 1 / layer.stride
                    elif isinstance(layer, TGrow):
                        width = layer.conv.weight.shape[1]
                        layer.conv.weight[c::width] = 0
                        layer.conv.weight[c::width, c] = 1
                    elif isinstance(layer, nn.Conv2d):
                        if side is self.decoder and index == len(side) - 1:
                            layer.weight[c * shuffled:(c + 1) * shuffled, c, 1, 1] = 1
                            continue
                        layer.weight[c] = 0
                        if side is self.encoder and index == 0:
                            layer.weight[c, c * shuffled:(c + 1) * shuffled, 1, 1] = 1 / shuffled
                        elif layer.stride[0] == 2:
                            layer.weight[c, c, 1:, 1:] = 0.25
                        elif side is self.decoder and index == 1:
                            # normalised colours back to about 0..1
                            layer.weight[c, c, 1, 1] = 0.25
                            layer.bias[c] = 0.5
                        elif side is self.decoder:
                            layer.weight[c, c] = smooth[:, None] * smooth
                        else:
                            layer.weight[c, c, 1, 1] = 1

    def encode(self, video):
        """Latents [B, C, F, h, w] of video [B, T, 3, H, W]."""
        missing = -video.shape[1] % self.time_scale
        if missing and self.config["encoder_padding"] == "leading":
            video = torch.cat([video[:, :1].expand(-1, missing, -1, -1, -1), video], 1)
        elif missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
        x = F.pixel_unshuffle(video, self.config["patch_size"])
        return run_over_time(self.encoder, x, self.channels_last).transpose(1, 2)

    def decode(self, latents):
        """Video [B, 4F-3, 3, H, W] of latents [B, C, F, h, w], not clamped."""
        x = run_over_time(self.decoder, latents.transpose(1, 2), self.channels_last)
        return F.pixel_shuffle(x, self.config["patch_size"])[:, self.trim:]

    @torch.no_grad()
    def fold_normalisation(self, mean, std):
        """Make the encoder return (latent - mean) / std per channel by changing its last convolution."""
        last = self.encoder[-1]
        last.weight /= std[:, None, None, None]
        last.bias.sub_(mean).div_(std)


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of pictures in 0..1, mean over the clips."""
    error = (a.clamp(0, 1) - b).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp_min(1e-10))).mean().item()
