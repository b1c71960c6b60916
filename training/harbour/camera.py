"""The camera: where it stands and looks in every frame, rays through pixels, points on the screen."""

import math

import torch

TARGET, EYE = (0.0, 0.72, 0.0), (0.0, 1.35, -4.4)
FOCAL = 0.5 / math.tan(math.radians(18.5))  # in units of the shorter side of the picture
PAN, ORBIT = math.radians(7.5), math.radians(24.0)  # to both sides of the middle
DOLLY, CRANE = (5.3, 3.6), (0.6, 2.5)  # distances and heights at both ends


def pose(scene, progress):
    """Eye and target [T, 3] while the progress [T] through the clip goes from 0 to 1."""
    move, side = scene["camera"], 2.0 * progress - 1.0
    zero = torch.zeros_like(progress)
    eye, target = [zero + v for v in EYE], [zero + v for v in TARGET]
    if move.startswith("pan"):
        angle = (side if move == "pan right" else -side) * PAN
        target[0], target[2] = -EYE[2] * angle.sin(), EYE[2] - EYE[2] * angle.cos()
    elif move.startswith("dolly"):
        near = progress if move == "dolly in" else 1.0 - progress
        scale = (DOLLY[0] + (DOLLY[1] - DOLLY[0]) * near) / -EYE[2]
        eye[1], eye[2] = TARGET[1] + (EYE[1] - TARGET[1]) * scale, EYE[2] * scale
    elif move == "orbit":
        eye[0], eye[2] = -EYE[2] * (ORBIT * side).sin(), EYE[2] * (ORBIT * side).cos()
    elif move.startswith("crane"):
        high = progress if move == "crane up" else 1.0 - progress
        eye[1] = CRANE[0] + (CRANE[1] - CRANE[0]) * high
    return torch.stack(eye, -1), torch.stack(target, -1)


def view(scene, frames):
    """Eye [T, 3] and axes [T, 3, 3], whose rows are right, up and forward in the world. The camera never rolls."""
    progress = torch.arange(frames, dtype=torch.float64) / max(frames - 1, 1)
    eye, target = pose(scene, progress)
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    right = torch.stack((forward[:, 2], torch.zeros_like(progress), -forward[:, 0]), -1)
    right = torch.nn.functional.normalize(right, dim=-1)
    return eye, torch.stack((right, torch.linalg.cross(forward, right), forward), 1)


def focal(width, height):
    """Focal length in pixels."""
    return FOCAL * min(width, height)


def project(points, eye, axes, width, height):
    """Screen position in pixels and depth in metres, [..., 3], of points [..., 3]."""
    right, up, ahead = (axes * (points - eye)[..., None, :]).sum(-1).unbind(-1)
    scale = focal(width, height) / ahead.clamp_min(0.3)
    return torch.stack((width / 2 + right * scale, height / 2 - up * scale, ahead), -1)
