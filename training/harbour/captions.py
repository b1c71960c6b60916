"""Captions of scenes: a grammar with synonyms, orders and omissions, what its words mean, and the held-out prompts.

`caption(scene, rng)` drops attributes at random; a dropped one is then free to be anything, so the model learns to
choose. `meaning(text)` reads back what a text says, `unknown_words(text)` what nobody ever said to the model.
"""

import functools
import random
import re

from . import scenes as S
from . import words as W

LONGEST = 40  # words


def words(text):
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower())


_MARKS = 0xE000  # the first of the characters, for private use, behind words that speak of the first object, the second..


def _about(place, text):
    """The words of `text` marked as speaking of the object at `place`."""
    return re.sub(r"(?<=\S)(?=\s|$)", chr(_MARKS + place), text)


class _Writer:
    """The parts of one caption, in which what speaks of an object is marked."""

    def __init__(self, scene, rng, full):
        self.scene, self.rng, self.full, self.pick = scene, rng, full, rng.choice
        self.many = scene.get("layout") in ("group", "trio")

    def keep(self, probability):
        return self.full or self.rng.random() < probability

    def noun(self, thing, many=False):
        """Adjectives and noun of an object, without article."""
        material = self.pick(W.MATERIALS[thing["material"]]) if thing["kind"] not in ("lantern", "tower", "boat") and \
            (self.full and thing["material"] != "matte" or not self.full and self.rng.random() < 0.45) else ""
        colour = self.pick(W.COLOURS[thing["colour"]]) if self.keep(0.93) else ""
        size = self.pick(W.SIZES[thing["size"]]) if not self.full and self.rng.random() < 0.35 else ""
        noun = self.pick(W.KINDS[thing["kind"]]) if self.keep(0.97) else self.pick(("object", "thing", "shape"))
        end = W.plural(noun) if many else noun
        adjectives = [size, material, colour]
        if material and not size and not self.full and self.rng.random() < 0.15:
            adjectives = [colour, material]  # "a red shiny ball"
        place = next(i for i, other in enumerate(self.scene["objects"]) if other is thing)
        return _about(place, " ".join(part for part in (*adjectives, end) if part))

    def one(self, thing):
        noun = self.noun(thing)
        if self.full or self.many or self.rng.random() < 0.85:
            return W.article(noun)
        return f"{self.pick(('the', 'one', 'a single'))} {noun}"

    def subject(self):
        things = self.scene["objects"]
        if self.scene["layout"] == "group":
            number = self.pick(W.COUNTS[len(things)]) if self.keep(0.95) else self.pick(("some", "several", "a few"))
            same = self.pick(("", "", "", "identical ", "matching ", "equal "))
            return f"{number} {same}{self.noun(things[0], many=True)}"
        if self.scene["layout"] == "trio":
            nouns = [self.one(thing) for thing in things]
            return f"{nouns[0]}, {nouns[1]} and {nouns[2]}"
        return self.one(things[0])

    def direction(self):
        if not self.scene["direction"] or not self.keep(0.9):
            return ""
        return self.pick(W.DIRECTIONS[self.scene["direction"]])

    def verb(self, form):
        """The verb and what follows it, up to the place. `form` is third, participle or progressive."""
        scene, motion = self.scene, self.scene["motion"]
        base = self.pick(W.VERBS[motion])
        inflected = {"third": W.plural_verb if self.many else W.third, "participle": W.participle,
                     "progressive": lambda verb: W.progressive(verb, self.many)}[form](base)
        text = inflected.replace("%", self.direction()) if "%" in inflected else inflected
        if motion in S.EVENTS:
            text += f" {self.one(scene['objects'][1])}"
            if motion == "passes":
                if self.keep(0.55):
                    # "a cylinder left" would be misread
                    text += f" {self.pick(W.DIRECTIONS[self.scene['direction']][1:])}"
                if form != "participle" and self.rng.random() < 0.6:
                    text += f" {self.pick(W.AGAIN)}"
        elif scene["relation"] and self.keep(0.9):
            text += f" {self.pick(W.RELATIONS[scene['relation']])} {self.one(scene['objects'][1])}"
        elif scene["layout"] == "trio" and self.rng.random() < 0.5:
            text += " " + self.pick(W.TOGETHER)
        return re.sub(" +", " ", text).strip()

    def place(self):
        motion, places = self.scene["motion"], W.PLACES[self.scene["setting"]]
        kind = self.pick(sorted(places))
        phrase = self.pick(places[kind])
        if kind == "on":
            kind = self.pick({"falls": ("onto", "on"), "rises": ("over", "above"), "thrown": ("over", "across"),
                              "swings": ("over", "above"), "rolls": ("on", "on", "over", "across"),
                              "slides": ("on", "on", "over", "across"), "sails": ("on", "across")}.get(motion, ("on",)))
        return f"{kind} {phrase}"

    def conditions(self):
        """Time of day and weather, as one or two phrases; the studio has neither."""
        scene, pick = self.scene, self.pick
        if scene["setting"] == "studio":
            return []
        clear = scene["weather"] == "clear"
        weather = self.keep(0.85) and not clear or clear and not self.full and self.rng.random() < 0.15
        time = self.keep(0.85)
        if time and weather and self.rng.random() < 0.4 or time and clear and self.rng.random() < 0.05:
            return [f"on {W.article(pick(W.WEATHER_ADJECTIVES[scene['weather']]) + ' ' + pick(W.DAYS[scene['time']]))}"]
        found = []
        if time:
            found.append(pick(W.TIMES[scene["time"]] + (W.CLEAR_TIMES[scene["time"]] * 2 if clear else [])))
        if weather:
            found.append(pick(W.WEATHERS[scene["weather"]]))
        return found if self.rng.random() < 0.6 else found[::-1]

    def camera(self):
        still = self.scene["camera"] == "still"
        if still and (self.full or self.rng.random() < 0.85) or not self.keep(0.88):
            return ""
        return self.pick(W.CAMERAS[self.scene["camera"]])


