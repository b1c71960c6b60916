"""bf16 for the passes of the networks, where the hardware multiplies it faster than f32.

Weights, losses, optimiser states and every measurement stay f32. On a CPU with AMX a step of the autoencoder takes half
the time. One of the decoder alone, with windows of 64 pixels, takes 1.16 times as long, and one of the probe of
`harbour` 1.3 times; the setting `bf16` of those stages is false there. The others were not timed. On a CPU with AVX-512
BF16 but no AMX a step of the teacher takes 1.5 times as long in bf16.
"""

import torch


def bf16(device):
    """Whether the device multiplies bf16 in hardware."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


def autocast(device, wanted=True):
    """A context in which matrix products and convolutions run in bf16 where it is `wanted` and `bf16(device)`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=wanted and bf16(device))
