"""Stage 2b: teach the text encoder what captions say, before the denoiser sees it.

    python -m training.train_text [--preset cpu] [--minutes 2]

The last state of a caption (its </s>) has to name every attribute of the scene. Captions leave attributes out, so the
loss does not reach 0; what counts is that it meets full captions. The denoiser then starts from embeddings in which
colour, shape and motion already lie apart, and need not find that out through a noisy picture. The encoder trains on
with the denoiser. Writes text.pt.
"""

import random
import time

import torch

from . import presets, tokenizer as tokenizers, worlds
from .data import attribute_indices, encode, naming_loss, share_right
from .model import TextToVideo
from .optim import Muon, groups
from .progress import note


class AttributeReader(torch.nn.Linear):
    """Logits of all attributes, side by side, from a state [.., D]; `loss` is the sum of the cross entropies."""

    def __init__(self, width):
        self.sizes = [len(values) for values in worlds.ATTRIBUTES.values()]
        super().__init__(width, sum(self.sizes))

    def parts(self, states):
        return self(torch.nn.functional.layer_norm(states, states.shape[-1:])).split(self.sizes, -1)

    def loss(self, states, attributes):
        """Mean over the leading dimensions of `states` [B, ..., D]; attributes [B, A]."""
        extra = states.dim() - 2
        total = 0.0
        for i, part in enumerate(self.parts(states)):
            total = total + naming_loss(part, attributes[:, i].view(-1, *[1] * extra).expand(part.shape[:-1]))
        return total


def captioned(rng, tokenizer, count, full):
    described = [worlds.random_scene(rng) for _ in range(count)]
    texts = [worlds.caption(scene, rng, full=full) for scene in described]
    return encode(tokenizer, texts), attribute_indices(described)


def last_states(model, ids):
    states, lengths = model.encode_text(ids)
    return states[torch.arange(len(ids)), lengths - 1]


def main():
    args = presets.arguments("text", __doc__).parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 20)
    rng = random.Random(options["seed"] + 21)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size()).to(device)
    reader = AttributeReader(presets.TEXT_ENCODER["d_model"]).to(device)
    trained = torch.nn.ModuleDict({"text_encoder": model.text_encoder, "reader": reader})
    optimiser = Muon(groups(trained.named_parameters(), lambda n, p: False, 0.0, options["lr"], 0.01))
    budget, start, step, total = options["minutes"] * 60, time.time(), 0, 0.0
    while (done := (time.time() - start) / budget) < 1:
        optimiser.set_scale(min((step + 1) / 50, 1.0, (1.0 - done) / 0.3 + 0.01))
        ids, attributes = captioned(rng, tokenizer, options["batch"], full=False)
        loss = reader.loss(last_states(model, ids.to(device)), attributes.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        trained.zero_grad(set_to_none=True)
        step, total = step + 1, total + loss.item()
        if step % 100 == 0:
            print(f"step {step} loss {total / 100:.3f}", flush=True)
            total = 0.0
    with torch.no_grad():
        ids, attributes = captioned(rng, tokenizer, 512, full=True)
        parts = reader.parts(last_states(model, ids.to(device)))
        right = {name: share_right(part.cpu(), attributes[:, i])
                 for i, (name, part) in enumerate(zip(worlds.ATTRIBUTES, parts))}
    torch.save(model.text_encoder.state_dict(), work / "text.pt")
    note(work, f"text: finished, {step} steps; read from full captions: "
               + ", ".join(f"{name} {share:.3f}" for name, share in right.items()))


if __name__ == "__main__":
    main()