def _sentence(writer):
    """Words in one of several orders."""
    rng, full, scene = writer.rng, writer.full, writer.scene
    place = writer.place() if writer.keep(0.85) else ""
    around = writer.conditions()
    order = rng.random()
    prefixed = order < 0.55 and not full and rng.random() < 0.28
    form = "participle" if prefixed else rng.choice(("third", "third", "progressive", "participle"))
    verb = writer.verb(form) if writer.keep(0.95) or scene["motion"] in S.EVENTS or scene["relation"] else ""
    main = [writer.subject(), verb]
    if order < 0.55:
        parts = [*main, place, *around]
    elif order < 0.70 and around:
        parts = [*around[:-1], around[-1] + ",", *main, place]
    elif order < 0.80 and place and scene["motion"] not in ("falls",):
        parts = [place + ("" if around else ","), *(around[:-1] + [around[-1] + ","] if around else []), *main]
    else:
        parts = [*main, *around, place]
    text = " ".join(part for part in parts if part)
    if prefixed:
        text = f"{rng.choice(W.PREFIXES)} {text}"
    camera = writer.camera()
    if camera:
        join = rng.random()
        if camera.startswith("the camera") and join < 0.35 and form != "participle" and text.startswith(main[0]):
            text = f"{camera} {rng.choice(('as', 'while'))} {text}"
        elif join < 0.6:
            text = f"{camera}, {text}"
        elif camera.startswith("the camera") and join < 0.8:
            text += f", {camera}" if form == "participle" else f" {rng.choice(('while', 'as', 'and'))} {camera}"
        else:
            text = f"{text}, {camera}"
    return text


def _keywords(writer):
    """As people type: the subject, what it does, then a list of keywords."""
    rng, scene = writer.rng, writer.scene
    subject = re.sub(r"^(a|an|the) ", "", writer.subject()) if not writer.many else writer.subject()
    verb = writer.verb("participle") if rng.random() < 0.8 or scene["motion"] in S.EVENTS else ""
    list_ = [rng.choice(W.PLACE_WORDS[scene["setting"]])] if rng.random() < 0.8 else []
    if scene["setting"] != "studio":
        list_ += [rng.choice(W.TIME_NOUNS[scene["time"]])] if rng.random() < 0.7 else []
        if scene["weather"] != "clear" and rng.random() < 0.8:
            list_.append(rng.choice(W.WEATHER_ADJECTIVES[scene["weather"]]))
    list_ += [camera] if (camera := writer.camera()) else []
    rng.shuffle(list_)
    return ", ".join([f"{subject} {verb}".strip(), *list_])


