"""The words of the captions: for every value of every attribute the phrases that say it.

Every phrase says one thing only, longer phrases win over shorter ones in them, so captions can be read back.
"""

COLOURS = {
    "red": "red, red, red, crimson, scarlet, ruby, cherry red, vermilion",
    "orange": "orange, orange, orange, tangerine, amber, pumpkin, carrot orange",
    "yellow": "yellow, yellow, yellow, lemon, golden, canary yellow, sunflower yellow",
    "green": "green, green, green, emerald, jade, viridian, shamrock green, leaf green",
    "turquoise": "turquoise, turquoise, turquoise, teal, cyan, aqua, aquamarine",
    "blue": "blue, blue, blue, azure, cobalt, sapphire, ultramarine, royal blue",
    "purple": "purple, purple, purple, violet, plum, amethyst, grape, lavender",
    "pink": "pink, pink, pink, rosy, bubblegum pink, flamingo, fuchsia, blush pink",
    "brown": "brown, brown, brown, chestnut, chocolate, walnut, umber, coffee brown",
    "white": "white, white, white, ivory, pearl, chalk white, alabaster, milky",
    "grey": "grey, grey, gray, gray, slate, ashen, pebble grey, pebble gray",
    "black": "black, black, black, jet black, ebony, onyx, inky, coal black",
}
KINDS = {
    "ball": "ball, ball, ball, sphere, orb, globe",
    "cube": "cube, cube, cube, box, block, crate",
    "cylinder": "cylinder, cylinder, cylinder, drum, canister, can",
    "cone": "cone, cone, cone, pylon, pointed cone",
    "ring": "ring, ring, ring, hoop, donut, doughnut",
    "lantern": "lantern, lantern, paper lantern, glowing lantern, lamp, lampion",
    "boat": "boat, boat, sailboat, sailing boat, yacht, dinghy, ship, sloop, vessel",
    "tower": "tower, tower, lighthouse, turret, beacon, watchtower",
}
SIZES = {
    "small": "small, little, tiny, mini, miniature, petite, compact, modest",
    "medium": "medium, medium-sized, mid-sized, average-sized, moderate",
    "large": "large, big, huge, giant, massive, enormous, oversized, bulky, hefty",
}
MATERIALS = {
    "matte": "matte, matt, dull, unpolished, chalky, satin",
    "glossy": "glossy, shiny, polished, varnished, lacquered, gleaming, sleek, enamelled",
    "metal": "metal, metallic, steel, chrome, aluminium, burnished, iron, chromed",
}
# places by the preposition that goes with them; over, across, onto, ... take the place of "on" where the motion asks
PLACES = {
    "grass": {"on": "grass, the grass, green grass, a lawn, a meadow, a green meadow, a grassy field, the turf, a "
                    "pasture, a mown lawn, the village green, short grass",
              "in": "a meadow, a park, a garden, a grassy valley, the countryside, a green field, a backyard"},
    "sand": {"on": "sand, the sand, a beach, a sandy beach, golden sand, dry sand, a dune, the seashore, warm sand, a "
                   "sandbank",
             "in": "the desert, a desert, a sandy desert, the dunes, a sandpit, the sahara"},
    "stone": {"on": "stone, stone slabs, flagstones, a stone floor, the pavement, stone tiles, paving stones, a "
                    "terrace, a paved square, concrete, granite, a tiled floor",
              "in": "a plaza, a courtyard, a piazza, a paved yard, a town square"},
    "snow": {"on": "snow, the snow, fresh snow, white snow, a snowfield, deep snow, a snowy field, powder snow, "
                   "packed snow, a frozen plain",
             "in": "a winter landscape, a snowy landscape, the arctic, a snowy valley, the tundra"},
    "studio": {"on": "a studio floor, a product stage, a mirrored floor, a glossy stage, a reflective floor",
               "against": "a seamless backdrop, a plain backdrop, a pastel backdrop, a studio backdrop, a coloured "
                          "backdrop, a colored backdrop",
               "in": "a studio, a photo studio, a bright studio, a showroom, a product shot, a clean room, a "
                     "photography set"},
    "water": {"on": "open water, the sea, the ocean, the water, calm water, the waves, a lake, rippling water, gentle "
                    "waves, the open sea, the swell, a wide bay, blue waters",
              "in": "the sea, the open ocean, a bay, a lagoon"},
    "harbour": {"on": "the harbour, the harbor, the harbour water, the water of a harbour, the water of a port",
                "in": "a harbour, a harbor, the harbour, a city harbour, a city harbor, a port, the marina, the "
                      "docks, a city port, a bay before a skyline, a harbour before a city skyline, a bay with a "
                      "skyline, a city bay, an urban waterfront"},
}
PLACE_WORDS = {  # for lists of keywords
    "grass": "grass, lawn, meadow, grassland", "sand": "sand, beach, desert, seashore",
    "stone": "stone floor, plaza, paving, concrete", "snow": "snow, snowfield, tundra",
    "studio": "studio, studio backdrop, showroom", "water": "sea, ocean, open water, waves, lake",
    "harbour": "harbour, harbor, port, marina, city skyline, waterfront",
}
TIMES = {
    "dawn": "at dawn, at sunrise, at daybreak, in the early morning, in the morning light, as the sun rises, at first "
            "light, in the morning, in pale dawn light, at the break of day, as day breaks, in the early hours",
    "noon": "at noon, at midday, in daylight, in the daytime, in broad daylight, during the day, by day, at high noon, "
            "in the middle of the day, at lunchtime",
    "sunset": "at sunset, at dusk, in the evening, during the golden hour, as the sun sets, at sundown, in the "
              "evening glow, in warm evening light, at the end of the day, at nightfall, in the twilight",
    "night": "at night, after dark, at midnight, by night, in the dark, late at night, in the dead of night, in "
             "darkness, during the night, in the small hours",
}
CLEAR_TIMES = {  # true under a clear sky only
    "dawn": "under a pink morning sky, in the rosy light of dawn, under a pastel morning sky",
    "noon": "on a sunny day, under a blue sky, in bright sunshine, in the sunshine, under the midday sun, on a bright "
            "day",
    "sunset": "under an orange evening sky, under a sunset sky, in the last sunlight, under a glowing evening sky, "
              "before a fiery sunset",
    "night": "in the moonlight, under the stars, under a starry sky, under the moon, on a moonlit night, by moonlight, "
             "under a night sky",
}
TIME_NOUNS = {"dawn": "morning, dawn, sunrise", "noon": "midday, noon", "sunset": "evening, dusk, sunset",
              "night": "night"}
