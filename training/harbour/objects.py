"""The shapes: signed distances in the object's own unit, and what is painted on them. Points are [3, M]."""

import torch

COLOUR = {
    "red": (0.86, 0.09, 0.10), "orange": (0.98, 0.47, 0.05), "yellow": (0.99, 0.85, 0.10), "green": (0.08, 0.60, 0.22),
    "turquoise": (0.06, 0.78, 0.74), "blue": (0.12, 0.28, 0.90), "purple": (0.50, 0.17, 0.76),
    "pink": (0.99, 0.48, 0.70), "brown": (0.43, 0.24, 0.11), "white": (0.96, 0.96, 0.96), "grey": (0.50, 0.51, 0.53),
    "black": (0.055, 0.055, 0.065),
}
STEPS = {"ball": 8, "cube": 10, "cylinder": 11, "cone": 12, "ring": 14, "lantern": 14, "boat": 18, "tower": 15,
         "rope": 8}  # of sphere tracing
ROPE_RADIUS = 0.007  # of its length, the rope's unit
WARM = (1.0, 0.80, 0.42)


def _length(*parts):
    total = parts[0] * parts[0]
    for part in parts[1:]:
        total = total + part * part
    return total.sqrt()


def _capped(radial, axial):
    """Distance of a body of revolution from its signed distances along the radius and along the axis."""
    return torch.maximum(radial, axial).clamp_max(0.0) + _length(radial.clamp_min(0.0), axial.clamp_min(0.0))


def distance(kind, p):
    """Signed distance [M] to an object of a kind, at most the true one."""
    x, y, z = p.unbind(0)
    if kind == "ball":
        return _length(x, y, z) - 1.0
    if kind == "cube":
        q = p.abs() - 0.76
        return q.clamp_min(0.0).square().sum(0).sqrt() + q.amax(0).clamp_max(0.0) - 0.09
    if kind == "cylinder":
        return _capped(_length(x, z) - 0.66, y.abs() - 0.86) - 0.04
    if kind == "cone":
        side = 0.915 * (_length(x, z) - 0.42 * (0.94 - y))
        return torch.maximum(side, -0.96 - y) - 0.035
    if kind == "ring":
        return _length(_length(x, y) - 0.76, z) - 0.24
    radial = _length(x, z)
    if kind == "lantern":
        body = 0.78 * (_length(radial / 0.80, y / 0.84) - 1.0)
        frame = _capped(radial - 0.36, (y + 0.1).abs() - 1.08)
        handle = _length(_length(x, y - 1.0) - 0.16, z) - 0.035
        return torch.minimum(torch.minimum(body, frame), handle)
    if kind == "tower":
        body = _capped(0.99 * (radial - 0.46 + 0.05 * y), (y + 0.52).abs() - 1.48)
        gallery = _capped(radial - 0.56, (y - 1.0).abs() - 0.06)
        room = _capped(radial - 0.31, (y - 1.25).abs() - 0.25)
        roof = torch.maximum(0.76 * (radial - 0.86 * (2.0 - y)), 1.48 - y)
        return torch.minimum(torch.minimum(body, gallery), torch.minimum(room, roof))
    if kind == "rope":
        return _length(x, y - y.clamp(-0.5, 0.5), z) - ROPE_RADIUS
    # boat: a hull that narrows to both ends, a mast and two sails
    length = 1.28 + 0.45 * (y + 0.82)
    hull = 0.72 * torch.maximum(z.abs() - 0.50 * (1.0 - (x / length).square()), (y + 0.82).abs() - 0.33)
    mast = _capped(_length(x - 0.09, z) - 0.04, (y - 0.3).abs() - 0.84)
    flat = (z - 0.10 * (1 - y) * x.abs()).abs() - 0.03
    main = torch.maximum(torch.maximum(x - 0.03, -0.33 - y), -0.797 * x + 0.604 * y - 0.664)
    jib = torch.maximum(torch.maximum(0.17 - x, -0.28 - y), 0.760 * x + 0.650 * y - 0.745)
    sails = 0.9 * torch.maximum(torch.minimum(main, jib), flat)
    return torch.minimum(torch.minimum(hull, mast), sails)


