"""The light of a scene: colours of sky, sun, ground and water by time of day, weather and setting. Plain numbers."""

import math
import random

# sky colours from the horizon up, clouds, the sun or moon (azimuth, height, colour, glow), the key light
# (direction, colour), the light from everywhere
TIME = {
    "dawn": {"sky": ((1.00, 0.82, 0.64), (0.99, 0.71, 0.66), (0.72, 0.65, 0.82), (0.36, 0.47, 0.76)),
             "cloud": (1.00, 0.84, 0.82), "disc": (0.24, 0.055, (1.00, 0.95, 0.82)), "glow": ((1.00, 0.78, 0.56), 0.62),
             "key": ((0.66, 0.52, -0.54), (0.62, 0.46, 0.36)), "ambient": (0.56, 0.53, 0.62), "night": 0.25,
             "water": (0.20, 0.30, 0.42)},
    "noon": {"sky": ((0.83, 0.93, 0.98), (0.60, 0.82, 0.97), (0.34, 0.63, 0.93), (0.14, 0.40, 0.81)),
             "cloud": (1.00, 1.00, 1.00), "disc": (0.0, 2.0, (1.00, 1.00, 1.00)), "glow": ((1.00, 1.00, 0.95), 0.0),
             "key": ((-0.46, 0.76, -0.46), (0.64, 0.61, 0.54)), "ambient": (0.52, 0.56, 0.63), "night": 0.0,
             "water": (0.05, 0.30, 0.44)},
    "sunset": {"sky": ((1.00, 0.70, 0.30), (0.98, 0.47, 0.32), (0.60, 0.29, 0.48), (0.20, 0.16, 0.40)),
               "cloud": (1.00, 0.52, 0.42), "disc": (-0.20, 0.075, (1.00, 0.93, 0.66)), 
               "glow": ((1.00, 0.72, 0.28), 0.85),
               "key": ((-0.70, 0.46, -0.54), (0.70, 0.42, 0.22)), "ambient": (0.54, 0.44, 0.52), "night": 0.45,
               "water": (0.16, 0.14, 0.30)},
    "night": {"sky": ((0.17, 0.24, 0.46), (0.10, 0.15, 0.35), (0.045, 0.07, 0.21), (0.02, 0.03, 0.12)),
              "cloud": (0.20, 0.25, 0.42), "disc": (0.19, 0.150, (0.98, 0.97, 0.90)), 
              "glow": ((0.50, 0.60, 0.95), 0.42),
              "key": ((0.50, 0.70, -0.50), (0.40, 0.43, 0.54)), "ambient": (0.37, 0.39, 0.52), "night": 1.0,
              "water": (0.02, 0.05, 0.13)},
}
# how grey the sky, how much sun is left, how thick the air (per metre), how bright the grey
WEATHER = {"clear": (0.0, 1.0, 0.012, 1.0), "fog": (0.86, 0.32, 0.095, 1.06), "rain": (0.85, 0.22, 0.040, 0.80),
           "snow": (0.85, 0.35, 0.050, 0.90)}
# ground: two colours; weights of broad noise, fine noise, ripples, slabs; reflection; hill colour and height
GROUND = {
    "grass": ((0.20, 0.42, 0.10), (0.48, 0.70, 0.22), (0.30, 0.50, 0.0, 0.0), 0.0, (0.20, 0.40, 0.28), 0.050),
    "sand": ((0.74, 0.58, 0.37), (0.98, 0.86, 0.62), (0.25, 0.10, 0.24, 0.0), 0.0, (0.80, 0.62, 0.42), 0.045),
    "stone": ((0.30, 0.31, 0.34), (0.72, 0.71, 0.69), (0.16, 0.16, 0.0, 0.9), 0.0, (0.38, 0.40, 0.46), 0.075),
    "snow": ((0.66, 0.76, 0.91), (0.97, 0.98, 1.00), (0.30, 0.10, 0.0, 0.0), 0.0, (0.60, 0.70, 0.85), 0.100),
    "studio": ((0.50, 0.50, 0.50), (0.50, 0.50, 0.50), (0.0, 0.0, 0.0, 0.0), 0.16, (0.5, 0.5, 0.5), 0.0),
}
BACKDROPS = ((0.84, 0.82, 0.79), (0.62, 0.76, 0.88), (0.94, 0.74, 0.62), (0.64, 0.83, 0.72), (0.76, 0.69, 0.91))
STUDIO = {"key": ((-0.50, 0.74, -0.46), (0.55, 0.54, 0.52)), "ambient": (0.58, 0.58, 0.59)}


