"""Low-rank changes of a denoiser's matrices: y = W x + B A x with A [rank, inputs] and B [outputs, rank].

After Hu et al., "LoRA: Low-rank adaptation of large language models" (2021). The weights themselves stay as they are,
so that whoever does not use the change loses nothing by it. Files have peft's keys and f16 values, which the engine
reads as any other LoRA.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# Of every block what mixes places and what works on each of them. What a prompt says is the same in any picture, so the
# attention to the text stays as it is.
IN_BLOCKS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")


class LowRank(torch.nn.Module):
    """A linear layer with a change beside it, which is nothing at first."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(rank, base.in_features) / base.in_features ** 0.5)
        self.up = torch.nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def layers(transformer):
    """Names of the layers that are changed."""
    return [f"blocks.{index}.{name}" for index in range(len(transformer.blocks)) for name in IN_BLOCKS] + ["proj_out"]


def attach(transformer, rank):
    """Puts a change beside every layer, once; after that only the changes can learn."""
    transformer.requires_grad_(False)
    for name in layers(transformer):
        layer = transformer.get_submodule(name)
        if not isinstance(layer, LowRank):
            device = layer.weight.device
            transformer.set_submodule(name, LowRank(layer, rank).to(device))


def changes(transformer):
    """The changes by their names in a file."""
    found = {}
    for name in layers(transformer):
        layer = transformer.get_submodule(name)
        found[f"transformer.{name}.lora_A.weight"] = layer.down
        found[f"transformer.{name}.lora_B.weight"] = layer.up
    return found


@torch.no_grad()
def put(transformer, tensors):
    """Gives the changes the values of a file, or with None takes them away."""
    for name, parameter in changes(transformer).items():
        if tensors is not None:
            parameter.copy_(tensors[name])
        elif name.endswith("lora_B.weight"):
            parameter.zero_()


def write(path, tensors):
    """Through a temporary file."""
    temporary = path.with_name("part-" + path.name)
    save_file({name: value.detach().half().contiguous().cpu() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def save(path, transformer):
    write(path, changes(transformer))


def load(path):
    return {name: value.float() for name, value in load_file(path).items()}


# with {width}x{height}. behind it, what comes before a change's own names in an exported or packed model
IN_MODEL = "transformer.size_loras."


def exported(size, tensors):
    """The values of a file by their names in an exported model."""
    return {f"{IN_MODEL}{size}.{name.removeprefix('transformer.')}": value for name, value in tensors.items()}


def taken_apart(tensors):
    """An exported model's tensors without the changes, and those by size: {"176x96": values of a file}."""
    plain, found = {}, {}
    for name, value in tensors.items():
        if name.startswith(IN_MODEL):
            size, _, rest = name.removeprefix(IN_MODEL).partition(".")
            found.setdefault(size, {})["transformer." + rest] = value
        else:
            plain[name] = value
    return plain, found


def merged(tensors, change):
    """Weights by their names in an exported model, with a change added to them."""
    changed = dict(tensors)
    for name, down in change.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            changed[f"{layer}.weight"] = tensors[f"{layer}.weight"] + change[f"{layer}.lora_B.weight"] @ down
    return changed


def path_of(work, role, size):
    """The file of a size's change of the teacher or a student."""
    return work / f"{role}-{size[0]}x{size[1]}.safetensors"