def _step(value, width):
    """0 to 1 where value crosses zero, over `width`."""
    return (0.5 + value / width).clamp(0.0, 1.0)


def _mix(a, b, t):
    return a + (b - a) * t


def _tone(p, *rgb):
    return torch.tensor(rgb, dtype=p.dtype, device=p.device)[:, None]


def paint(kind, p, colour, foot, night):
    """Surface colour [3, M] and light of its own [3, M] or None, at points of the surface.
    `foot` [M] is the size of a pixel there in object units, `night` [M] how much lamps shine."""
    x, y, z = p.unbind(0)
    foot = foot.clamp_min(0.02)
    if kind in ("ball", "cylinder"):
        # a paler band, of a cylinder on its ends, shows how it turns
        band = _step(0.17 - x.abs(), foot)
        if kind == "cylinder":
            band = band * _step(y.abs() - 0.86, 0.04)
        pale = _mix(colour, _tone(p, 1.0, 1.0, 1.0), 0.55)
        return _mix(colour, _mix(pale, 0.55 * pale, _step(colour.amin(0) - 0.7, 0.2)), band), None
    if kind == "ring":  # four paler bands, as on a lifebuoy
        band = _step(0.14 - torch.minimum((x - y).abs(), (x + y).abs()), foot)
        pale = _mix(colour, _tone(p, 1.0, 1.0, 1.0), 0.55)
        return _mix(colour, _mix(pale, 0.6 * pale, _step(colour.amin(0) - 0.7, 0.2)), band), None
    if kind == "lantern":
        inside = _length(_length(x, z) / 0.80, y / 0.84)
        shade = _step(1.04 - inside, 0.05 + foot) * _step(0.80 - y.abs(), 0.04 + foot)
        ribs = 1.0 - 0.26 * (0.5 + 0.5 * torch.cos(y * 24.0)) * (1.0 - 5.0 * foot).clamp(0.0, 1.0)
        paper = colour * ribs
        core = torch.exp(-2.2 * (x * x + (y + 0.1).square()))  # the flame shines through the middle
        glow = (0.20 + 0.46 * night) * shade * _mix(paper, _tone(p, 1.0, 0.90, 0.66), 0.50 * core)
        return _mix(_tone(p, 0.16, 0.11, 0.09), 0.8 * paper, shade), glow
    if kind == "tower":
        band = _step(0.20 - (y + 0.75).abs(), foot) + _step(0.18 - (y - 0.22).abs(), foot)
        light = _mix(_tone(p, 0.93, 0.92, 0.90), _tone(p, 0.45, 0.47, 0.52), _step(colour.amin(0) - 0.7, 0.2))
        body = _mix(colour, light, band.clamp(0.0, 1.0))
        door = _step(0.13 - x.abs(), foot) * _step(-1.55 - y, foot) * (z < 0)
        top = _step(y - 0.92, foot)
        lamp = _step(0.20 - (y - 1.27).abs(), foot) * _step(0.40 - _length(x, z), 0.04)
        body = _mix(_mix(body, 0.25 * colour + 0.05, door), _tone(p, 0.20, 0.21, 0.25), top)
        body = _mix(body, _tone(p, 0.75, 0.72, 0.60), lamp)
        return body, lamp * (0.15 + 0.85 * night) * _tone(p, *WARM)
    if kind == "boat":
        sail = _step(y + 0.42, foot)
        rim = _step(y + 0.60, foot) * (1.0 - sail)
        keel = _step(-0.98 - y, foot)
        cloth = _tone(p, 0.95, 0.93, 0.88) - 0.16 * _step(0.035 - (x - 0.1).abs(), foot)
        hull = _mix(_mix(colour, _tone(p, 0.62, 0.46, 0.30), rim), 0.35 * colour, keel)
        return _mix(hull, cloth, sail), None
    if kind == "rope":
        return _tone(p, 0.30, 0.24, 0.18).expand_as(p), None
    return colour, None
