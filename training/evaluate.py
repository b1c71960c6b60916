"""Stage 7: how often clips are what their prompts say, how they move, and how far they are from real ones.

    python -m training.evaluate [--sources renders,autoencoder,teacher,student,packed=FOLDER] [--prompts 200] [--seed 6]

All on combinations of attributes never trained on, at every size of the model: `--prompts` full captions judged by
the probe (`probe.py`), the Fréchet distance of the same clips to the renders of the same scenes in the probe's features,
and physics by tracking (`judge/`) on `--measured` clips of each kind. Ten prompts (`--sheet`) of the first source that
is no render become reports/heldout.png, and heldout-WxH.png at the other sizes, for the eye. Whoever chooses between
weights should do so by other values of `--seed` and `--sheet` than the defaults. Writes evaluation.json into the work
folder, or to `--out`; `judge/report.py` makes the tables of the model card from it. With --add what is judged joins the
sources that are in that file, judged on the same prompts: a teacher of 50 steps takes as long as all others together.
"""

import json
import time
from pathlib import Path

import torch

from . import presets, probe as probes, tokenizer as tokenizers, worlds
from .judge import features as distances, measure, report, sources
from .make_latents import load_autoencoder
from .presets import named
from .progress import REPORTS, note
from .sheet import contact_sheet


def open_source(text, work, tokenizer, args, device):
    kind, _, value = text.partition("=")
    if kind == "renders":
        return sources.Renders(device)
    if kind == "autoencoder":
        return sources.Reconstructions(load_autoencoder(work, "cpu"), device)
    if kind == "teacher":
        return sources.teacher(work, tokenizer, int(value or args.steps), args.guidance, device,
                               quick=not args.eager)
    if kind == "student":
        return sources.student(work, tokenizer, value or "student", device)
    if kind == "packed":
        return sources.packed(Path(value), tokenizer, device)
    raise SystemExit(f"unknown source {text!r}: renders, autoencoder, teacher[=STEPS], student[=NAME] or packed=FOLDER")


def sizes_of(text):
    """Those that --size names, or all of the model's."""
    offered = presets.VIDEO["sizes"]
    chosen = [[int(side) for side in size.split("x")] for size in text.split(",")] if text else offered
    for size in chosen:
        if size not in offered:
            raise SystemExit(f"--size {text}: the model's sizes are {', '.join(map(named, offered))}")
    return chosen


def draw_sheet(source, probe, size, seed):
    """Six frames of each of ten held-out prompts, and what the probe misses in them."""
    prompts, described = zip(*worlds.held_out_prompts(seed=seed))
    clips = source.clips(prompts, described, range(100 * seed, 100 * seed + 10), size)
    first = size == presets.VIDEO["sizes"][0]
    contact_sheet(clips, prompts, REPORTS / ("heldout.png" if first else f"heldout-{named(size)}.png"))
    for prompt, wrong in zip(prompts, measure.misses(probe, clips, described)):
        print(f"probe misses {', '.join(wrong) or 'nothing'}: {prompt}", flush=True)


