"""Renderer of the procedural world: batched analytic ray casting in PyTorch.

`render(scenes)` returns clips [B, T, 3, H, W] with values 0..1 (sRGB). The same
code runs on CPU and CUDA; through torch.compile all of the picture is one fused
loop. Edges are anti-aliased by analytic coverage: spheres by the distance of
the ray from the centre, cube faces by the screen distance to their edges.
"""

import math

import torch

from . import scenes as S

CAMERA_HEIGHT = 1.1
PITCH = math.radians(-7.0)
FOCAL = 0.5 / math.tan(math.radians(22.5))  # in units of the side of a square picture, `lens`
RISE = 0.3  # how far up a low picture is cut out of the square one: the things are in its upper four fifths
CUBE_YAW = math.radians(28.0)
LIGHT = (-0.48, 0.80, -0.36)  # unit direction towards the light

OBJECT = {
    "red": (0.90, 0.11, 0.12), "orange": (1.00, 0.50, 0.05), "yellow": (1.00, 0.87, 0.08),
    "green": (0.05, 0.66, 0.22), "cyan": (0.05, 0.82, 0.86), "blue": (0.10, 0.25, 0.92),
    "purple": (0.50, 0.14, 0.76), "pink": (1.00, 0.45, 0.70),
}
# two colours and the weights of constant, broad noise, fine noise, ripples and checks between them
GROUND = {
    "grass": ((0.20, 0.42, 0.12), (0.46, 0.68, 0.22), (0.5, 0.28, 0.20, 0.0, 0.0)),
    "sand": ((0.76, 0.62, 0.40), (0.95, 0.84, 0.62), (0.5, 0.18, 0.05, 0.24, 0.0)),
    "snow": ((0.78, 0.85, 0.95), (0.98, 0.99, 1.00), (0.65, 0.30, 0.06, 0.0, 0.0)),
    "stone": ((0.33, 0.34, 0.37), (0.56, 0.56, 0.57), (0.5, 0.26, 0.16, 0.0, 0.0)),
    "checkered": ((0.16, 0.17, 0.22), (0.93, 0.91, 0.87), (0.5, 0.0, 0.0, 0.0, 0.5)),
}
# horizon, zenith, cloud colour, cloud weight, glow colour, glow strength, disc colour, disc, stars, hills, light, shadow
SKY = {
    "day": ((0.76, 0.89, 0.99), (0.20, 0.50, 0.92), (1.00, 1.00, 1.00), 0.75, (1.0, 1.0, 0.9), 0.0,
            (1.0, 1.0, 1.0), 0.0, 0.0, (0.36, 0.56, 0.52), (1.00, 1.00, 0.98), 0.46),
    "sunset": ((1.00, 0.66, 0.34), (0.42, 0.26, 0.52), (1.00, 0.52, 0.45), 0.55, (1.0, 0.80, 0.35), 0.55,
               (1.0, 0.93, 0.66), 1.0, 0.0, (0.40, 0.22, 0.32), (1.00, 0.80, 0.66), 0.42),
    "night": ((0.13, 0.18, 0.36), (0.02, 0.03, 0.11), (0.20, 0.24, 0.40), 0.25, (0.6, 0.7, 1.0), 0.28,
              (0.97, 0.97, 0.90), 1.0, 1.0, (0.05, 0.08, 0.16), (0.58, 0.62, 0.80), 0.42),
    "overcast": ((0.80, 0.82, 0.84), (0.55, 0.58, 0.63), (0.90, 0.91, 0.93), 0.60, (1.0, 1.0, 1.0), 0.0,
                 (1.0, 1.0, 1.0), 0.0, 0.0, (0.50, 0.54, 0.57), (0.84, 0.86, 0.89), 0.22),
}
DISC = {"sunset": (0.17, 0.085), "night": (-0.17, 0.15)}  # azimuth sine and height of sun and moon
STARS = [(-0.36, 0.21), (-0.29, 0.11), (-0.05, 0.23), (0.03, 0.13), (0.10, 0.20), (0.19, 0.10),
         (0.25, 0.22), (0.33, 0.15), (-0.44, 0.14), (0.42, 0.20)]


