"""Checks of the world: `python -m training.harbour.check`, under a minute on one core. Stops at the first failure."""

import json
import random
import time

import torch

from . import abstract, captions, physics, scenes as S, trace
from .objects import distance
from .render import render, truth

FINE = [i / 240 for i in range(320)]  # seconds


def drawn(count, seed=1, **fixed):
    rng = random.Random(seed)
    return [S.random_scene(rng, True, **fixed) for _ in range(count)]


def gravity():
    """Free fall from sampled positions, bounces by the heights of their tops, and contacts that say the same."""
    for scene in drawn(10, motion="falls") + drawn(10, motion="bounces") + drawn(10, motion="thrown"):
        path = physics.trajectory(scene, FINE)
        contact = next(c for c in path["contacts"] if c["objects"] == [0])
        free = int(contact["time"] * 240) - 1
        height = path["position"][0, :free, 1]
        g = -(height[2:] - 2 * height[1:-1] + height[:-2]).mean() * 240 ** 2
        assert abs(g / physics.GRAVITY - 1) < 0.01, f"gravity {g}"
        speeds = (path["position"][:, 1:] - path["position"][:, :-1]) * 240
        middle = (path["velocity"][:, 1:] + path["velocity"][:, :-1]) / 2
        apart = (speeds - middle).norm(dim=-1)
        calm = torch.ones(len(FINE) - 1, dtype=torch.bool)
        for c in path["contacts"]:
            calm[max(0, int(c["time"] * 240) - 1):int(c["time"] * 240) + 2] = False
        assert apart[:, calm].max() < 0.02, "velocities are not the change of positions"
    for scene in drawn(20, motion="bounces", layout="single"):
        path = physics.trajectory(scene, FINE)
        floor = physics.low(scene["objects"][0])
        first, second = (int(c["time"] * 240) for c in path["contacts"][:2])
        top = path["position"][0, first:second, 1].max() - floor
        drop = scene["objects"][0]["height"]
        assert abs((top / drop) ** 0.5 - physics.BOUNCE) < 0.01, "restitution"


def momentum():
    for scene in drawn(40, motion="collides"):
        path = physics.trajectory(scene, FINE)
        masses = torch.tensor([physics.mass(thing) for thing in scene["objects"]], dtype=torch.float64)
        total = (masses[:, None] * path["velocity"][..., 0]).sum(0)
        assert (total - total[0]).abs().max() <= 1e-6 * total.abs().max() + 1e-6, "momentum"
        contact = path["contacts"][0]
        assert 0.1 < contact["time"] < 1.2, "they meet in time"
        closing, parting = (contact[key][0] - contact[key][1] for key in ("before", "after"))
        assert abs(-parting / closing - physics.COLLISION) < 1e-6, "restitution between bodies"


def surface(thing, count=400):
    """Points [N, 3] near the surface of an object, in its unit, the same every time."""
    generator = torch.Generator().manual_seed(3)
    half = torch.tensor(physics.BOX[thing["kind"]], dtype=torch.float32)
    points = (2 * torch.rand(60 * count, 3, generator=generator) - 1) * half * 1.02
    return points[distance(thing["kind"], points.T).abs() < 0.02][:count]


def apart():
    """Nothing sinks into the ground or into something else."""
    times = [i / 12 for i in range(17)]
    for scene in drawn(150, 2, type="world"):
        path, things = physics.trajectory(scene, times), scene["objects"]
        position, rotation = path["position"].float(), path["rotation"].float()
        for i, thing in enumerate(things):
            unit = physics.RADIUS[thing["size"]]
            points = position[i, :, None] + unit * (rotation[i, :, None] @ surface(thing)[..., None])[..., 0]
            if scene["setting"] not in S.WATERS:
                assert points[..., 1].min() > -0.035 * unit - 0.01, (points[..., 1].min(), scene)
            for k, other in enumerate(things):
                if k != i:
                    local = (rotation[k].mT[:, None] @ (points - position[k][:, None])[..., None])[..., 0]
                    local = local / physics.RADIUS[other["size"]]
                    deep = distance(other["kind"], local.reshape(-1, 3).T).min()
                    assert deep > -0.09, (float(deep), scene)


