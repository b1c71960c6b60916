"""Contact sheets: rows of frames with a caption above each row."""

import torch
from PIL import Image, ImageDraw


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
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + 2 for r in rows)), "white")
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + 2
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
