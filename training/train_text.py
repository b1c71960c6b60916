"""Stage 2b: teach the text encoder what captions say, before the denoiser sees it.

    python -m training.train_text [--preset cpu] [--minutes 2]

The last state of a caption (its </s>) has to name every attribute of the scene. Captions leave attributes out, so the
loss does not reach 0; what counts is that it meets full captions. The denoiser then starts from embeddings in which
colour, shape and motion already lie apart, and need not find that out through a noisy picture. The encoder trains on
with the denoiser. Writes text.pt; one that is there is trained on. Resumes from text-state.pt.

With --beside the encoder of teacher.pt is trained on: its states stay near those that the denoiser knows, but for the
captions that are easily taken for each other. It takes the old one's place in teacher.pt.
"""

import random

import torch

from . import presets, tokenizer as tokenizers, worlds
from .data import attribute_indices, encode, naming_loss, share_right
from .model import TextToVideo
from .optim import Muon, groups
from .progress import Interruptible, note, save_weights, tell


class AttributeReader(torch.nn.Linear):
    """Logits of all attributes, side by side, from a state [.., D]; `loss` is the sum of the cross entropies."""

    def __init__(self, width):
        self.sizes = [len(values) for values in worlds.ATTRIBUTES.values()]
        super().__init__(width, sum(self.sizes))

    def parts(self, states):
        return self(torch.nn.functional.layer_norm(states, states.shape[-1:])).float().split(self.sizes, -1)

    def loss(self, states, attributes):
        """Mean over the leading dimensions of `states` [B, ..., D]; attributes [B, A]."""
        extra = states.dim() - 2
        total = 0.0
        for i, part in enumerate(self.parts(states)):
            total = total + naming_loss(part, attributes[:, i].view(-1, *[1] * extra).expand(part.shape[:-1]))
        return total


def captioned(rng, tokenizer, count, full, confusable=0.0):
    """Token ids, attributes and which captions are confusable; at least a share `confusable` of them."""
    described = [worlds.scene_like(rng, worlds.confusable) if rng.random() < confusable else worlds.random_scene(rng)
                 for _ in range(count)]
    texts = [worlds.caption(scene, rng, full=full or rng.random() < 0.5) for scene in described]
    hard = torch.tensor([worlds.confusable(scene) for scene in described])
    return encode(tokenizer, texts), attribute_indices(described), hard


AT_ONCE = 16  # batches drawn together


def alike(ids, attributes, hard, batch, rng):
    """Batches of captions of like length, cut down to the longest of them: half of what captions are padded with
    costs no time then."""
    lengths = (ids != 0).sum(1)
    batches = list(lengths.argsort().split(batch))
    rng.shuffle(batches)
    return [(ids[rows, :lengths[rows].max()], attributes[rows], hard[rows]) for rows in batches]


def states_and_last(model, ids):
    """States [B, L, D] of captions and those of their </s> [B, D]."""
    states, lengths = model.encode_text(ids)
    return states, states[torch.arange(len(ids)), lengths - 1]


def last_states(model, ids):
    return states_and_last(model, ids)[1]


def is_block_matrix(name, parameter):
    return parameter.ndim == 2 and ".block." in name and "relative_attention_bias" not in name


@torch.no_grad()
def read_right(model, reader, tokenizer, rng, confusable, count=512):
    """Share of full captions from whose last state each attribute is read, as text."""
    ids, attributes, _ = captioned(rng, tokenizer, count, True, confusable)
    device = next(model.parameters()).device
    parts = reader.parts(last_states(model, ids.to(device)))
    return ", ".join(f"{name} {share_right(part.cpu(), attributes[:, i]):.3f}"
                     for i, (name, part) in enumerate(zip(worlds.ATTRIBUTES, parts)))


def main():
    parser = presets.arguments("text", __doc__)
    parser.add_argument("--beside", action="store_true", help="train on the encoder of teacher.pt")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 20)
    rng = random.Random(options["seed"] + 21)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size()).to(device)
    known = None
    if args.beside:
        known = TextToVideo(tokenizer.get_vocab_size()).to(device).requires_grad_(False)
        known.load_state_dict(torch.load(work / "teacher.pt", map_location=device))
        model.text_encoder.load_state_dict(known.text_encoder.state_dict())
    elif (work / "text.pt").exists():
        model.text_encoder.load_state_dict(torch.load(work / "text.pt", map_location=device))
        note(work, "text: goes on from text.pt")
    reader = AttributeReader(presets.TEXT_ENCODER["d_model"]).to(device)
    trained = torch.nn.ModuleDict({"text_encoder": model.text_encoder, "reader": reader})
    optimiser = Muon(groups(trained.named_parameters(), is_block_matrix, options["muon_lr"], options["lr"], 0.01))
    stage = Interruptible(work, "text", options, rng, trained=trained, optimiser=optimiser)
    batches, totals = [], torch.zeros(2)
    while stage.running():
        optimiser.set_scale(min((stage.step + 1) / 50, 1.0, (1.0 - stage.clock.done) / 0.3 + 0.01))
        if not batches:
            drawn = captioned(rng, tokenizer, AT_ONCE * options["batch"], False, options["confusable"])
            batches = alike(*drawn, options["batch"], rng)
        ids, attributes, hard = batches.pop()
        ids = ids.to(device)
        states, last = states_and_last(model, ids)
        loss, apart = reader.loss(last, attributes.to(device)), torch.zeros(())
        if known is not None:
            near = (~hard).float().to(device)[:, None, None]
            old = known.encode_text(ids)[0]
            apart = ((states - old) * near).square().sum() / (old * near).square().sum().clamp_min(1.0)
        (loss + apart).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        trained.zero_grad(set_to_none=True)
        stage.step, totals = stage.step + 1, totals + torch.tensor([loss.item(), apart.item()])
        if stage.step % 100 == 0:
            tell(work, "text", stage.step, stage.clock.elapsed, f"loss {totals[0] / 100:.3f} apart {totals[1] / 100:.4f}")
            totals.zero_()
    if not stage.finished():
        return
    save_weights(work / "text.pt", model.text_encoder.state_dict())
    if known is not None:
        known.text_encoder.load_state_dict(model.text_encoder.state_dict())
        save_weights(work / "teacher.pt", known.state_dict())
        note(work, f"text: {apart.item():.3f} of the square of the states that the denoiser knows is new")
    for name, share in (("full", 0.0), ("confusable", 1.0)):
        note(work, f"text: {stage.step} steps; read from {name} captions: {read_right(model, reader, tokenizer, rng, share)}")


if __name__ == "__main__":
    main()