def lens(width, height):
    """Focal length and principal point (u, v) of a picture, in pixels.

    Things are about as large in a wide picture as in a square one of its area: it sees more to the sides and less of the
    ground, as through a lens that is shifted upwards. Were it scaled to its height, what has been learnt of square ones
    would be of little use to it.
    """
    side = 2 * width * height / (width + height)
    return FOCAL * side, width / 2, height / 2 + RISE * max(0.0, side - height)


def _edges(corners, centre):
    """Lines through consecutive corners [..., 4, 2] as (a, b, c), positive on the side of `centre`, in pixels."""
    after = corners.roll(-1, -2)
    delta = after - corners
    normal = torch.stack((-delta[..., 1], delta[..., 0]), -1)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    offset = -(normal * corners).sum(-1)
    side = torch.where((normal * centre[..., None, :]).sum(-1) + offset < 0, -1.0, 1.0)
    return torch.cat((normal * side[..., None], (offset * side)[..., None]), -1)


def motions(batch, frames, fps):
    """Place of the object and heading of the camera: x, y, z, yaw, each [B, T]."""
    times = [i / fps for i in range(frames)]
    duration = max(frames - 1, 1) / fps
    motion = torch.tensor([[(*S.position(s, t, duration), S.yaw(s, t, duration)) for t in times] for s in batch])
    x, y, z, yaw = motion.unbind(-1)
    return x, y - CAMERA_HEIGHT, z, yaw


def object_boxes(batch, width, height, frames, fps):
    """Where the objects are in the picture, left, top, right and bottom in 0..1: [B, T, 1, 4]."""
    x, y, z, yaw = motions(batch, frames, fps)
    side, ahead = x * yaw.cos() - z * yaw.sin(), x * yaw.sin() + z * yaw.cos()
    up, depth = y * math.cos(PITCH) - ahead * math.sin(PITCH), y * math.sin(PITCH) + ahead * math.cos(PITCH)
    radius = torch.tensor([S.RADIUS[s["size"]] for s in batch])[:, None]
    focal, middle, above = lens(width, height)
    scale = focal / depth
    u, v, half = middle + side * scale, above - up * scale, radius * scale
    return torch.stack(((u - half) / width, (v - half) / height, (u + half) / width, (v + half) / height), -1)[:, :, None]


def parameters(batch, frames, width, height, fps, device="cpu"):
    """Everything the picture depends on, per frame: [B, T, K], laid out as `_shade` reads it."""
    x, y, z, yaw = motions(batch, frames, fps)
    focal, across, above = lens(width, height)
    radius = torch.tensor([S.RADIUS[s["size"]] for s in batch])[:, None].expand_as(x)
    is_cube = torch.tensor([float(s["shape"] == "cube") for s in batch])[:, None].expand_as(x)
    half = radius * S.CUBE_SCALE

    # the three cube faces turned to the camera, as screen polygons
    axis_u = torch.tensor([math.cos(CUBE_YAW), 0.0, math.sin(CUBE_YAW)])
    axis_w = torch.tensor([-math.sin(CUBE_YAW), 0.0, math.cos(CUBE_YAW)])
    axes = torch.stack((axis_u, torch.tensor([0.0, 1.0, 0.0]), axis_w))
    centre = torch.stack((x, y, z), -1)
    cos, sin = yaw.cos()[..., None], yaw.sin()[..., None]

    def project(points):
        px = points[..., 0] * cos - points[..., 2] * sin
        pz = points[..., 0] * sin + points[..., 2] * cos
        py = points[..., 1] * math.cos(PITCH) - pz * math.sin(PITCH)
        pz = points[..., 1] * math.sin(PITCH) + pz * math.cos(PITCH)
        scale = focal / pz.clamp_min(0.1)
        return torch.stack((across + px * scale, above - py * scale), -1)

    lines, shades = [], []
    light = torch.tensor(LIGHT)
    for index in range(3):
        facing = torch.where((centre * axes[index]).sum(-1) < 0, 1.0, -1.0)[..., None]
        normal = facing * axes[index]
        one, two = axes[(index + 1) % 3], axes[(index + 2) % 3]
        middle = centre + normal * half[..., None]
        # faces seen from the back or edge-on are not drawn
        front = ((-middle * normal).sum(-1) > 0.02).float()
        corners = torch.stack([middle + half[..., None] * (a * one + b * two)
                               for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))], -2)
        screen = project(corners)
        edge = _edges(screen, screen.mean(-2))
        edge[..., 2] -= (1.0 - front)[..., None] * 1e4
        lines.append(edge.flatten(-2))
        shades.append(0.42 + 0.22 * (0.5 + 0.5 * normal[..., 1]) + 0.62 * (normal * light).sum(-1).clamp_min(0.0))
    per_frame = torch.cat((torch.stack((yaw.cos(), yaw.sin(), x, y, z, radius, is_cube, half), -1),
                           *lines, torch.stack(shades, -1)), -1)

    rows = []
    for s in batch:
        sky, ground = SKY[s["sky"]], GROUND[s["ground"]]
        side, high = DISC.get(s["sky"], (0.0, 0.3))
        forward = math.sqrt(1.0 - side * side - high * high)
        hills = [0.65 * a + 0.35 * b for a, b in zip(sky[9], sky[0])]
        if s["ground"] == "snow":  # snow lies on the hills too
            hills = [0.55 * a + 0.45 * b * c for a, b, c in zip(hills, (0.86, 0.9, 0.97), sky[10])]
        rows.append([*OBJECT[s["colour"]], *ground[0], *ground[1], *ground[2],
                     *sky[0], *sky[1], *sky[2], sky[3], *sky[4], sky[5], *sky[6], sky[7], sky[8],
                     *hills, *sky[10], sky[11], side, high, forward])
    per_clip = torch.tensor(rows)[:, None].expand(-1, frames, -1)
    return torch.cat((per_frame, per_clip), -1).float().to(device)


