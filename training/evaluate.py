"""Stage 7: how often clips are what their prompts say, on combinations of attributes never trained on.

    python -m training.evaluate [--from student|teacher|packed] [--steps 4] [--guidance 1] [--clips 200] [--seed 5]

Ten prompts with fixed seeds become reports/heldout.png, for the eye. More of the same kind are judged by the probe
(`probe.py`); the colour of the object is also found without it, by the tint of the pixels unlike the scenery.
Whoever chooses between weights should do so by other values of `--seed` and `--sheet` than the defaults.
`packed` judges a packed model (`--model`), with the rounding of its shards, and leaves the sheet alone.
"""

import json
import random
from pathlib import Path

import torch

from . import captions, presets, probe as probes, sampling, scenes, shards, tokenizer as tokenizers, world
from .autoencoder import Autoencoder
from .make_latents import load_autoencoder
from .model import TextToVideo
from .progress import REPORTS
from .sheet import contact_sheet


def empty_scene(scene, frames):
    """The rendered scenery of a scene with the object as a speck in the far distance."""
    clip = world.parameters([scene], frames, presets.VIDEO["width"], presets.VIDEO["height"])
    clip[..., 4], clip[..., 5] = 1000.0, 1e-3  # z and radius
    clip[..., 6] = 0.0  # drawn as a ball, the cube's outline is not moved
    rays = world.rays(presets.VIDEO["width"], presets.VIDEO["height"])
    return world._shade(clip, rays, 1.0 / (world.FOCAL * presets.VIDEO["height"]))[0]


def seen_colour(clip, scene):
    """The named colour that most of the pixels unlike the scenery have, or None when there is no object."""
    scenery = empty_scene(scene, len(clip))
    # another tint, not only another brightness: that may be the shadow
    alike = torch.nn.functional.cosine_similarity(clip, scenery, dim=1)
    high = clip.amax(1)
    saturation = (high - clip.amin(1)) / high.clamp_min(1e-4)
    chosen = ((clip - scenery).abs().amax(1) > 0.15) & (alike < 0.985) & (saturation > 0.3)
    if chosen.float().sum((1, 2)).mean() < 25:
        return None
    names = list(world.OBJECT)
    references = torch.tensor([world.OBJECT[n] for n in names])
    # compare directions of colour, brightness depends on the light
    pixels = clip.permute(0, 2, 3, 1)[chosen].clamp(0, 1)
    light = torch.tensor([0.65 * a + 0.35 for a in world.SKY[scene["sky"]][10]])
    references = torch.nn.functional.normalize(references * light, dim=1)
    votes = (torch.nn.functional.normalize(pixels, dim=1) @ references.T).argmax(1).bincount(minlength=len(names))
    return names[int(votes.argmax())]


JUDGED = ("colour", "shape", "motion", "ground", "sky", "camera")  # what a full caption names


def held_out_captions(count, seed):
    """Full captions of random held-out scenes."""
    rng = random.Random(seed)
    described = []
    while len(described) < count:
        scene = scenes.random_scene(rng, allow_held_out=True)
        if scenes.held_out(scene):
            described.append(scene)
    return [captions.caption(scene, rng, full=True) for scene in described], described


def judged(probe, clips, described):
    """For each clip, the attributes that the probe does not see as the scene has them."""
    seen = [row for part in clips.split(16) for row in probes.names(probe(part))]
    # a caption is silent about a camera that stands still
    return [[name for name in JUDGED if got[name] != scene[name] and not (name == "camera" and scene[name] == "still")]
            for got, scene in zip(seen, described)]


@torch.no_grad()
def main():
    parser = presets.arguments("evaluate", __doc__)
    parser.add_argument("--from", dest="source", choices=("student", "teacher", "packed"), default="teacher")
    parser.add_argument("--model", type=Path, default=Path("model-shards"), help="folder of the packed model")
    parser.add_argument("--seed", type=int, default=6, help="draws the prompts that the probe judges")
    parser.add_argument("--sheet", type=int, default=4, help="draws the ten prompts of the sheet")
    parser.add_argument("--steps", type=int, default=4, help="of the teacher")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the teacher")
    parser.add_argument("--clips", type=int, default=200, help="how many the probe judges")
    args = parser.parse_args()
    presets.settings(args)
    work = presets.work_dir(args.work)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size())
    autoencoder, probe = load_autoencoder(work, "cpu"), probes.load(work)
    sigmas, guidance = sampling.schedule(args.steps, 3.0), args.guidance
    if args.source == "packed":
        manifest, tensors = shards.load(args.model)
        decoder, weights = shards.parts(tensors)
        autoencoder = Autoencoder(manifest["autoencoder"])
        autoencoder.load_state_dict(decoder)
        autoencoder.requires_grad_(False)
        model.load_state_dict(weights)
        sigmas, guidance = manifest["sampler"]["sigmas"], 1.0
    else:
        model.load_state_dict(torch.load(work / f"{args.source}.pt", map_location="cpu"))
    if args.source == "student":
        sigmas, guidance = json.loads((work / "student.json").read_text())["sigmas"], 1.0
    model.eval().requires_grad_(False)

    def clips_of(prompts, seeds):
        latents = sampling.sample(model, tokenizer, list(prompts), list(seeds), sigmas, guidance)
        return torch.cat([autoencoder.decode(z[None]) for z in latents]).clamp(0, 1)

    prompts, described = zip(*captions.held_out_prompts(seed=args.sheet))
    clips = clips_of(prompts, range(100 * args.sheet, 100 * args.sheet + 10))
    tints = [seen_colour(clip, scene) for clip, scene in zip(clips, described)]
    for prompt, scene, colour, wrong in zip(prompts, described, tints, judged(probe, clips, described)):
        print(f"{'ok ' if colour == scene['colour'] else 'BAD'} saw {colour}; probe misses {wrong or 'nothing'}: {prompt}")
    right = sum(a == s["colour"] for a, s in zip(tints, described))
    print(f"colour by tint right in {right} of {len(prompts)}")
    if args.source != "packed":
        contact_sheet(clips, prompts, REPORTS / "heldout.png")

    prompts, described = held_out_captions(args.clips, args.seed)
    wrong = judged(probe, clips_of(prompts, range(200 * args.seed, 200 * args.seed + len(prompts))), described)
    share = {name: round(1 - sum(name in row for row in wrong) / len(wrong), 3) for name in JUDGED}
    share["all"] = round(sum(not row for row in wrong) / len(wrong), 3)
    print(f"probe, {len(prompts)} held-out prompts, {len(sigmas)} steps, guidance {guidance}: {share}")
    name = "evaluation-packed.json" if args.source == "packed" else "evaluation.json"
    (work / name).write_text(json.dumps({
        "prompts": len(tints), "colour_right": right, "sheet_seed": args.sheet, "from": args.source, "steps": len(sigmas),
        "guidance": guidance, "probe_seed": args.seed, "probe_prompts": len(prompts), "probe_right": share}))


if __name__ == "__main__":
    main()
