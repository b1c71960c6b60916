"""Compiles what the teacher and the distillation will need, while another stage has the machine.

    python -m training.warm [--preset gpu]

torch.compile keeps what it has compiled ($TORCHINDUCTOR_CACHE_DIR); on a lent machine that has compiled nothing yet it
takes over a minute, in which a GPU would stand still. Only shapes count, so the numbers are random and no file of the
work folder is read or written.
"""

import copy

import torch

from . import presets, sampling
from .data import OBJECTS
from .model import TextToVideo
from .precision import autocast
from .train_teacher import Trained

WORDS = 64  # any vocabulary: what is compiled does not see it


def inputs(count, size, device):
    """Latents, their sigmas and token ids, as the stages make them."""
    ids = torch.randint(2, WORDS, (count, presets.VIDEO["caption_tokens"]), device=device)
    latents = torch.randn(count, *sampling.latent_shape(size), device=device)
    return latents, torch.rand(count, latents.shape[2], device=device), ids


def warm(device, teacher, distill, eager=False):
    """One step of each stage with its settings, for every size that they make."""
    model = TextToVideo(WORDS).to(device)
    if not eager:
        model.compiled()
    frozen = copy.deepcopy(model).requires_grad_(False)
    both = Trained(model).to(device)
    for size in presets.own_sizes():
        x, sigmas, ids = inputs(teacher["batch"], size, device)
        attributes = torch.zeros(len(x), len(both.head.sizes), dtype=torch.long, device=device)
        cells = torch.zeros(len(x), *x.shape[2:], 1 + len(presets.THINGS), dtype=torch.long, device=device)
        things = torch.zeros(len(x), OBJECTS, len(presets.THINGS), dtype=torch.long, device=device)
        with autocast(device):
            prediction, *told = both(x, sigmas, ids, attributes, cells, ids, attributes, torch.zeros_like(ids), things)
        (prediction.float().square().mean() + sum(told)).backward()
        for count in {2 * distill["batch"], distill["batch"]}:
            with autocast(device):
                prediction = model(*inputs(count, size, device))
            prediction.float().square().mean().backward()
        with torch.no_grad(), autocast(device):
            x, sigmas, ids = inputs(distill["walkers"], size, device)
            sampling.guided(frozen, x, sigmas, ids, distill["guidance"])


def main():
    args = presets.arguments("teacher", __doc__).parse_args()
    teacher = presets.settings(args)
    warm(teacher["device"], teacher, presets.PRESETS[args.preset]["distill"], args.eager)


if __name__ == "__main__":
    main()
