"""The tables of the model card, made from evaluation.json.

    python -m training.judge.report evaluation.json MODEL_CARD.md
"""

import json
import sys
from pathlib import Path

START, END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def rows_of(facts, sources):
    rights = [name for name in facts["probe"]["right"] if any(name in s["right"] for s in sources.values())] + ["all"]
    rows = [[name if name != "all" else "everything", *(percent(s["right"].get(name)) for s in sources.values())]
            for name in rights]
    if any(s["confusable"] is not None for s in sources.values()):
        rows.append(["everything, confusable prompts", *(percent(s["confusable"]) for s in sources.values())])
    rows.append(["Fréchet distance to renders", *(f"{s['frechet']:.2f}" for s in sources.values())])
    kinds = [kind for kind in next(iter(sources.values()))["physics"]]
    for kind in kinds:
        def cell(source):
            got = source["physics"].get(kind, {})
            if "share" in got:
                return percent(got["share"])
            return "" if got.get("median") is None else f"{got['median']:.3g} ({got['clips']})"
        true = facts["true"].get(kind)
        rows.append([kind + (f", true {true:g}" if true is not None else ""), *map(cell, sources.values())])
    return rows


def tables(facts):
    parts, judges = [], {"": facts["probe"]}
    judges.update({f" at {size.replace('x', '×')}": found["probe"] for size, found in facts["at"].items()
                   if "probe" in found})
    told = [f"{probe['held_out_renders']} held-out renders{where}: "
            + ", ".join(f"{name} {percent(value)}" for name, value in probe["right"].items())
            for where, probe in judges.items()]
    for size, found in facts["at"].items():
        parts += ["", f"At {size.replace('x', '×')} (Fréchet distance of other renders: "
                      f"{found['frechet_of_other_renders']:.2f}):", "",
                  table(["", *found["sources"]], rows_of(facts, found["sources"]))]
    return "\n".join([
        START,
        f"{facts['prompts']} held-out prompts (seed {facts['seed']}), named "
        f"by the probe; {facts['confusable']} more in which two words could change places (opposite directions, say); "
        f"physics by tracking on {facts['measured']} clips of each kind, medians, in brackets of how many it could be "
        f"measured. {', '.join(f'`{command}`' for command in facts['commands'])}, {facts['date']}.", *parts, "",
        "The probe itself, on " + "; ".join(told) + ".", END])


def check(card):
    """Stops where the marks of a model card are missing."""
    text = card.read_text(encoding="utf-8")
    if START not in text or END not in text.split(START)[1]:
        raise SystemExit(f"{card} has no line {START} followed by {END}")


def renew(card, facts):
    """Put the tables between the marks of a model card."""
    check(card)
    text = card.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    card.write_text(before + tables(facts) + after, encoding="utf-8")


if __name__ == "__main__":
    renew(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()))
