"""Contact sheets: rows of frames with a caption above each row. What a run makes while it learns, one row a time."""

import torch
from PIL import Image, ImageDraw


def save_stacked(rows, path, gap=2):
    """Pictures one below the other, as one."""
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + gap for row in rows)), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + gap
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def contact_sheet(clips, labels, path, frames=(0, 3, 6, 9, 12, 16), scale=1):
    """Save `frames` of every clip [T, 3, H, W] (0..1) as a row under its label."""
    rows = []
    for clip, label in zip(clips, labels):
        picture = torch.cat([clip[i] for i in frames if i < len(clip)], 2)
        picture = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        row = Image.fromarray(picture)
        if scale != 1:
            row = row.resize((int(row.width * scale), int(row.height * scale)), Image.LANCZOS)
        if label:
            framed = Image.new("RGB", (row.width, row.height + 14), "white")
            framed.paste(row, (0, 14))
            ImageDraw.Draw(framed).text((3, 1), label, fill="black")
            row = framed
        rows.append(row)
    save_stacked(rows, path)


class Samples:
    """The same clips again and again while a stage learns, a row each time; `finish` puts the rows into one picture.

    The rows lie in the work folder as STAGE-sample-N.png, so that a run that was ended goes on with them.
    """

    AT = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the run
    CLIPS, FRAMES = 3, (0, 8, 16)

    def __init__(self, work, stage, step):
        self.work, self.stage = work, stage
        if step == 0:  # those of a run before
            for path in self._rows():
                path.unlink()

    def _rows(self):
        return sorted(self.work.glob(f"{self.stage}-sample-*.png"))

    def _path(self, number):
        return self.work / f"{self.stage}-sample-{number}.png"

    def due(self, done):
        """Which of the points `AT` has been reached and has no row yet; 0 for none."""
        number = sum(done >= at for at in self.AT)
        return 0 if self._path(number).exists() else number

    def keep(self, number, clips, step, seconds):
        frames = torch.cat([clip[[i for i in self.FRAMES if i < len(clip)]] for clip in clips[:self.CLIPS]])
        label = f"step {step}, {seconds / 60:.1f} min"
        contact_sheet([frames], [label], self._path(number), range(len(frames)))

    def finish(self, *paths):
        rows = [Image.open(path) for path in self._rows()]
        for path in paths:
            save_stacked(rows, path, 0)
