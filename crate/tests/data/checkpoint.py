"""Writes checkpoint.pt with PyTorch itself and the same values as expected.safetensors: what the reader must find.

    python checkpoint.py
"""

from collections import OrderedDict

import torch
from safetensors.torch import save_file


def main() -> None:
    torch.manual_seed(7)
    shared = torch.randn(6, 8)
    weights = OrderedDict(
        plain=torch.randn(3, 5),
        half=torch.randn(4, 4).half(),
        brain=torch.randn(4, 4).bfloat16(),
        double=torch.randn(2, 3).double(),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        # Views of one storage: one with an offset, one transposed.
        view=shared[2:4],
        transposed=shared.t(),
        whole=shared,
    )
    weights["model._fsdp_wrapped_module.blocks.0.weight"] = torch.ones(2, 2)
    module = torch.nn.Linear(2, 2)
    torch.save(
        {
            "generator": module.state_dict(),
            "generator_ema": weights,
            "step": torch.tensor(700),
            "lr": 2e-6,
            "config": {"name": "a", "list": [1, 2, None, True]},
        },
        "checkpoint.pt",
    )
    named = {name: value.detach().float().contiguous().clone() for name, value in weights.items()}
    save_file(named, "expected.safetensors")


if __name__ == "__main__":
    main()
