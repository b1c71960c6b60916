"""Stage 2b: teach the text encoder what captions say, before the denoiser sees it.

    python -m training.train_text [--preset cpu] [--minutes 2]

The last state of a caption (its </s>) has to name every attribute of the scene. Captions leave attributes out, so the
loss does not reach 0; what counts is that it meets full captions. The denoiser then starts from embeddings in which
colour, shape and motion already lie apart, and need not find that out through a noisy picture. The encoder trains on
with the denoiser. Writes text.pt; one that is there is trained on. Resumes from text-state.pt.

Where a world has several objects, every word has to tell which of them it speaks of and what that one is.

With --beside a new encoder takes the old one's place in teacher.pt. The denoiser knows the old one's states: how these
come out of the new ones, as well as a matrix can say it, becomes a part of its first text layer (model stitching, after
Lenc and Vedaldi, 2015), so that it need not learn all its words again. --minutes 0 puts text.pt in as it is.
"""

import random

import torch

from . import presets, tokenizer as tokenizers, worlds
from .data import OBJECTS, attribute_indices, encode_spans, naming_loss, share_right, standing, things_of
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


def spoken(whose, things):
    """What the object is that each word speaks of, UNKNOWN for those that speak of none: [B, L, A]."""
    return standing(whose[:, None, None], things)[:, 0, 0, :, 1:]


class WordReader(torch.nn.Linear):
    """Names, from the state of each word, the object that it speaks of: none, the first, the second.., and what that is.

    A caption's last state alone learns which of two colours is the first object's very late: the encoder of the first
    teacher of `harbour` guessed it after a million captions.
    """

    def __init__(self, width):
        self.sizes = [1 + OBJECTS, *(len(worlds.ATTRIBUTES[name]) for name in presets.THINGS)]
        super().__init__(width, sum(self.sizes))

    def parts(self, states):
        return self(torch.nn.functional.layer_norm(states, states.shape[-1:])).float().split(self.sizes, -1)

    def loss(self, states, whose, things):
        """Of states [B, L, D], whose each word is [B, L] (`encode_spans`) and what the objects are [B, K, A]."""
        whether, *names = self.parts(states)
        answers = spoken(whose, things)
        return naming_loss(whether, whose) + sum(naming_loss(logits, answers[..., i]) for i, logits in enumerate(names))


class Reader(torch.nn.Module):
    """What has to be read from captions: from the last state all that it says, and from each word's what it is about."""

    def __init__(self, width):
        super().__init__()
        self.whole = AttributeReader(width)
        self.words = WordReader(width) if presets.THINGS else None

    def loss(self, states, last, attributes, whose, things):
        whole = self.whole.loss(last, attributes)
        return whole + self.words.loss(states, whose, things) if self.words else whole


def captioned(rng, tokenizer, count, full, confusable=0.0):
    """Token ids, attributes, whose the tokens are and what the objects are; at least a share `confusable` of the captions
    is confusable."""
    described = [worlds.scene_like(rng, worlds.confusable) if rng.random() < confusable else worlds.random_scene(rng)
                 for _ in range(count)]
    ids, whose = encode_spans(tokenizer, [worlds.caption_spans(scene, rng, full=full or rng.random() < 0.5)
                                          for scene in described])
    return ids, attribute_indices(described), whose, things_of(described, OBJECTS)


AT_ONCE = 16  # batches drawn together


def alike(ids, attributes, whose, things, batch, rng):
    """Batches of captions of like length, cut down to the longest of them: half of what captions are padded with
    costs no time then."""
    lengths = (ids != 0).sum(1)
    batches = list(lengths.argsort().split(batch))
    rng.shuffle(batches)
    longest = [lengths[rows].max() for rows in batches]
    return [(ids[rows, :most], attributes[rows], whose[rows, :most], things[rows])
            for rows, most in zip(batches, longest)]


def states_and_last(model, ids):
    """States [B, L, D] of captions and those of their </s> [B, D]."""
    states, lengths = model.encode_text(ids)
    return states, states[torch.arange(len(ids)), lengths - 1]


def is_block_matrix(name, parameter):
    return parameter.ndim == 2 and ".block." in name and "relative_attention_bias" not in name