DAYS = {"dawn": "morning", "noon": "day", "sunset": "evening", "night": "night"}  # on a foggy ...
WEATHERS = {
    "clear": "in clear weather, under a clear sky, in fine weather, in clear air, in fair weather, in good weather",
    "fog": "in fog, in the fog, in thick fog, in mist, in foggy weather, shrouded in fog, in haze, in the mist, "
           "wrapped in mist, in a thick haze, in dense fog, veiled by mist, in murky air",
    "rain": "in the rain, in heavy rain, while it rains, in pouring rain, in a downpour, in a shower, in rainy "
            "weather, in wet weather, in a drizzle, as rain falls, as it pours, in a rainstorm, amid raindrops",
    "snow": "in falling snow, in a snowfall, while it snows, in a snowstorm, in a blizzard, in snowy weather, as snow "
            "falls, amid snowflakes, in a flurry of snow, as snowflakes drift down, in wintry weather",
}
WEATHER_ADJECTIVES = {"clear": "clear, fine, cloud-free", "fog": "foggy, misty, hazy", "rain": "rainy, wet, drizzly",
                      "snow": "snowy, wintry"}
CAMERAS = {
    "still": "still camera, static shot, the camera stands still, fixed camera, locked camera, steady shot, the "
             "camera is still, motionless camera, tripod shot",
    "pan left": "the camera pans left, panning left, camera pan to the left, the camera turns left, the camera "
                "swivels left, the view pans left, left pan, the camera looks from right to left",
    "pan right": "the camera pans right, panning right, camera pan to the right, the camera turns right, "
                 "the camera swivels right, the view pans right, right pan, the camera looks from left to right",
    "dolly in": "the camera moves in, the camera moves closer, dolly in, push in, the camera pushes in, the camera "
                "approaches, zooming in, the camera zooms in, the camera dollies in, the camera comes nearer, moving "
                "closer",
    "dolly out": "the camera moves back, the camera pulls back, dolly out, pull out, the camera moves away, the "
                 "camera retreats, zooming out, the camera zooms out, the camera dollies out, the camera backs away",
    "orbit": "the camera orbits, orbiting camera, the camera circles the scene, the camera moves around the scene, "
             "arc shot, the camera arcs around, the camera travels around the scene, orbit shot, the camera swings "
             "around",
    "crane up": "the camera rises, crane up, the camera cranes up, the camera lifts, the camera climbs, the camera "
                "ascends, rising camera, the camera goes up, boom up, the camera moves upward",
    "crane down": "the camera sinks, crane down, the camera cranes down, the camera descends, the camera lowers, "
                  "descending camera, the camera goes down, boom down, the camera moves downward",
}
RELATIONS = {
    "left of": "to the left of, left of, on the left of, on the left side of, at the left hand side of",
    "right of": "to the right of, right of, on the right of, on the right side of, at the right hand side of",
    "behind": "behind, in back of, farther back than, further away than",
    "in front of": "in front of, ahead of, nearer than, closer than",
    "on top of": "on top of, atop, on the top of, stacked on, perched on, balanced on",
}
DIRECTIONS = {
    "left": "left, to the left, leftward, leftwards, from right to left, towards the left, toward the left",
    "right": "right, to the right, rightward, rightwards, from left to right, towards the right, toward the right",
}
COUNTS = {2: "two, two, a pair of, a couple of", 3: "three, three, a trio of, a group of three, a set of three"}
# verbs in their base form: the first word is inflected; "%" stands for a direction
VERBS = {
    "rests": "rest, stand still, sit still, stay still, wait, remain in place, stand motionless, sit quietly, "
             "stay put, linger, pose",
    "falls": "fall, fall down, drop, drop down, plummet, fall to the ground, come down, plunge, crash down, fall from "
             "above, drop from the air, land with a thud, topple out of the air",
    "bounces": "bounce, bounce up and down, hop, jump up and down, spring up and down, rebound, "
               "bounce off the ground, hop up and down, leap up and down",
    "rolls": "roll %, roll along %, trundle %, wheel %, come rolling %",
    "slides": "slide %, glide %, skid %, slip %, scoot %, coast %, slide along %, slither %",
    "thrown": "be thrown %, be tossed %, be hurled %, be lobbed %, fly % in an arc, soar % through the air, "
              "be flung %, be pitched %, sail through the air %, arc through the air %",
    "swings": "swing, swing on a rope, swing back and forth, swing from a rope, swing to and fro, hang swinging from "
              "a rope, sway on a rope, dangle from a rope, swing like a pendulum, oscillate on a string",
    "spins": "spin, spin around, rotate, twirl, whirl around, turn around, spin in place, revolve, spin on the spot, "
             "pirouette, rotate in place, twirl around, gyrate",
    "rises": "rise, rise up, rise into the air, float up, ascend, drift upward, climb, lift off, levitate, drift "
             "upwards, take off, fly up, float upward, soar up, float skyward",
    "floats": "float, bob, bob up and down, bob gently, ride the waves, rock on the swell, float peacefully, sway with "
              "the waves, float quietly, bob about, rock back and forth",
    "sails": "sail %, cruise %, head %, sail along %, voyage %, cruise along %, navigate %",
    "collides": "collide with, hit, bump into, crash into, strike, knock into, smash into, ram, bang into, run into",
    "orbits": "orbit, circle, go around, move around, loop around, revolve around, travel around, run circles around, "
              "make a lap around, circle around",
    "passes": "pass behind, disappear behind, go behind, move behind, vanish behind, travel behind, slip behind, run "
              "behind",
}
# said after the second object of a passage
AGAIN = (
    "and comes out again, and reappears, and emerges on the other side, and comes back into view, and shows up again, "
    "and comes out on the other side")
