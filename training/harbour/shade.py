"""Light on surfaces: diffuse, glossy and metal, with the sky mirrored in it."""

import torch

from .objects import paint


def shade(kind, entry, p, n, d, way, foot, sky, mirrors=True):
    """Colours [3, M] of surface points and the glow of lamps. `entry` holds a column for every fragment, `p` is the
    point in object space [3, M], `n` its normal and `d` the ray in the world [3, M], `way` its length in metres."""
    colour = entry["colour"]
    albedo, glow = paint(kind, p, colour, foot, entry["night"])
    point = entry["from"] + d * way
    key, ambient, bounce, sun = entry["key"], entry["ambient"], entry["bounce"], entry["direction"]
    lit = (n * sun).sum(0)
    # a lamp beside the camera keeps colours readable against the light
    fill = (-(n * d).sum(0)).clamp(0.0, 1.0)
    up = 0.5 + 0.5 * n[1]
    low = (point[1] / (0.9 * entry["unit"])).clamp(0.0, 1.0)
    near = 0.55 + 0.45 * (low + (1.0 - low) * up).clamp(0.0, 1.0)
    # another object close by takes light away
    to = entry["neighbour"] - point
    gap = to.square().sum(0).clamp_min(1e-6)
    near = near * (1.0 - 0.85 * ((n * to).sum(0) * gap.rsqrt()).clamp(0.0, 1.0)
                   * (entry["neighbour size"].square() / gap).clamp_max(1.0))
    soft = 0.25 if kind == "lantern" else 0.12
    sunny = ((lit + soft) / (1.0 + soft)).clamp_min(0.0)
    light = (ambient * (0.50 + 0.32 * up + 0.20 * fill) + bounce * (0.30 * (1.0 - up))) * near + key * sunny
    gloss, metal = entry["gloss"], entry["metal"]
    diffuse = albedo * light
    half = sun - d
    shine = ((n * half).sum(0) * half.square().sum(0).clamp_min(1e-6).rsqrt()).clamp(0.0, 1.0)
    for _ in range(3):
        shine = shine * shine
    strong = (shine * shine) ** 4  # power 64
    picture = diffuse * (1.0 - 0.74 * metal) + key * (shine * 0.10 + strong * (1.1 * gloss + 0.9 * metal))
    if mirrors:
        chosen = ((gloss + metal) > 0).nonzero()[:, 0]
        if len(chosen):
            nn, dd = n[:, chosen], d[:, chosen]
            facing = -(nn * dd).sum(0)
            r = dd + 2.0 * facing * nn
            above = sky.at(entry["scene"][chosen], *r, look="soft")
            level = (0.5 + r[1] * 6.0).clamp(0.0, 1.0)
            seen = torch.lerp(bounce[:, chosen], above, level) * near[chosen]
            # metal would take the colours of sky and ground, and lose its own
            seen = torch.lerp(seen, seen.mean(0, keepdim=True), 0.6 * metal[chosen])
            # metal shows a dark line where sky and ground meet in it
            band = 1.0 - 0.45 * torch.exp(-(r[1] * 5.0 + 0.4).square())
            edge = (1.0 - facing.clamp(0.0, 1.0)) ** 4
            tint = torch.lerp(albedo[:, chosen] * 0.95 + 0.05, torch.ones_like(nn), 0.5 * edge)
            mine = metal[chosen]
            extra = seen * (mine * 1.05 * band * tint + gloss[chosen] * (0.05 + 0.42 * edge))
            picture = picture.index_add(1, chosen, extra)
    else:
        picture = picture + metal * albedo * ambient * 0.7
    if glow is not None:
        picture = picture * (1.0 - 0.75 * glow.amax(0)) + glow
    thick = 1.0 - torch.exp(-way * entry["air"])
    return torch.lerp(picture, entry["haze"], thick)
