"""Stage 5b: take a distilled student along with a teacher that trained on.

    python -m training.follow --before OLD_TEACHER.pt [--name student]

What the teacher's denoiser learnt since the distillation, the difference of its weights, is added to the student's
(after Ilharco et al., "Editing models with task arithmetic", 2023); the text encoder becomes the teacher's. Both have
to come from one origin, as a student and its teacher do. It takes seconds; `distill.py` goes on from the result.
Overwrites student.pt and notes it in student.json.
"""

import json
from pathlib import Path

import torch

from . import presets
from .progress import note, save_weights


def followed(student, before, after):
    """Weights of the student, moved; all three are state dictionaries of the same model."""
    moved = {}
    for name, value in student.items():
        if not value.shape == before[name].shape == after[name].shape:
            raise SystemExit(f"{name} has another shape in one of the three, they are no family")
        moved[name] = after[name] if name.startswith("text_encoder.") else value + after[name] - before[name]
    return moved


def main():
    parser = presets.arguments("follow", __doc__)
    parser.add_argument("--before", type=Path, required=True, help="the teacher that the student was distilled from")
    parser.add_argument("--name", default="student", help="the student")
    args = parser.parse_args()
    work = presets.work_dir(args.work)
    paths = work / f"{args.name}.pt", args.before, work / "teacher.pt"
    student, before, after = ({name: value.float() for name, value in torch.load(path, map_location="cpu").items()}
                              for path in paths)
    save_weights(paths[0], followed(student, before, after))
    facts_path = work / f"{args.name}.json"
    facts = json.loads(facts_path.read_text())
    facts["followed"] = facts.get("followed", 0) + 1
    facts_path.write_text(json.dumps(facts))
    (work / f"{args.name}-state.pt").unlink(missing_ok=True)  # of the weights before
    note(work, f"{args.name}: followed the teacher")


if __name__ == "__main__":
    main()