TOGETHER = "side by side, in a row, in a line, next to each other"  # of three
SMALL = "a, an, the, of, in, on, as, it, and, with, from, by, at, to"
STYLES = {
    "gradient": "gradient, flowing gradient, color gradient, colour gradient, smooth gradient, fluid gradient, mesh "
                "gradient, silky gradient, liquid gradient, gradient flow, soft gradient",
    "ripples": "ripples, concentric ripples, spreading ripples, circular waves, water ripples, rippling circles, "
               "pulsing circles, soft ripples, expanding circles, ripple pattern",
    "lights": "drifting lights, bokeh, bokeh lights, soft lights, floating lights, blurred lights, glowing dots, "
              "light spots, glowing particles, shimmering lights, dreamy lights, twinkling bokeh",
}
TONES = {
    "light": "on a light background, on a bright background, on a pale background, in pastel tones, light and airy, "
             "bright tones, in light mode, fresh and bright",
    "dark": "on a dark background, dark and moody, on a deep background, in dark tones, in dark mode, deep and dark, "
            "low-key, dim and mysterious",
}
PACES = {
    "slow": "slowly, calmly, gently, lazily, at a slow pace, unhurried, leisurely, at an easy pace",
    "fast": "quickly, rapidly, briskly, swiftly, at a fast pace, energetic, lively, at high speed",
}
ABSTRACT_VERBS = {
    "gradient": "flowing, shifting, swirling, blending, undulating, morphing",
    "ripples": "spreading, pulsing, expanding, rippling, radiating",
    "lights": "drifting, floating, glowing, hovering, twinkling",
}
BACKGROUNDS = (
    "abstract background, brand background, website background, hero background, looping background, wallpaper, "
    "landing page background, screensaver, presentation background, title background")