def hidden():
    """What passes behind something is gone for a while and comes out again."""
    for scene in drawn(30, 3, motion="passes", camera="still"):
        area = truth(scene, 64, 64, 25, 18.0)["masks"][0].sum((1, 2))
        gone = int(area.argmin())
        assert area[gone] < 0.15 * area.max(), (area, scene)
        assert area[:gone].max() > 0.5 * area.max() and area[gone:].max() > 0.5 * area.max(), "comes out again"


def loops():
    for scene in drawn(9, 4, type="abstract"):
        whole = abstract.render([scene], 48, 32, 12)
        again = abstract.render([scene], 48, 32, 12, first=12)
        assert torch.equal(whole, again), "frame T is frame 0"
        steps = (whole - whole.roll(1, 1)).abs().mean((0, 2, 3, 4))
        assert steps[0] < 2.0 * steps[1:].mean() + 1e-3, "no jump where the loop closes"


def grammar():
    rng = random.Random(5)
    assert all(json.loads(json.dumps(scene)) == scene for scene in drawn(50))
    known = captions.vocabulary()
    assert len(known) >= 600, len(known)
    longest = 0
    for scene in drawn(1500, 6):
        text = captions.caption(scene, rng)
        longest = max(longest, len(captions.words(text)) + sum(c in ",:" for c in text))
        assert not captions.unknown_words(text), captions.unknown_words(text)
        full, spans = captions.caption_spans(scene, rng, full=True)
        ascribed(scene, full, spans)
        longest = max(longest, len(captions.words(full)) + sum(c in ",:" for c in full))
        for said, whole in ((captions.meaning(text), False), (captions.meaning(full), True)):
            told = {}
            for attribute, value in said:
                told.setdefault(attribute, []).append(value)
            faults = misread(scene, told, whole)
            assert not faults, (faults, full if whole else text, scene)
    assert longest < 48, longest
    prompts = captions.held_out_prompts(16)
    assert all(S.held_out(scene) for _, scene in prompts) and prompts == captions.held_out_prompts(16)
    assert not any(S.held_out(S.random_scene(rng)) for _ in range(300))
    assert captions.unknown_words("a red dragon bounces") == ["dragon"]
    return len(known), longest


def ascribed(scene, text, spans):
    """What the words about an object say is true of it, and no object is spoken of elsewhere."""
    about = {}
    for first, last, place in spans:
        about.setdefault(place, []).append(text[first:last])
    said = [captions.meaning(" ".join(words)) for _, words in sorted(about.items())]
    for thing, meanings in zip(scene.get("objects", ()), said):
        assert all(thing[attribute] == value for attribute, value in meanings), (thing, meanings, text)
    everywhere = [value for attribute, value in captions.meaning(text) if attribute == "kind"]
    kinds = [value for meanings in said for attribute, value in meanings if attribute == "kind"]
    assert sorted(everywhere) == sorted(kinds), (kinds, text)


def misread(scene, told, whole):
    """Attributes that a caption gives wrongly, or not at all where it has to name them."""
    if scene["type"] == "abstract":
        wanted = {name: [scene[name]] for name in ("style", "tone", "pace")} | {"colour": scene["colours"]}
        needed = ("style", "colour", "tone", "pace")
    else:
        shown = scene["objects"][:1] if scene["layout"] == "group" else scene["objects"]
        wanted = {name: [scene[name]] for name in
                  ("setting", "time", "weather", "camera", "motion", "relation", "direction")}
        wanted.update({"kind": [t["kind"] for t in shown], "colour": [t["colour"] for t in shown],
                       "count": [len(scene["objects"])], "material": [t["material"] for t in shown],
                       "size": [t["size"] for t in shown]})
        if scene["setting"] == "studio":
            wanted["time"] = wanted["weather"] = []
        needed = ["kind", "colour", "setting", "motion"] + [n for n in ("relation", "direction") if scene[n]]
        needed += ["time"] if scene["setting"] != "studio" else []
        needed += [n for n, usual in (("weather", "clear"), ("camera", "still")) if scene[n] != usual]
        needed += ["count"] if scene["layout"] == "group" else []
        if scene["motion"] == "passes" and "relation" in told:
            return ["relation"]
    faults = [name for name, values in told.items() if name in wanted and not set(values) <= set(wanted[name])]
    for name in needed if whole else ():
        said = told.get(name, [])
        if name in ("kind", "colour"):
            if sorted(said) != sorted(wanted[name]):
                faults.append(name)
        elif not said:
            faults.append(name)
    return faults


