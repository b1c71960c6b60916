"""Stage 3a, when wanted: fit a trained autoencoder to wider `decoder_channels`, more `latent_channels` or another
`decoder_time_upscale`.

    python -m training.widen

After the settings of the autoencoder got wider, autoencoder.pt of the old widths is put into the corner of the new
layers. The old channels read nothing from the new ones at first, so the decoder computes what it did (after Chen et
al., "Net2Net: accelerating learning via knowledge transfer", 2016, with zeros instead of copies), and
`train_decoder` goes on from there. The encoder, and with it all latents, stays as it is.

New latent channels are random features that the decoder does not read yet: `train_autoencoder` goes on from there, and
all latents have to be made again.

Where frames now multiply at another stage, a layer that newly makes two frames starts with the same one twice, and one
that made two starts with their mean: not what it computed, but near enough to be quicker than a fresh start.
"""

import torch

from . import presets
from .autoencoder import Autoencoder, MemBlock, TGrow
from .progress import note, save_weights


def widths(state):
    """The decoder's channels that a state dictionary was made with."""
    plain = {int(name.split(".")[1]): value.shape[0] for name, value in state.items()
             if name.startswith("decoder.") and name.endswith(".weight") and value.shape[-1] == 3 and ".conv." not in name}
    return [plain[index] for index in sorted(plain)][:-1]


def place(count, old, new):
    """Where `count` old channels, in groups of `old`, lie among groups of `new`."""
    return torch.tensor([group * new + i for group in range(count // old) for i in range(old)])


@torch.no_grad()
def put(layer, weight, bias, outs, ins, quiet):
    """Set the old weights at rows `outs` and columns `ins`; old rows ignore new columns, new rows rest if `quiet`."""
    fresh = torch.zeros_like(layer.weight) if quiet else layer.weight.clone()
    fresh[outs] = 0
    rows = fresh[outs]
    rows[:, ins] = weight
    fresh[outs] = rows
    layer.weight.copy_(fresh)
    if bias is not None:
        layer.bias.zero_()
        layer.bias[outs] = bias


def regrown(weight, stride):
    """The weight of a TGrow layer that makes `stride` frames, from one that makes one or two."""
    before = weight.shape[0] // weight.shape[1]
    if before < stride:
        return weight.repeat(stride // before, 1, 1, 1)
    return weight.unflatten(0, (stride, before // stride, -1)).mean(1).flatten(0, 1)


@torch.no_grad()
def more_latents(state, encoder):
    """The encoder's part of a state dictionary with as many latent channels as `encoder` makes; the new ones random."""
    last = f"encoder.{len(encoder) - 1}"
    kept = {name: value for name, value in state.items() if name.startswith("encoder.")}
    for part, own in (("weight", encoder[-1].weight), ("bias", encoder[-1].bias)):
        old = kept[f"{last}.{part}"]
        kept[f"{last}.{part}"] = torch.cat([old, own[len(old):]])
    return kept


def widen(state, config):
    """The autoencoder of `config` that computes what `state` does."""
    state = dict(state)
    old, new = widths(state), config["decoder_channels"]
    if len(old) != len(new) or any(a > b for a, b in zip(old, new)):
        raise SystemExit(f"the decoder's channels {old} don't fit into {new}")
    model = Autoencoder(config)
    model.load_state_dict(model.state_dict() | more_latents(state, model.encoder))
    before, pixels = state["decoder.1.weight"].shape[1], config["image_channels"] * config["patch_size"] ** 2

    def fit(name, layer, outs, ins, quiet=False):
        """`outs` and `ins` are (old width, new width) of the channels."""
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        put(layer, weight, bias, place(weight.shape[0], *outs), place(weight.shape[1], *ins), quiet)

    stage, seen = 0, (before, config["latent_channels"])
    for index, layer in enumerate(model.decoder):
        name, here = f"decoder.{index}", (old[stage], new[stage])
        if isinstance(layer, MemBlock):
            fit(f"{name}.conv.0", layer.conv[0], here, here)
            fit(f"{name}.conv.2", layer.conv[2], here, here)
            fit(f"{name}.conv.4", layer.conv[4], here, here, quiet=True)
        elif isinstance(layer, TGrow):
            key = f"{name}.conv.weight"
            state[key] = regrown(state[key], layer.stride)
            fit(f"{name}.conv", layer.conv, here, here)
            stage, seen = stage + 1, here
        elif isinstance(layer, torch.nn.Conv2d):
            last = index == len(model.decoder) - 1
            fit(name, layer, (pixels, pixels) if last else here, seen, quiet=last)
            seen = here
    return model


def main():
    args = presets.arguments("autoencoder", __doc__).parse_args()
    work = presets.work_dir(args.work)
    state = torch.load(work / "autoencoder.pt", map_location="cpu")
    before, after = widths(state), presets.AUTOENCODER["decoder_channels"]
    model = widen(state, presets.AUTOENCODER)
    save_weights(work / "autoencoder.pt", model.state_dict())
    for name in ("decoder-state.pt", "decoder-clock.json"):  # of the narrow one
        (work / name).unlink(missing_ok=True)
    note(work, f"decoder: fitted from {before} to {after}, frames grow at {presets.AUTOENCODER['decoder_time_upscale']}")


def check():
    """A widened network computes what the narrow one does."""
    torch.manual_seed(0)
    narrow = dict(presets.AUTOENCODER, encoder_channels=[8, 8, 8, 8], decoder_channels=[16, 12, 8, 8])
    model = Autoencoder(narrow)
    for p in model.decoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    latents = torch.randn(1, narrow["latent_channels"], 3, 2, 2)
    with torch.no_grad():
        expected = model.decode(latents)
        wide = widen(model.state_dict(), dict(narrow, decoder_channels=[20, 16, 16, 12]))
        error = (wide.decode(latents) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, error
    grown = sum(p.numel() for p in wide.decoder.parameters()) - sum(p.numel() for p in model.decoder.parameters())
    assert grown > 0
    channels = narrow["latent_channels"]
    finer = widen(model.state_dict(), dict(narrow, latent_channels=channels + 4))
    video = torch.rand(1, 5, 3, 32, 32)
    assert torch.equal(finer.encode(video)[:, :channels], model.encode(video))
    assert (finer.decode(finer.encode(video)) - model.decode(model.encode(video))).abs().max() < 1e-4
    earlier = widen(model.state_dict(), dict(narrow, decoder_time_upscale=[True, True, False]))
    assert earlier.decode(latents).shape == expected.shape
    return error.item()


if __name__ == "__main__":
    main()
