"""Captions of scenes: a small grammar with synonyms and orders, and the held-out prompts.

`caption(scene, rng)` describes a scene; attributes are dropped at random, and a
dropped one is then free to be anything, so the model learns to choose.
"""

import random
import re

from . import scenes

NOUNS = {"ball": ("ball", "ball", "sphere"), "cube": ("cube", "cube", "box", "block")}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
VERBS = {
    ("bounces", "ball"): ("bounces", "bounces up and down", "is bouncing", "bouncing"),
    ("rolls left", "ball"): ("rolls left", "rolls to the left", "is rolling left", "rolling to the left", "moves left"),
    ("rolls right", "ball"): ("rolls right", "rolls to the right", "is rolling right", "rolling to the right", "moves right"),
    ("rolls left", "cube"): ("slides left", "slides to the left", "is sliding left", "sliding to the left", "moves left"),
    ("rolls right", "cube"): ("slides right", "slides to the right", "is sliding right", "sliding to the right", "moves right"),
    ("falls", "ball"): ("falls", "falls down", "drops", "is falling", "falling"),
    ("rises", "ball"): ("rises", "floats up", "rises up", "is rising", "floating up", "flies up"),
    ("stays still", "ball"): ("stays still", "rests", "sits still", "resting", "lies", "stands still"),
}
for _motion in ("bounces", "falls", "rises", "stays still"):
    VERBS[_motion, "cube"] = VERBS[_motion, "ball"]
GROUND_PHRASES = {
    "grass": ("grass", "green grass", "the grass", "a meadow", "a green meadow", "a lawn"),
    "sand": ("sand", "the sand", "yellow sand", "a beach", "a sandy desert"),
    "snow": ("snow", "white snow", "the snow", "a snowy field"),
    "stone": ("stone", "grey stone", "gray stone", "a stone floor", "rock", "concrete"),
    "checkered": ("a checkered floor", "a checkerboard", "a checkered board", "black and white tiles", "the checkered floor"),
}
SKY_PHRASES = {
    "day": ("under a blue sky", "on a sunny day", "in daylight", "during the day", "on a clear day"),
    "sunset": ("at sunset", "under a sunset sky", "in the evening", "at dusk", "under an orange sky"),
    "night": ("at night", "under a night sky", "in the moonlight", "under the stars", "under the moon"),
    "overcast": ("under an overcast sky", "on a cloudy day", "under a grey sky", "under a gray sky", "under clouds"),
}
CAMERA_PHRASES = {
    "still": ("still camera", "the camera is still"),
    "pans left": ("camera pans left", "the camera pans left", "the camera turns left", "panning left"),
    "pans right": ("camera pans right", "the camera pans right", "the camera turns right", "panning right"),
}
FILLERS = ("", "", "", "", "", "", "a video of ", "a clip of ")


def caption(scene, rng: random.Random, full=False):
    """One caption; with `full` every attribute but the size and a still camera is named."""
    def keep(probability):
        return full or rng.random() < probability

    pick = rng.choice
    sized = keep(0.5) and not full
    coloured = keep(0.94)
    noun = pick(NOUNS[scene["shape"]]) if keep(0.96) else pick(("object", "thing"))
    words = [pick(SIZE_WORDS[scene["size"]])] if sized else []
    words += [scene["colour"]] if coloured else []
    words.append(noun)
    article = pick(("a", "a", "a", "the", "one")) if not full else "a"
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    subject = f"{article} {' '.join(words)}"
    verb = pick(VERBS[scene["motion"], scene["shape"]]) if keep(0.94) else ""
    ground = sky = camera = ""
    if keep(0.85):
        ground = f"{pick(('on', 'on', 'on', 'over', 'across'))} {pick(GROUND_PHRASES[scene['ground']])}"
    if keep(0.80):
        sky = pick(SKY_PHRASES[scene["sky"]])
    if keep(0.9) and (scene["camera"] != "still" or (not full and rng.random() < 0.12)):
        camera = pick(CAMERA_PHRASES[scene["camera"]])

    if rng.random() < 0.7:
        parts = [subject, verb, ground, sky]
    elif rng.random() < 0.5:
        parts = [sky + ("," if sky else ""), subject, verb, ground]
    else:
        parts = [ground, sky + ("," if sky else ""), subject, verb]
    text = " ".join(part for part in parts if part)
    if camera:
        text = f"{camera}, {text}" if rng.random() < 0.4 else f"{text}, {camera}"
    if text.startswith(subject) and not full:
        text = pick(FILLERS) + text
    return text.replace(" ,", ",")


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def vocabulary(samples=20000, seed=7):
    """Every word the grammar can say, sorted."""
    found = set()
    tables = (NOUNS, SIZE_WORDS, VERBS, GROUND_PHRASES, SKY_PHRASES, CAMERA_PHRASES)
    for table in tables:
        for phrases in table.values():
            for phrase in phrases:
                found.update(words(phrase))
    found.update(scenes.COLOURS)
    rng = random.Random(seed)
    for _ in range(samples):
        found.update(words(caption(scenes.random_scene(rng, allow_held_out=True), rng)))
    return sorted(found)


def held_out_prompts(count=10, seed=3):
    """(prompt, scene) of combinations never trained on; motions and skies rotate, colours, shapes and grounds vary."""
    rng = random.Random(seed)
    chosen = []
    for i in range(count):
        found = []
        while len(found) < 20:
            scene = scenes.random_scene(rng, allow_held_out=True, motion=scenes.MOTIONS[i % len(scenes.MOTIONS)],
                                        sky=scenes.SKIES[i % 4], camera=scenes.CAMERAS[0 if i % 4 else 1 + i // 4 % 2])
            if scenes.held_out(scene):
                found.append(scene)
        # of twenty draws the one that repeats least of what was chosen before
        scene = min(found, key=lambda s: sum((other[key] == s[key]) * weight for _, other in chosen for key, weight in
                                             (("colour", 3), ("ground", 2), ("shape", 1))))
        chosen.append((caption(scene, rng, full=True), scene))
    return chosen


EXAMPLES = (
    "a red ball bounces on green grass under a blue sky",
    "a blue cube falls on a checkered floor at sunset",
    "a yellow ball rolls left on sand under a blue sky",
    "a purple ball floats up over snow at night",
    "camera pans left, an orange cube stays still on stone under an overcast sky",
    "a big pink ball rolls to the right on a checkerboard at dusk",
    "a small cyan cube slides left on white snow on a sunny day",
    "a green ball bounces on a checkered floor at night",
)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(20):
        print(caption(scenes.random_scene(generator), generator))
    print(len(vocabulary()), "words;", " ".join(vocabulary()))
    for prompt, scene in held_out_prompts():
        print(prompt, "|", scene["colour"], scene["shape"], scene["motion"], scene["ground"], scene["sky"], scene["camera"])
