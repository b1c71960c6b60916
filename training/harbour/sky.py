"""What lies at infinity, drawn once a scene: sky, clouds, sun, moon, stars, hills and the lit skyline.

The picture is indexed by direction: across by the sine of the azimuth (-1..1, behind the camera it repeats mirrored),
down by the square root of the sine of the elevation, finest at the horizon. All scenes of a batch lie in one atlas.
"""

import functools
import math

import torch
import torch.nn.functional as F

HOUSES = ((0.74, 0.60, 0.50), (0.62, 0.64, 0.70), (0.80, 0.72, 0.60), (0.50, 0.55, 0.66), (0.70, 0.50, 0.46))
TOP = 0.85  # sine of the highest elevation


def smooth(t):
    t = t.clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@functools.lru_cache
def noise_texture(device, size=256):
    """Fractal noise [1, 1, size + 1, size + 1] around 0.5 that repeats, the same on every device."""
    generator = torch.Generator().manual_seed(11)
    total = torch.zeros(1, 1, size, size)
    for octave, cells in enumerate((8, 16, 32, 64, 128)):
        grid = F.pad(torch.rand(1, 1, cells, cells, generator=generator), (2, 2, 2, 2), mode="circular")
        fine = F.interpolate(grid, scale_factor=size // cells, mode="bicubic", align_corners=False)
        edge = 2 * size // cells
        total += (fine[..., edge:-edge, edge:-edge] - 0.5) * 0.62 ** octave
    total = 0.5 + 0.22 * total / total.std()
    return F.pad(total, (0, 1, 0, 1), mode="circular").clamp(0.0, 1.0).to(device)


def noise(x, y):
    """Noise 0..1 at points of any shape; it repeats after 1."""
    x, y = torch.broadcast_tensors(x, y)
    grid = torch.stack((x - x.floor(), y - y.floor()), -1).reshape(1, 1, -1, 2) * 2.0 - 1.0
    return F.grid_sample(noise_texture(x.device), grid, align_corners=True).reshape(x.shape)


@functools.lru_cache
def _stars(width, height, device):
    """Stars [height, width] of the panorama, each spread over its four nearest texels."""
    generator = torch.Generator().manual_seed(4)
    count = 150
    place = torch.rand(2, count, generator=generator)
    bright = 0.25 + 0.75 * torch.rand(count, generator=generator) ** 3
    u, v = place[0] * (width - 2), (0.25 + 0.75 * place[1]) * (height - 2)
    plane = torch.zeros(height * width)
    for du in (0, 1):
        for dv in (0, 1):
            weight = (1 - (u - u.floor() - du).abs()) * (1 - (v - v.floor() - dv).abs())
            plane.index_add_(0, ((v.long() + dv) * width + u.long() + du), weight * bright * 1.6)
    return plane.clamp_max(1.0).reshape(height, width).to(device)


def size_for(width, height):
    """Texels (across, down) of a panorama for pictures of that many pixels."""
    short = min(width, height)
    return 3 * short, (5 * short // 4 + 1) // 2 * 2


class Sky:
    """The panoramas of a batch; `at` looks them up."""

    def __init__(self, lights, scenes, width, height, device, grain=1.0):
        columns, rows = size_for(width, height)
        self.count = len(scenes)
        picture = _panorama(lights, scenes, columns, rows, device)  # [B, 3, rows, columns], the horizon comes last
        if grain > 1:
            rows, columns = round(rows / grain), round(columns / grain)
            picture = F.interpolate(picture, size=(rows, columns), mode="area")
        # in waves, lights are drawn out downwards
        reach = rows // 11
        summed = F.pad(picture, (0, 0, reach + 1, reach), mode="replicate").cumsum(2)
        waves = (summed[:, :, 2 * reach + 1:] - summed[:, :, :-2 * reach - 1]) / (2 * reach + 1)
        # curved metal shows all of the sky in a few pixels
        soft = F.interpolate(picture, size=(round(rows * grain / 6), round(columns * grain / 6)), mode="area")
        maps = {"sharp": picture, "waves": torch.lerp(picture, waves, 0.75), "soft": soft}
        self.maps = {name: plane.permute(1, 0, 2, 3).flatten(1, 2)[None] for name, plane in maps.items()}

    def at(self, scene, x, y, z, look="sharp"):
        """Colours [3, *shape] in the directions (x, y, z), unit vectors; `scene` is the index in the batch. The sky
        is also seen in "waves", drawn out downwards, and as a "soft" one in what is curved."""
        atlas = self.maps[look]
        rows, columns = atlas.shape[2] // self.count, atlas.shape[3]
        across = x * torch.rsqrt((x * x + z * z).clamp_min(1e-8))
        down = 1.0 - (y.clamp(0.0, TOP) / TOP).sqrt()
        row = scene * float(rows) + 0.5 + down * (rows - 1)
        column = (across * 0.5 + 0.5) * (columns - 1) + 0.5
        grid = torch.stack(torch.broadcast_tensors(column * (2.0 / columns) - 1.0,
                                                   row * (2.0 / (rows * self.count)) - 1.0), -1)
        found = F.grid_sample(atlas, grid.reshape(1, 1, -1, 2), align_corners=False, padding_mode="border")
        return found.reshape(3, *grid.shape[:-1])


def _panorama(lights, scenes, columns, rows, device):
    def number(name):
        return torch.tensor([l[name] for l in lights], device=device)[:, None, None]

    def colour(name):
        return torch.tensor([l[name] for l in lights], device=device)[:, :, None, None]

    sine = torch.linspace(-1.0, 1.0, columns, device=device)[None]
    up = (torch.linspace(1.0, 0.0, rows, device=device) ** 2 * TOP)[:, None]
    flat = (1.0 - up * up).sqrt()
    x, z = sine * flat, (1.0 - sine * sine).clamp_min(0.0).sqrt() * flat
    step = 1.0 / rows  # about the angle of a texel

    stops = torch.tensor([l["sky"] for l in lights], device=device)  # [B, 4, 3]
    places = (0.0, 0.10, 0.30, 0.72)
    picture = stops[:, 0, :, None, None].expand(-1, -1, rows, 1)
    for i in range(3):
        share = smooth((up - places[i]) / (places[i + 1] - places[i]))
        picture = torch.lerp(picture, stops[:, i + 1, :, None, None], share)
    picture = picture.expand(-1, -1, -1, columns)

    # clouds on a plane above: noise that is thick in places, paler where thin
    phase = torch.tensor([l["phase"] for l in lights], device=device)[:, :, None, None]
    plane = 0.11 / (up + 0.10)
    cloud = noise(0.42 * x * plane * 3 + phase[:, 0], 0.42 * z * plane * 5 + phase[:, 1])
    cloud = cloud * 0.65 + 0.35 * noise(1.7 * x * plane * 2 + phase[:, 2], 2.2 * z * plane * 3)
    cloud = smooth((cloud - 0.46) * 4.0) * number("clouds")
    cloud = cloud * (up * 14.0).clamp(0.0, 1.0) * (1.5 - 1.8 * up).clamp(0.0, 1.0)

    side, high = number("side"), number("high")
    ahead = (1.0 - side * side - high.clamp_max(0.9) ** 2).clamp_min(0.0).sqrt()
    towards = (x * side + up * high + z * ahead).clamp_max(1.0)
    apart = (2.0 - 2.0 * towards).sqrt()
    stars = _stars(columns, rows, device) * number("stars") * (1.0 - cloud)
    picture = picture + stars[:, None] * 0.9 * (up > 0.03)
    picture = torch.lerp(picture, colour("cloud"), cloud[:, None] * 0.85)
    glow = torch.exp(-apart * apart * 14.0) * 0.6 + torch.exp(-(apart * apart).clamp_max(0.7) * 120.0) * 0.4
    glow = glow * number("glowing") * (high < 1)
    picture = picture + glow[:, None] * (colour("glow") - 0.35 * picture)
    disc = ((0.052 - apart) / (2.0 * step) + 0.5).clamp(0.0, 1.0) * number("shows")
    picture = torch.lerp(picture, colour("disc"), disc[:, None])

    # hills, one line behind the other, hazier
    rise, hill, haze = number("rise"), colour("hill"), colour("haze")
    waves = [torch.sin(k * sine + phase[:, i]) for i, k in enumerate((5.0, 11.0, 23.0, 4.0, 9.0, 19.0))]
    for i, (base, pale) in enumerate(((0.95, 0.5), (0.45, 0.0))):
        line = rise * (base + (0.36 * waves[3 * i] + 0.22 * waves[3 * i + 1] + 0.10 * waves[3 * i + 2]))
        cover = ((line - up) / (1.2 * step * (up + 0.01).sqrt() * 2) + 0.5).clamp(0.0, 1.0) * (rise > 0)
        picture = torch.lerp(picture, torch.lerp(hill, haze, pale), cover[:, None])
    towns = [i for i, scene in enumerate(scenes) if scene["setting"] == "harbour"]
    if towns:
        picture = picture.clone()
        picture[towns] = _skyline(picture[towns], [lights[i] for i in towns], [scenes[i] for i in towns], sine, up)
    # thick air hides what is low
    band = number("band") * torch.exp(-up / 0.09)
    return torch.lerp(picture, haze, band[:, None]).clamp(0.0, 1.0)


def _skyline(picture, lights, scenes, sine, up):
    """Two rows of houses with windows over the horizon; at night most are lit, lamps stand along the quay."""
    device = picture.device
    night = torch.tensor([l["night"] for l in lights], device=device)[:, None, None]
    haze = torch.tensor([l["haze"] for l in lights], device=device)[:, :, None, None]
    ambient = torch.tensor([l["ambient"] for l in lights], device=device)[:, :, None, None]
    air = torch.tensor([l["air"] for l in lights], device=device)[:, None, None, None]
    tints = torch.tensor(HOUSES, device=device)
    yellow, bluish = torch.tensor(((1.0, 0.80, 0.42), (0.75, 0.88, 1.0)), device=device)[..., None, None]
    seeds = torch.tensor([scene["seed"] for scene in scenes], device=device)[:, None, None]
    dice = torch.rand(64, 128, generator=torch.Generator().manual_seed(8)).to(device)
    for layer, (slots, tall, base, pale) in enumerate(((44, 0.15, 0.05, 0.42), (30, 0.10, 0.035, 0.12))):
        rolls = torch.stack([torch.rand(2, slots, generator=torch.Generator().manual_seed(scene["seed"] * 2 + layer))
                             for scene in scenes]).to(device)  # [B, 2, slots]
        heights = base + tall * rolls[:, 0] ** 2
        place = (sine * 0.5 + 0.5) * (slots - 1e-3)  # [1, W]
        slot = place.floor().long()[0]
        inside = place - place.floor()
        height = heights[:, slot][:, None]  # [B, 1, W]
        gap = (inside > 0.04) if layer else torch.ones_like(inside, dtype=torch.bool)
        cover = (up < height) * gap
        tint = tints[(rolls[:, 1] * 4.99).long()[:, slot]].permute(0, 2, 1)[:, :, None]  # [B, 3, 1, W]
        wall = torch.lerp(tint * ambient * 0.9, haze, pale + (air * 4.0).clamp(0.0, 0.5))
        wall = torch.lerp(wall, wall * 0.42 + 0.05 * haze, night[:, None])
        columns = 4 - layer
        column = (inside * columns).floor().long() + slot * columns
        floor = (up / 0.0125).floor().long()
        fx, fy = (inside * columns) % 1.0, (up / 0.0125) % 1.0
        window = (fx > 0.22) * (fx < 0.78) * (fy > 0.25) * (fy < 0.80)
        chance = dice[floor % 64, (column + seeds) % 128]
        lit = window * (chance < 0.15 + 0.45 * night) * (night > 0.1) * (up > 0.012) * (up < height - 0.008)
        warm = torch.where((chance * 37.0 % 1.0 < 0.8)[:, None], yellow, bluish)
        dim = 1.0 - 0.22 * (window * (up < height - 0.008))[:, None] * (1.0 - night[:, None])
        house = torch.lerp(wall * dim, warm, (lit * (0.55 + 0.4 * night) * (1 - 0.5 * pale))[:, None])
        picture = torch.where(cover[:, None], house, picture)
    quay = up < 0.010
    lamps = torch.exp(-((sine * 24.0) % 1.0 - 0.5) ** 2 * 130.0) * torch.exp(-((up - 0.012) / 0.006) ** 2)
    picture = torch.where(quay, torch.lerp(0.45 * ambient, 0.3 * haze, night[:, None]), picture)
    glow = torch.tensor((1.0, 0.78, 0.38), device=device)[:, None, None]
    return picture + (lamps * night)[:, None] * (glow - 0.3 * picture)