@torch.no_grad()
def read_right(model, reader, tokenizer, rng, confusable, count=512):
    """Share of full captions from whose last state each attribute is read, and of words that tell what they speak of, as
    text."""
    ids, attributes, whose, things = captioned(rng, tokenizer, count, True, confusable)
    states, last = states_and_last(model, ids.to(next(model.parameters()).device))
    right = {name: share_right(part.cpu(), attributes[:, i])
             for i, (name, part) in enumerate(zip(worlds.ATTRIBUTES, reader.whole.parts(last)))}
    if reader.words:
        whether, *names = (part.cpu() for part in reader.words.parts(states))
        right["whose a word is"] = share_right(whether.flatten(0, 1), whose.flatten())
        answers = spoken(whose, things).flatten(0, 1)
        for i, name in enumerate(presets.THINGS):
            right[f"{name} of a word"] = share_right(names[i].flatten(0, 1), answers[:, i])
    return ", ".join(f"{name} {share:.3f}" for name, share in right.items())


@torch.no_grad()
def stitched(work, model, tokenizer, rng, options, count=8192):
    """Puts the model's text encoder into teacher.pt; the share of its old one's states that the new ones do not tell."""
    device, path = next(model.parameters()).device, work / "teacher.pt"
    weights = torch.load(path, map_location=device)
    known = TextToVideo(tokenizer.get_vocab_size()).to(device)
    known.load_state_dict(weights)
    ids = captioned(rng, tokenizer, count, False, options["confusable"])[0].to(device)
    new, old = (torch.cat([each.encode_text(rows)[0][rows != 0] for rows in ids.split(256)]).double()
                for each in (model, known))
    # least squares without a constant: what captions are padded with is 0 and stays it
    square = new.T @ new
    matrix = torch.linalg.solve(square + 1e-4 * square.trace() / len(square) * torch.eye(len(square), device=device),
                                new.T @ old)
    layer = known.transformer.condition_embedder.text_embedder.linear_1
    layer.weight.copy_(layer.weight @ matrix.T.float())
    known.text_encoder.load_state_dict(model.text_encoder.state_dict())
    save_weights(path, known.state_dict())
    return ((new @ matrix - old).square().sum() / old.square().sum()).item()


def main():
    parser = presets.arguments("text", __doc__)
    parser.add_argument("--beside", action="store_true", help="put a new encoder into teacher.pt")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 20)
    rng = random.Random(options["seed"] + 21)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size()).to(device)
    if (work / "text.pt").exists():
        model.text_encoder.load_state_dict(torch.load(work / "text.pt", map_location=device))
        note(work, "text: goes on from text.pt")
    reader = Reader(presets.TEXT_ENCODER["d_model"]).to(device)
    trained = torch.nn.ModuleDict({"text_encoder": model.text_encoder, "reader": reader})
    optimiser = Muon(groups(trained.named_parameters(), is_block_matrix, options["muon_lr"], options["lr"], 0.01))
    stage = Interruptible(work, "text", options, rng, trained=trained, optimiser=optimiser)
    batches, total = [], 0.0
    while stage.running():
        optimiser.set_scale(min((stage.step + 1) / 50, 1.0, (1.0 - stage.clock.done) / 0.3 + 0.01))
        if not batches:
            drawn = captioned(rng, tokenizer, AT_ONCE * options["batch"], False, options["confusable"])
            batches = alike(*drawn, options["batch"], rng)
        ids, *said = (part.to(device) for part in batches.pop())
        loss = reader.loss(*states_and_last(model, ids), *said)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        trained.zero_grad(set_to_none=True)
        stage.step, total = stage.step + 1, total + loss.item()
        if stage.step % 100 == 0:
            tell(work, "text", stage.step, stage.clock.elapsed, f"loss {total / 100:.3f}")
            total = 0.0
    if not stage.finished():
        return
    save_weights(work / "text.pt", model.text_encoder.state_dict())
    if args.beside:
        share = stitched(work, model, tokenizer, rng, options)
        note(work, f"text: {share:.3f} of the square of the states that the denoiser knows is not in the new ones")
    for name, share in (("full", 0.0), ("confusable", 1.0)):
        note(work, f"text: {stage.step} steps; read from {name} captions: {read_right(model, reader, tokenizer, rng, share)}")


if __name__ == "__main__":
    main()