def added_to(path, args):
    """The evaluation that is there, if it is one of the same prompts."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if (facts["prompts"], facts["seed"]) != (args.prompts, args.seed):
        raise SystemExit(f"{path} is of {facts['prompts']} prompts of seed {facts['seed']}; use the same, or no --add")
    return facts


def confusable_right(source, probe, hard, seed, size):
    """Share of confusable prompts with everything right."""
    prompts, described = hard
    first = 100000 + 200 * seed
    clips = source.clips(prompts, described, range(first, first + len(prompts)), size)
    return measure.adherence(measure.misses(probe, clips, described), described)["all"]


def main():
    parser = presets.arguments("evaluate", __doc__)
    parser.add_argument("--sources", default="renders,teacher,student", help="what is judged, with commas")
    parser.add_argument("--prompts", type=int, default=200, help="how many the probe judges")
    parser.add_argument("--confusable", type=int, default=50, help="prompts in which two words could change places")
    parser.add_argument("--measured", type=int, default=24, help="clips of each kind of physics")
    parser.add_argument("--size", metavar="WxH,..", help="some of the model's sizes, all of them if absent")
    parser.add_argument("--seed", type=int, default=6, help="draws the prompts")
    parser.add_argument("--sheet", type=int, default=4, help="draws the ten prompts of the sheet")
    parser.add_argument("--steps", type=int, default=50, help="of the teacher")
    parser.add_argument("--guidance", type=float, default=3.0, help="of the teacher")
    parser.add_argument("--add", action="store_true", help="add to the evaluation that is there")
    parser.add_argument("--out", type=Path, help="evaluation.json elsewhere")
    parser.add_argument("--card", type=Path, help="model card whose tables are renewed")
    args = parser.parse_args()
    device, work = presets.settings(args)["device"], presets.work_dir(args.work)
    if args.card:
        report.check(args.card)
    sizes, out = sizes_of(args.size), args.out or work / "evaluation.json"
    if args.add:
        added_to(out, args)  # whether it can be, before all the work
    tokenizer = tokenizers.load(work)
    judged = [open_source(text, work, tokenizer, args, device) for text in args.sources.split(",")]
    names = [source.name for source in judged]
    if len(set(names)) < len(names):
        raise SystemExit(f"two sources have the same name: {', '.join(names)}")

    sheet = None if args.add else next((source for source in judged if source.steps), None)
    prompts, described = measure.held_out_captions(args.prompts, args.seed)
    other = measure.held_out_captions(args.prompts, args.seed + 1000)
    hard = measure.confusable_captions(args.confusable, args.seed) if args.confusable else None
    seeds = range(200 * args.seed, 200 * args.seed + len(prompts))
    renders, at = sources.Renders(device), {}
    for size in sizes:
        judge = probes.name_of(work, size)
        probe = probes.load(work, device, judge)
        if sheet and sheet.makes(size):
            draw_sheet(sheet, probe, size, args.sheet)
        real = measure.features(probe, renders.clips(prompts, described, seeds, size))
        # another set of scenes shows what distance chance alone makes
        chance = distances.frechet(measure.features(probe, renders.clips(*other, seeds, size)), real)
        table = {}
        at[named(size)] = {"frechet_of_other_renders": round(chance, 3), "sources": table}
        if judge != "probe":
            at[named(size)]["probe"] = json.loads((work / f"{judge}.json").read_text())
        for source in judged:
            if not source.makes(size):
                continue
            start = time.time()
            clips = source.clips(prompts, described, seeds, size)
            wrong = measure.misses(probe, clips, described)
            table[source.name] = {
                "steps": source.steps,
                "right": measure.adherence(wrong, described),
                "frechet": round(distances.frechet(measure.features(probe, clips), real), 3),
                "confusable": confusable_right(source, probe, hard, args.seed, size) if hard else None,
                "physics": measure.measured(source, args.measured, args.seed, size) if args.measured else {},
                "seconds": round(time.time() - start),
            }
            note(work, f"evaluation of {source.name} at {named(size)}: {table[source.name]}")
    # of a packed model the folder's own name: where it lies is this machine's affair
    judged_as = [f"packed={Path(text[7:]).name}" if text.startswith("packed=") else text
                 for text in args.sources.split(",")]
    command = (f"python -m training.evaluate --model {args.model} --sources {','.join(judged_as)} --prompts {args.prompts} "
               f"--confusable {args.confusable} --measured {args.measured} --size {','.join(map(named, sizes))} "
               f"--seed {args.seed} --sheet {args.sheet} --guidance {args.guidance:g}" + " --add" * args.add)
    facts = {"prompts": args.prompts, "seed": args.seed, "measured": args.measured, "confusable": args.confusable,
             "sheet": args.sheet, "true": worlds.TRUE, "date": time.strftime("%Y-%m-%d"),
             "probe": json.loads((work / "probe.json").read_text()), "at": at}
    if args.add:
        facts = added_to(out, args)  # again: another run may have added to it
        for size, found in at.items():
            facts["at"].setdefault(size, found)["sources"].update(found["sources"])
    facts["commands"] = [*facts.get("commands", []), command]
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if args.card:
        report.renew(args.card, facts)


if __name__ == "__main__":
    main()