def mix(a, b, t):
    return tuple(x + (y - x) * t for x, y in zip(a, b))


def scaled(colour, factor):
    return tuple(c * factor for c in colour)


def light(scene):
    """Everything the picture needs to know about the light of a scene, as numbers and tuples."""
    time, setting = TIME[scene["time"]], scene["setting"]
    grey, sun, air, bright = WEATHER[scene["weather"]]
    rng = random.Random(scene["seed"])
    sky = []
    mean = [sum(stop) / 3 for stop in time["sky"]]
    overcast = 0.5 * mean[1] + 0.5 * mean[0]
    if scene["time"] == "night":
        overcast *= 1.45  # lamps light the clouds and the mist
    for stop in time["sky"]:
        flat = mix((overcast * 0.95, overcast * 0.98, overcast * 1.03), stop, 0.22)
        sky.append(mix(stop, scaled(flat, bright), grey))
    direction, key = time["key"]
    ambient = time["ambient"]
    if setting == "studio":
        base = BACKDROPS[scene["seed"] % len(BACKDROPS)]
        sky = [scaled(base, f) for f in (0.99, 0.97, 0.90, 0.62)]
        (direction, key), ambient = STUDIO["key"], STUDIO["ambient"]
        # a soft spot on the backdrop behind the stage
        time = dict(time, disc=(0.0, 0.02, base), glow=(mix(base, (1.0, 1.0, 1.0), 0.75), 0.26))
    norm = math.sqrt(sum(v * v for v in direction))
    side, high, disc = time["disc"]
    # a grey sky lights from everywhere: what the sun loses comes back without direction
    ambient = tuple(a + 0.42 * (1 - sun) * sum(key) / 3 for a in ambient)
    ambient = mix(ambient, (sum(ambient) / 3,) * 3, 0.6 * grey)
    found = {
        "sky": sky, "cloud": mix(time["cloud"], scaled(sky[1], 1.05), grey),
        "clouds": 0.0 if setting == "studio" else 0.85 - 0.3 * grey,
        "side": side + rng.uniform(-0.04, 0.04), "high": high, "disc": disc,
        "shows": 0.0 if setting == "studio" or high > 1 else (1 - grey) ** 2, "glow": time["glow"][0],
        "glowing": time["glow"][1] * (1 - 0.8 * grey),
        "direction": tuple(v / norm for v in direction), "key": scaled(key, sun), "ambient": ambient,
        "air": 0.0 if setting == "studio" else air,
        "haze": mix(sky[0], sky[1], 0.3) if setting != "studio" else sky[0],
        "fade": 0.7 * air,
        "band": 0.0 if setting == "studio" else {"clear": 0.12, "fog": 0.95}.get(scene["weather"], 0.5),
        "night": 0.0 if setting == "studio" else max(time["night"], 0.3 * grey),
        "stars": (1 - grey) ** 2 if scene["time"] == "night" else 0.0,
        "water": mix(time["water"], scaled(sky[1], 0.5), 0.6 * grey),
        "phase": [rng.uniform(0, math.tau) for _ in range(6)],
    }
    if setting in GROUND:
        low, high_, weights, shine, hill, rise = GROUND[setting]
        if setting == "studio":
            low = high_ = mix(base, (1.0, 1.0, 1.0), 0.02)
        if scene["weather"] == "rain":  # wet ground is darker and shines
            low, high_, shine = scaled(low, 0.74), scaled(high_, 0.74), shine + 0.16
        if scene["weather"] == "snow" and setting != "snow":
            low, high_ = mix(low, (0.86, 0.9, 0.96), 0.25), mix(high_, (0.96, 0.97, 1.0), 0.40)
        lit = tuple(a + k * found["direction"][1] for a, k in zip(found["ambient"], found["key"]))
        found.update(low=tuple(c * v for c, v in zip(low, lit)), high_ground=tuple(c * v for c, v in zip(high_, lit)),
                     weights=weights, shine=shine, rise=rise,
                     hill=mix(tuple(c * v for c, v in zip(hill, lit)), found["haze"], 0.30 + 0.45 * grey))
    else:
        found.update(low=found["water"], high_ground=found["water"], weights=(0.0,) * 4, shine=0.9, rise=0.028,
                     hill=mix(scaled(sky[2], 0.6), found["haze"], 0.35 + 0.4 * grey))
    found["bounce"] = mix(found["low"], found["high_ground"], 0.6)
    return found