def _abstract(writer):
    scene, pick, keep = writer.scene, writer.pick, writer.keep
    style = scene["style"]
    colours = [pick(W.COLOURS[colour]) for colour in scene["colours"]]
    if len(colours) == 2 and writer.rng.random() < 0.5:
        colours.reverse()
    named = " and ".join(colours)
    noun = pick(W.STYLES[style])
    background = pick(W.BACKGROUNDS)
    verb = pick(W.ABSTRACT_VERBS[style])
    pace = pick(W.PACES[scene["pace"]]) if keep(0.75) else ""
    many = noun.endswith("s") or noun == "bokeh"
    one = noun if many or noun.startswith("twinkling") or noun == "gradient flow" else W.article(noun)
    among = pick((f"in {named}", f"in shades of {named}", f"in {named} tones", f"of {named}", f"in hues of {named}"))
    shape = writer.rng.random()
    if shape < 0.3:
        start = f"{named} {noun}" if many or not writer.full else W.article(f"{named} {noun}")
    elif shape < 0.65:
        start = f"{one} {among}"
    elif shape < 0.85:
        start = f"{W.article(background)} with {one} {among}"
    else:
        start = f"{background}: {named} {noun}"
    moving = pace.endswith("ly") and pace != "lively" or pace.startswith("at ")
    if pace:
        start += f" {verb} {pace}" if moving and writer.rng.random() < 0.7 else f", {pace}"
    parts = [start]
    parts += [pick(W.TONES[scene["tone"]])] if keep(0.75) else []
    parts += [pick(W.LOOPS)] if not writer.full and writer.rng.random() < 0.3 else []
    return ", ".join(parts)


def caption(scene, rng: random.Random, full=False):
    """One caption. With `full` all attributes are named but the size, a dull surface, a camera that stands still and
    a clear sky."""
    return caption_spans(scene, rng, full)[0]


def caption_spans(scene, rng: random.Random, full=False):
    """A caption, and which of its words speak of which object: (first character, behind the last, place in the scene)
    of each word."""
    spans, length, pieces = [], 0, re.split(f"([{chr(_MARKS)}-{chr(_MARKS + 2)}])", _written(scene, rng, full))
    for text, mark in zip(pieces[::2], [*pieces[1::2], None]):
        length += len(text)
        if mark:
            spans.append((length - len(text.split()[-1]), length, ord(mark) - _MARKS))
    return "".join(pieces[::2]), spans


def _written(scene, rng, full):
    while True:
        writer = _Writer(scene, rng, full)
        if scene["type"] == "abstract":
            text = _abstract(writer)
        elif not full and rng.random() < 0.18:
            text = _keywords(writer)
        else:
            text = _sentence(writer)
        if not full and rng.random() < 0.10:
            text = f"{text}, {', '.join(rng.sample(W.SUFFIXES, rng.choice((1, 1, 2))))}"
        text = re.sub(" +", " ", text).replace(" ,", ",")
        if len(words(text)) <= LONGEST:
            return text