def rays(width, height, device="cpu"):
    """Unit ray directions before the camera turns, and pixel centres: [5, H, W]."""
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    focal, middle, above = lens(width, height)
    x, y = (u - middle) / focal, (above - v) / focal
    up = y * math.cos(PITCH) + math.sin(PITCH)
    forward = -y * math.sin(PITCH) + math.cos(PITCH)
    norm = torch.sqrt(x * x + up * up + forward * forward)
    return torch.stack((x / norm, up / norm, forward / norm, u, v)).to(device)


def _mix(a, b, t):
    return a + (b - a) * t


def _smooth(t):
    t = t.clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _shade(p, ray, pixel):
    """Picture [B, T, 3, H, W] from parameters [B, T, K], rays [5, H, W] and the angle of a pixel."""
    values = iter(range(p.shape[-1]))

    def take(count=1):
        got = [p[..., next(values), None, None] for _ in range(count)]
        return got if count > 1 else got[0]

    cos, sin, cx, cy, cz, radius, is_cube, half = take(8)
    faces = [take(12) for _ in range(3)]
    shades = take(3)
    colour, ground_a, ground_b, weights = take(3), take(3), take(3), take(5)
    horizon, zenith, cloud_colour, cloud_weight = take(3), take(3), take(3), take()
    glow_colour, glow_strength, disc_colour, disc_weight, star_weight = take(3), take(), take(3), take(), take()
    hill, light, shadow_weight = take(3), take(3), take()
    side, high, forward = take(3)
    rx, dy, rz, u, v = ray.unbind(0)
    dx = rx * cos + rz * sin
    dz = rz * cos - rx * sin

    # sky: gradient, clouds, sun or moon, stars
    t = (dy * 3.6).clamp(0.0, 1.0)
    t = t * (1.6 - 0.6 * t)
    puffs = torch.sin(9.0 * dx + 1.0) * 0.6 + torch.sin(19.0 * dx + 26.0 * dy + 0.4) * 0.45 \
        + torch.sin(52.0 * dy - 7.0 * dx + 2.2) * 0.55
    cloud = _smooth((puffs - 0.1) * 0.9) * cloud_weight * (dy * 9.0).clamp(0.0, 1.0)
    towards = dx * side + dy * high + dz * forward
    glow = torch.exp((towards - 1.0) * 55.0) * glow_strength
    disc = (0.5 + (torch.rsqrt(1.0 / (2.0 - 2.0 * towards).clamp_min(1e-9)) * -1.0 + 0.045) / pixel).clamp(0.0, 1.0)
    disc = disc * disc_weight
    stars = 0.0
    for sx, sy in STARS:
        far = ((dx - sx) ** 2 + (dy - sy) ** 2) / (pixel * pixel)
        stars = stars + (1.0 - far * 0.42).clamp_min(0.0)
    stars = stars.clamp_max(1.0) * star_weight * 0.85

    # distant hills, one line over the other
    near_line = 0.026 + 0.017 * torch.sin(8.0 * dx + 0.6) + 0.008 * torch.sin(21.0 * dx + 2.0)
    far_line = 0.052 + 0.022 * torch.sin(5.0 * dx + 3.4) + 0.008 * torch.sin(17.0 * dx + 0.3)
    near_hill = (0.5 + (near_line - dy) / pixel).clamp(0.0, 1.0)
    far_hill = (0.5 + (far_line - dy) / pixel).clamp(0.0, 1.0)

    # ground: textures fade before they alias
    far = CAMERA_HEIGHT / (-dy).clamp_min(2e-3)
    gx, gz = dx * far, dz * far
    wide = far * pixel
    deep = wide * far * (1.0 / CAMERA_HEIGHT)
    broad = torch.sin(1.9 * gx + 1.2 * torch.sin(1.1 * gz)) * torch.sin(1.5 * gz + 0.8 * gx)
    fine = torch.sin(8.0 * gx + 2.5 * torch.sin(3.1 * gz)) * torch.sin(9.0 * gz + 2.0 * torch.sin(3.7 * gx))
    fine = fine * (1.0 - 3.2 * deep).clamp(0.0, 1.0)
    ripple = torch.sin(8.5 * gz + 1.6 * torch.sin(1.7 * gx + 0.5 * gz)) * (1.0 - 2.8 * deep).clamp(0.0, 1.0)
    broad = broad * (1.0 - 0.6 * deep).clamp(0.0, 1.0)
    tile = math.pi / 0.8
    check = (torch.sin(gx * tile + 0.9) / (tile * wide)).clamp(-1.0, 1.0) \
        * (torch.sin(gz * tile) / (tile * deep)).clamp(-1.0, 1.0) * (1.15 - 0.9 * deep).clamp(0.0, 1.0)
    blend = (weights[0] + weights[1] * broad + weights[2] * fine + weights[3] * ripple + weights[4] * check).clamp(0.0, 1.0)
    on_ground = (0.5 - dy / pixel).clamp(0.0, 1.0)
    haze = far / (far + 26.0)

    # shadow on the ground: how deep the ray to the light passes through the object, and contact darkness
    px, py, pz = cx - gx, cy + CAMERA_HEIGHT, cz - gz
    along = px * LIGHT[0] + py * LIGHT[1] + pz * LIGHT[2]
    miss = torch.sqrt((px * px + py * py + pz * pz - along * along).clamp_min(1e-9))
    penumbra = 0.10 * radius + 0.10 * along.clamp_min(0.0)
    ball_shadow = _smooth(0.5 + (radius - miss) / (2.0 * penumbra))
    cosy, siny = math.cos(CUBE_YAW), math.sin(CUBE_YAW)
    qx, qz = px * cosy + pz * siny, pz * cosy - px * siny
    lx, lz = LIGHT[0] * cosy + LIGHT[2] * siny, LIGHT[2] * cosy - LIGHT[0] * siny
    ax, bx = (qx - half) / lx, (qx + half) / lx
    az, bz = (qz - half) / lz, (qz + half) / lz
    ay, by = (py - half) / LIGHT[1], (py + half) / LIGHT[1]
    enter = torch.maximum(torch.maximum(torch.minimum(ax, bx), torch.minimum(az, bz)), ay)
    leave = torch.minimum(torch.minimum(torch.maximum(ax, bx), torch.maximum(az, bz)), by)
    cube_shadow = _smooth(0.15 + (leave - enter) / (0.45 * half + 0.10 * along.clamp_min(0.0)))
    shadow = _mix(ball_shadow, cube_shadow, is_cube) * shadow_weight
    flat = (px * px + pz * pz) / (radius * radius)
    lift = (py - half).clamp_min(0.0) / radius
    contact = 0.42 * torch.exp(-1.3 * flat) / (1.0 + 2.5 * lift * lift)
    dark = (1.0 - shadow) * (1.0 - contact)

    # ball
    depth = dx * cx + dy * cy + dz * cz
    miss2 = (cx * cx + cy * cy + cz * cz - depth * depth).clamp_min(0.0)
    miss = torch.sqrt(miss2)
    ball = (0.5 + (radius - miss) / (depth * pixel)).clamp(0.0, 1.0)
    hit = depth - torch.sqrt((radius * radius - miss2).clamp_min(0.0))
    inverse = 1.0 / radius
    nx, ny, nz = (dx * hit - cx) * inverse, (dy * hit - cy) * inverse, (dz * hit - cz) * inverse
    lit = nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]
    facing = (nx * dx + ny * dy + nz * dz).neg().clamp(0.0, 1.0)
    hx, hy, hz = LIGHT[0] - dx, LIGHT[1] - dy, LIGHT[2] - dz
    shine = ((nx * hx + ny * hy + nz * hz) * torch.rsqrt(hx * hx + hy * hy + hz * hz)).clamp(0.0, 1.0)
    for _ in range(5):
        shine = shine * shine
    rim = (1.0 - facing) ** 3
    ball_light = 0.36 + 0.20 * (0.5 + 0.5 * ny) + 0.62 * (lit * 0.85 + 0.15).clamp_min(0.0)
    bounce = 0.20 * (0.5 - 0.5 * ny)

    # cube: coverage and light of the three faces, edges slightly brighter
    cube, cube_light = 0.0, 0.0
    for face, shade in zip(faces, shades):
        inside = None
        for i in range(0, 12, 3):
            distance = face[i] * u + face[i + 1] * v + face[i + 2]
            inside = distance if inside is None else torch.minimum(inside, distance)
        cover = (inside + 0.5).clamp(0.0, 1.0)
        cube = cube + cover
        bevel = (1.0 - inside * (pixel * 80.0)).clamp(0.0, 1.0)
        cube_light = cube_light + cover * (shade + 0.10 * bevel)
    cube_light = cube_light / cube.clamp_min(1e-4)
    cube = cube.clamp_max(1.0)
    cover = _mix(ball, cube, is_cube)

    planes = []
    light_on = [_mix(c, 1.0, 0.35) for c in light]  # objects stay recognisable at night
    for i in range(3):
        sky = _mix(_mix(horizon[i], zenith[i], t), cloud_colour[i], cloud)
        sky = sky + glow * (glow_colour[i] - sky * 0.4)
        sky = _mix(_mix(sky, 1.0, stars), disc_colour[i], disc)
        sky = _mix(sky, _mix(hill[i], horizon[i], 0.45), far_hill)
        sky = _mix(sky, hill[i], near_hill)
        earth = _mix(ground_a[i], ground_b[i], blend) * light[i]
        floor = _mix(earth * dark, hill[i], haze)
        back = _mix(sky, floor, on_ground)
        round_ = colour[i] * (ball_light * light_on[i]) + bounce * ground_b[i] * light_on[i] * (0.35 + 0.65 * colour[i])
        round_ = round_ + 0.55 * shine * light_on[i] + 0.22 * rim * horizon[i]
        block = colour[i] * cube_light * light_on[i] + 0.05 * light_on[i]
        planes.append(_mix(back, _mix(round_, block, is_cube), cover).clamp(0.0, 1.0))
    return torch.stack(planes, 2)


_compiled = None


def render(batch, width=128, height=128, frames=17, fps=12, device="cpu", eager=False):
    """Clips [B, T, 3, H, W], 0..1, of a list of scenes. One batch size should be kept, compilation follows it."""
    global _compiled
    p = parameters(batch, frames, width, height, fps, device)
    ray = rays(width, height, device)
    pixel = 1.0 / lens(width, height)[0]
    with torch.no_grad():
        if not eager and _compiled is None:
            try:
                _compiled = torch.compile(_shade, dynamic=False)
                return _compiled(p, ray, pixel)
            except Exception as error:  # no C++ compiler, for example
                print(f"torch.compile unavailable ({type(error).__name__}), rendering eagerly", flush=True)
                _compiled = _shade
        return (_shade if eager else _compiled)(p, ray, pixel)
