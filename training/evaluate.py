"""Stage 7: ten held-out prompts with fixed seeds, as a sheet and a count of object colours.

    python -m training.evaluate [--from student|teacher]

The colour check is automatic: pixels far from the same picture's scenery are
found by their tint. Shape, motion and setting are for the eye, from reports/heldout.png.
"""

import json

import torch

from . import captions, presets, sampling, tokenizer as tokenizers, world
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


def main():
    parser = presets.arguments("evaluate", __doc__)
    parser.add_argument("--from", dest="source", choices=("student", "teacher"), default="teacher")
    parser.add_argument("--steps", type=int, default=4, help="of the teacher")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the teacher")
    args = parser.parse_args()
    presets.settings(args)
    work = presets.work_dir(args.work)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size())
    model.load_state_dict(torch.load(work / f"{args.source}.pt", map_location="cpu"))
    model.eval().requires_grad_(False)
    autoencoder = load_autoencoder(work, "cpu")
    prompts, described = zip(*captions.held_out_prompts())
    if args.source == "student":
        sigmas, guidance = json.loads((work / "student.json").read_text())["sigmas"], 1.0
    else:
        sigmas, guidance = sampling.schedule(args.steps, 3.0), args.guidance
    latents = sampling.sample(model, tokenizer, list(prompts), list(range(100, 110)), sigmas, guidance)
    with torch.no_grad():
        clips = torch.cat([autoencoder.decode(z[None]) for z in latents]).clamp(0, 1)
    seen = [seen_colour(clip, scene) for clip, scene in zip(clips, described)]
    right = sum(a == s["colour"] for a, s in zip(seen, described))
    for prompt, scene, colour in zip(prompts, described, seen):
        print(f"{'ok ' if colour == scene['colour'] else 'BAD'} saw {colour}: {prompt}")
    print(f"colour right in {right} of {len(prompts)}")
    contact_sheet(clips, prompts, REPORTS / "heldout.png")
    (work / "evaluation.json").write_text(json.dumps({"prompts": len(prompts), "colour_right": right,
                                                      "seeds": [100, 109], "from": args.source, "steps": len(sigmas),
                                                      "guidance": guidance}))


if __name__ == "__main__":
    main()