def pictures():
    some = drawn(6, 8) + drawn(2, 8, type="abstract")
    for width, height in ((128, 128), (176, 96), (96, 176)):
        clips = render(some, width, height, 5)
        assert clips.shape == (8, 5, 3, height, width) and clips.min() >= 0 and clips.max() <= 1
        assert not clips.isnan().any()
        assert torch.equal(clips, render(some, width, height, 5)), "the same twice"
        for i, scene in enumerate(some):
            single = render([scene], width, height, 5)[0]
            # the last bits depend on how a vector is cut; at an edge that may decide a pixel
            assert ((single - clips[i]).abs() > 2e-3).float().mean() < 1e-4, "single and batch"


def masks():
    """The pixels that change with the colour of an object are those of its mask, which lies around its position."""
    kinds = ("ball", "cube", "cylinder", "cone", "ring", "tower")
    for kind in kinds:
        scene = drawn(1, 9, kind=kind, colour="red", material="matte", setting="sand", layout="single", weather="clear",
                      camera="pan left", motion="rests", time="noon")[0]
        other = {**scene, "objects": [{**scene["objects"][0], "colour": "blue"}]}
        found = truth(scene, 128, 96, 5)
        mask = found["masks"][0]
        change = (render([scene], 128, 96, 5) - render([other], 128, 96, 5))[0].abs().amax(1)
        share = change[mask > 0.95].gt(0.08).float().mean()
        assert share > 0.5, (kind, share)  # bands, roofs and lamps keep their colour
        assert change[mask == 0].max() < 0.01, kind
        grid_v, grid_u = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        total = mask.sum((1, 2))
        centre = torch.stack(((mask * grid_u).sum((1, 2)), (mask * grid_v).sum((1, 2))), 1) / total[:, None]
        far = (centre - found["screen"][0, :, :2]).norm(dim=1).max()
        assert far < {"ball": 1.0, "ring": 1.2}.get(kind, 7.5), (kind, far)


def readings():
    """A scene and its first reading are the same picture; two words for one picture have the same first reading."""
    pairs = drawn(12, 4, layout="pair", motion="rests") + drawn(12, 5, layout="pair", motion="floats") + \
        drawn(16, 6, motion="collides")
    changed = 0
    for scene in pairs:
        first = S.readings(scene)[0]
        changed += first is not scene
        assert (render([scene], 48, 48, 3) - render([first], 48, 48, 3)).abs().max() < 1e-5
        other = {**scene, "objects": scene["objects"][::-1], "relation": S.OPPOSITE.get(scene["relation"], "")}
        both_move = scene["motion"] == "collides" and all(thing["speed"] for thing in scene["objects"])
        if scene["relation"] in S.OPPOSITE or both_move:
            assert S.attributes(S.readings(other)[0]) == S.attributes(first), scene
    assert changed > 10, changed


def main():
    torch.set_num_threads(1)
    start = time.time()
    for check in (gravity, momentum, apart, hidden, readings, loops, grammar, masks, pictures):
        before = time.time()
        found = check()
        print(f"{check.__name__}: ok, {time.time() - before:.1f} s{f', {found}' if found else ''}", flush=True)
    print(f"all: ok, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
