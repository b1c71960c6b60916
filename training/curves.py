"""Training curves as one picture, reports/curves.png.

    python -m training.curves [--from FOLDER] [--out PICTURE]

Draws every NAME-curve.txt of the work folder, or of FOLDER (`training/reports` has those of the models in this
repository): the loss against steps, wall time along the top, and the PSNR on held-out clips where a stage measures it.
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from . import presets
from .progress import REPORTS

LINE = re.compile(r"step (\d+)(?: (\d+) s)? loss ([\d.]+)(?:.* held-out ([\d.]+) dB)?")
COLUMNS = 2


def read(path):
    """Rows (step, seconds, loss, PSNR) of a stage, None for what it did not print."""
    found = (LINE.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [[None if value is None else float(value) for value in row.groups()] for row in found if row]


def draw(axes, name, rows):
    steps, seconds, losses, psnr = zip(*rows)
    axes.plot(steps, losses, color="tab:blue")
    axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
    axes.grid(True, which="both", alpha=0.25)
    if any(value is not None for value in psnr):
        quality = axes.twinx()
        quality.plot(steps, psnr, color="tab:orange")
        quality.set_ylabel("held-out clips, dB", color="tab:orange")
    if all(value is not None for value in seconds):
        top = axes.secondary_xaxis(1.0)
        marks = sorted({round(i * (len(rows) - 1) / 4) for i in range(5)})
        top.set_xticks([steps[i] for i in marks], [f"{seconds[i] / 60:.1f} min" for i in marks], fontsize=7)
        top.tick_params(length=2)
        axes.set_title(name, pad=18)


def main():
    parser = presets.arguments("curves", __doc__)
    parser.add_argument("--from", dest="folder", type=Path, help="folder with NAME-curve.txt")
    parser.add_argument("--out", type=Path, default=REPORTS / "curves.png")
    args = parser.parse_args()
    folder = args.folder or presets.work_dir(args.work)
    stages = [(path.name.removesuffix("-curve.txt"), read(path)) for path in sorted(folder.glob("*-curve.txt"))]
    stages = [(name, rows) for name, rows in stages if rows]
    if not stages:
        raise SystemExit(f"{folder}: no NAME-curve.txt with a line in it; train a stage first")
    lines = -(-len(stages) // COLUMNS)
    figure, axes = pyplot.subplots(lines, COLUMNS, figsize=(11, 3.2 * lines), squeeze=False, layout="constrained")
    for place, (name, rows) in zip(axes.flat, stages):
        draw(place, name, rows)
    for place in axes.flat[len(stages):]:
        place.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)
    print(f"{len(stages)} curves -> {args.out}")


if __name__ == "__main__":
    main()