LOOPS = "seamless loop, endless loop, perfect loop, looped, seamlessly looping, infinite loop"
# said of anything; nothing in the picture depends on them
PREFIXES = (
    "a video of, a clip of, a short film of, footage of, a shot of, a view of, an animation of, a rendering of, "
    "a movie of, a recording of, a scene of, a sequence of, a short video showing, a film showing, "
    "an animated scene with, a cinematic shot of, a simulation of, a wide shot of, a close look at")
SUFFIXES = (
    "cinematic, stunning, gorgeous, realistic, highly detailed, beautiful, peaceful, photorealistic, high quality, "
    "soft light, elegant, serene, atmospheric, smooth motion, real physics, minimal, minimalist, simple, stylish, "
    "picturesque, 3d render, crisp, clean, tranquil, scenic, lovely, vivid, professional, artistic, poetic, hypnotic, "
    "relaxing, modern")


def split(text):
    return [part.strip() for part in text.split(",")]


def expand(table):
    return {key: expand(value) if isinstance(value, dict) else split(value) for key, value in table.items()}


TABLES = ("COLOURS", "KINDS", "SIZES", "MATERIALS", "PLACES", "PLACE_WORDS", "TIMES", "CLEAR_TIMES", "TIME_NOUNS",
          "DAYS", "WEATHERS", "WEATHER_ADJECTIVES", "CAMERAS", "RELATIONS", "DIRECTIONS", "COUNTS", "VERBS", "STYLES",
          "TONES", "PACES", "ABSTRACT_VERBS")
for _name in TABLES:
    globals()[_name] = expand(globals()[_name])
AGAIN, TOGETHER, SMALL, BACKGROUNDS, LOOPS, PREFIXES, SUFFIXES = map(
    split, (AGAIN, TOGETHER, SMALL, BACKGROUNDS, LOOPS, PREFIXES, SUFFIXES))

_DOUBLED = {"drop", "spin", "hop", "sit", "bob", "skid", "slip", "hit", "run", "ram"}  # their last letter, before -ing


def third(verb):
    """The first word as after "it": roll left -> rolls left, be thrown -> is thrown."""
    head, _, tail = verb.partition(" ")
    if head == "be":
        head = "is"
    elif head.endswith(("s", "sh", "ch", "x", "z", "o")):
        head += "es"
    elif head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return f"{head} {tail}".strip()


def plural_verb(verb):
    return verb.replace("be ", "are ", 1) if verb.startswith("be ") else verb


def participle(verb):
    """The first word with -ing: drop down -> dropping down, be thrown -> thrown."""
    head, _, tail = verb.partition(" ")
    if head == "be":
        return tail
    if head in _DOUBLED:
        head += head[-1]
    elif head.endswith("e") and not head.endswith(("ee", "oe", "ye")):
        head = head[:-1]
    return f"{head}ing {tail}".strip()


def progressive(verb, many):
    doing = participle(verb)
    be = "are" if many else "is"
    return f"{be} being {doing}" if verb.startswith("be ") else f"{be} {doing}"


def plural(noun):
    if noun.endswith(("x", "s", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(phrase):
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