@functools.lru_cache
def _phrases():
    """What phrases mean: tuples of words -> (attribute, value)."""
    found = {}

    def add(attribute, value, phrases):
        for phrase in phrases:
            for part in phrase if isinstance(phrase, tuple) else (phrase,):
                key = tuple(words(part))
                if found.setdefault(key, (attribute, value)) != (attribute, value):
                    raise ValueError(f"{part!r} says both {found[key]} and {(attribute, value)}")

    for attribute, table in (("colour", W.COLOURS), ("size", W.SIZES), ("material", W.MATERIALS), ("time", W.TIMES),
                             ("time", W.CLEAR_TIMES), ("time", W.TIME_NOUNS), ("time", W.DAYS), ("weather", W.WEATHERS),
                             ("weather", W.WEATHER_ADJECTIVES), ("camera", W.CAMERAS), ("relation", W.RELATIONS),
                             ("direction", W.DIRECTIONS), ("setting", W.PLACE_WORDS), ("count", W.COUNTS),
                             ("style", W.STYLES), ("tone", W.TONES), ("pace", W.PACES)):
        for value, phrases in table.items():
            add(attribute, value, phrases)
    for value, nouns in W.KINDS.items():
        add("kind", value, nouns + [W.plural(noun) for noun in nouns])
    for value, places in W.PLACES.items():
        add("setting", value, sum(places.values(), []))
    for value, verbs in W.VERBS.items():
        for verb in verbs:
            forms = [W.third(verb), W.plural_verb(verb), W.participle(verb)]
            add("motion", value, [form.split("%")[0].strip() for form in forms])
    for name, phrases in (("wording", W.PREFIXES + W.AGAIN + W.TOGETHER), ("mood", W.SUFFIXES),
                          ("type", W.BACKGROUNDS + W.LOOPS)):
        add(name, "", phrases)
    return found


def meaning(text):
    """What a text says, in its order: a list of (attribute, value). The longest phrases count."""
    phrases, found = _phrases(), []
    for part in re.split("[,.:;]", text):  # a phrase ends where a comma is
        part, i = words(part), 0
        while i < len(part):
            for length in range(min(8, len(part) - i), 0, -1):
                said = phrases.get(tuple(part[i:i + length]))
                if said:
                    found.append(said)
                    i += length
                    break
            else:
                i += 1
    return found


@functools.lru_cache
def vocabulary(samples=40000, seed=7):
    """Every word the grammar says -> what it helps to tell, sorted: names of attributes, "mood" (no visible effect) or
    "wording" (words that only hold sentences together)."""
    rng = random.Random(seed)
    said = set()
    for _ in range(samples):
        said.update(words(caption(S.random_scene(rng, allow_held_out=True, abstract=0.2), rng)))
    tells = {word: set() for word in said}
    for phrase, (attribute, _) in _phrases().items():
        for word in phrase:
            if word in tells and word not in W.SMALL:
                tells[word].add(attribute)
    return {word: tuple(sorted(tells[word])) or ("wording",) for word in sorted(tells)}


def unknown_words(text):
    """The words of a text that no caption ever used, in its order."""
    known = vocabulary()
    return [word for word in dict.fromkeys(words(text)) if word not in known]


def held_out_prompts(count=10, seed=3, draw=S.random_scene):
    """(prompt, scene) of combinations never trained on; motions, settings, times and cameras vary."""
    rng = random.Random(seed)
    chosen = []
    for i in range(count):
        candidates = []
        while len(candidates) < 12:
            if i % 8 == 7:
                scene = draw(rng, True, type="abstract", style=S.STYLES[i // 8 % 3])
            else:
                scene = draw(rng, True, motion=S.MOTIONS[(i + i // 8) % len(S.MOTIONS)])
            if S.held_out(scene):
                candidates.append(S.attributes(scene) | {"scene": scene})
        # of twelve draws the one that repeats least of what was chosen before
        best = min(candidates, key=lambda a: sum(other[key] == a[key] for other in chosen for key in
                                                 ("colour", "setting", "time", "weather", "camera", "kind")))
        chosen.append(best)
    return [(caption(best["scene"], rng, full=True), best["scene"]) for best in chosen]


EXAMPLES = (
    "a red ball bounces on green grass under a blue sky",
    "a white boat sails to the left in a harbour at night",
    "three glowing lanterns rise over calm water at dusk",
    "a metal ball rolls behind a blue tower in fog",
    "blue and purple flowing gradient, slowly, on a dark background",
    "a turquoise cube collides with an orange cylinder on a studio floor",
    "two yellow rings spin on snow in falling snow, the camera orbits",
    "golden drifting lights on a dark background, seamless loop",
)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(30):
        print(caption(S.random_scene(generator), generator))
    print(len(vocabulary()), "words;", " ".join(vocabulary()))
    for prompt, scene in held_out_prompts(12):
        print("held out:", prompt)
