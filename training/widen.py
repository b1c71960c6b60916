"""Stage 3a, when wanted: fit a trained autoencoder to wider `encoder_channels` or `decoder_channels`, more
`latent_channels` or another `decoder_time_upscale`.

    python -m training.widen

After the settings of the autoencoder got wider, autoencoder.pt of the old widths is put into the corner of the new
layers. The old channels read nothing from the new ones at first, so the decoder computes what it did (after Chen et
al., "Net2Net: accelerating learning via knowledge transfer", 2016, with zeros instead of copies), and
`train_decoder` goes on from there. The encoder, and with it all latents, stays as it is.

New channels of the encoder and new latent channels are random features that nothing old reads yet: `train_autoencoder`
goes on from there, and all latents have to be made again.

Where frames now multiply at another stage, a layer that newly makes two frames starts with the same one twice, and one
that made two starts with their mean: not what it computed, but near enough to be quicker than a fresh start.
"""

import torch

from . import presets
from .autoencoder import Autoencoder, MemBlock, TGrow, TPool
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


def encoder_widths(state):
    """The encoder's channels that a state dictionary was made with."""
    return [state["encoder.0.weight"].shape[0], *(state[f"encoder.{3 + 5 * stage}.weight"].shape[0] for stage in range(3))]


class Fitting:
    """Puts the layers of a state dictionary into the corner of wider ones."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, layer, outs, ins, quiet=False):
        """`outs` and `ins` are (old width, new width) of the channels."""
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        put(layer, weight, bias, place(weight.shape[0], *outs), place(weight.shape[1], *ins), quiet)

    def memory(self, name, block, width):
        self.conv(f"{name}.conv.0", block.conv[0], width, width)
        self.conv(f"{name}.conv.2", block.conv[2], width, width)
        self.conv(f"{name}.conv.4", block.conv[4], width, width, quiet=True)


def widen_encoder(fitting, model, widths, latents):
    """`widths` are (old, new) channels of every stage, `latents` those of the latents."""
    pixels = model.encoder[0].weight.shape[1]
    seen, stage = (pixels, pixels), 0
    for index, layer in enumerate(model.encoder):
        name = f"encoder.{index}"
        if isinstance(layer, MemBlock):
            fitting.memory(name, layer, seen)
        elif isinstance(layer, TPool):
            fitting.conv(f"{name}.conv", layer.conv, seen, seen)
        elif isinstance(layer, torch.nn.Conv2d):
            last = index == len(model.encoder) - 1
            here = latents if last else widths[stage]
            fitting.conv(name, layer, here, seen)
            seen, stage = here, stage + 1


def widen(state, config):
    """The autoencoder of `config` that computes what `state` does."""
    state = dict(state)
    old, new = widths(state), config["decoder_channels"]
    encoder = list(zip(encoder_widths(state), config["encoder_channels"]))
    if len(old) != len(new) or any(a > b for a, b in [*zip(old, new), *encoder]):
        raise SystemExit(f"the channels {[a for a, _ in encoder]} and {old} don't fit into "
                         f"{config['encoder_channels']} and {new}")
    model, fitting = Autoencoder(config), Fitting(state)
    latents = state["decoder.1.weight"].shape[1], config["latent_channels"]
    pixels = config["image_channels"] * config["patch_size"] ** 2
    widen_encoder(fitting, model, encoder, latents)

    stage, seen = 0, latents
    for index, layer in enumerate(model.decoder):
        name, here = f"decoder.{index}", (old[stage], new[stage])
        if isinstance(layer, MemBlock):
            fitting.memory(name, layer, here)
        elif isinstance(layer, TGrow):
            key = f"{name}.conv.weight"
            state[key] = regrown(state[key], layer.stride)
            fitting.conv(f"{name}.conv", layer.conv, here, here)
            stage, seen = stage + 1, here
        elif isinstance(layer, torch.nn.Conv2d):
            last = index == len(model.decoder) - 1
            fitting.conv(name, layer, (pixels, pixels) if last else here, seen, quiet=last)
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
    finer = widen(model.state_dict(), dict(narrow, latent_channels=channels + 4, encoder_channels=[8, 12, 16, 24]))
    video = torch.rand(1, 5, 3, 32, 32)
    assert (finer.encode(video)[:, :channels] - model.encode(video)).abs().max() < 1e-5
    assert (finer.decode(finer.encode(video)) - model.decode(model.encode(video))).abs().max() < 1e-4
    earlier = widen(model.state_dict(), dict(narrow, decoder_time_upscale=[True, True, False]))
    assert earlier.decode(latents).shape == expected.shape
    return error.item()


if __name__ == "__main__":
    main()
