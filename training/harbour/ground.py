"""Land and water under the horizon, as seen along rays. Shapes: scenes and frames along the first dimension n."""

import math

import torch

from . import physics
from .sky import noise

SLOPE = 1.7  # the picture's waves are steeper than those that things float on, and so easier to see


def land(scene, lights, eye, dx, dy, dz, pixel):
    """Colours [3, n, h, w] of the ground along rays (unit vectors) and distances [n, h, w]. `scene` [n] is the index
    of each view's light in the table `lights`, `eye` [n, 3, 1, 1], `pixel` the angle of the
    finest detail."""
    far = eye[:, 1] / (-dy).clamp_min(3e-3)
    x, z = eye[:, 0] + dx * far, eye[:, 2] + dz * far
    deep = far * pixel / (-dy).clamp_min(3e-3)  # metres along the ground that a pixel covers
    weights = lights.get("weights", scene)
    use = lights.used["weights"]
    blend = 0.5
    if use[0] or use[1]:
        coarse = noise(x * 0.09, z * 0.09 + 0.3) - 0.5
        blend = blend + 2.0 * weights[0] * coarse
    if use[1]:
        fade = (1.15 - 5.0 * deep).clamp(0.0, 1.0)
        blend = blend + 2.2 * weights[1] * fade * (noise(x * 0.83 + 0.2, z * 0.55) - 0.5)
    if use[2]:
        ripple = torch.sin(10.0 * z + 2.2 * torch.sin(1.3 * x + 0.4 * z) + 7.0 * coarse)
        blend = blend + weights[2] * ripple * (1.0 - 2.4 * deep).clamp(0.0, 1.0)
    if use[3]:  # square slabs with dark joints, every slab of its own grey
        sx, sz = x / 0.72, z / 0.72
        cell_x, cell_z = sx.floor(), sz.floor()
        grey = noise(cell_x * 0.371, cell_z * 0.437) - 0.5
        edge = torch.minimum(0.5 - (sx - cell_x - 0.5).abs(), (0.5 - (sz - cell_z - 0.5).abs()) / (1 + 3 * deep)) * 0.72
        joint = (1.0 - (edge - 0.012) / (0.012 + 0.35 * far * pixel)).clamp(0.0, 1.0)
        clear = (1.2 - 2.0 * deep).clamp(0.0, 1.0)
        blend = blend + weights[3] * clear * (0.9 * grey - 0.50 * joint)
    blend = torch.as_tensor(blend, device=dx.device).clamp(0.0, 1.0)
    colour = torch.lerp(*lights.pair("low", "high_ground", scene), blend.expand_as(far)) if use.any() else \
        lights.get("low", scene).expand(3, *far.shape)
    haze = lights.get("haze", scene)
    thick = 1.0 - torch.exp(-far * lights.get("air", scene) - (far * lights.get("fade", scene)).square())
    return torch.lerp(colour, haze, thick), far


def studio(scene, sky, dx, dy, dz):
    """Colours [3, n, h, w] of the studio's floor, which goes over into the backdrop without a line."""
    return sky.at(scene[:, None, None], dx, -0.6 * dy, dz) * (1.0 + 0.05 * dy)


def waves(eye, dx, dy, dz, pixel, time):
    """Slopes of the water where rays meet it, and the distances: [n, h, w] each; `time` [n, 1, 1] in seconds."""
    far = eye[:, 1] / (-dy).clamp_min(3e-3)
    x, z = eye[:, 0] + dx * far, eye[:, 2] + dz * far
    deep = far * pixel / (-dy).clamp_min(3e-3)
    slope_x = slope_z = 0.0
    for length, amplitude, direction, phase in physics.WAVES:
        k = math.tau / length
        kx, kz = k * math.cos(direction), k * math.sin(direction)
        angle = kx * x + kz * z + (phase - math.sqrt(physics.GRAVITY * k) * time)
        # what is finer than a pixel is not drawn
        size = torch.cos(angle) * (SLOPE * amplitude / (1.0 + (0.36 * k * deep) ** 2))
        slope_x, slope_z = slope_x + kx * size, slope_z + kz * size
    return slope_x, slope_z, far


def reflected(dx, dy, dz, slope_x, slope_z):
    """Directions mirrored by the waves, upwards, and how much of the light is mirrored."""
    facing = dy - slope_x * dx - slope_z * dz
    rx, ry, rz = dx + 2.0 * facing * slope_x, (dy - 2.0 * facing).abs(), dz + 2.0 * facing * slope_z
    share = (1.0 + facing.clamp(-1.0, 0.0)).square()
    return rx, ry, rz, 0.06 + 0.90 * share * share


def water(scene, lights, sky, eye, dx, dy, dz, pixel, time):
    """Colours [3, n, h, w] of the water, its distances and the slopes."""
    slope_x, slope_z, far = waves(eye, dx, dy, dz, pixel, time)
    rx, ry, rz, share = reflected(dx, dy, dz, slope_x, slope_z)
    mirror = sky.at(scene[:, None, None], rx, ry, rz, look="waves")
    body = lights.get("water", scene) * (1.0 + 1.1 * (slope_z + 0.5 * slope_x))
    colour = torch.lerp(body, mirror, share)
    thick = 1.0 - torch.exp(-far * lights.get("air", scene))
    return torch.lerp(colour, lights.get("haze", scene), thick), far, slope_x, slope_z
