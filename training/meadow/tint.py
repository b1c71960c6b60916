"""The colour of a generated clip's object, found without a network: by the tint of the pixels unlike the scenery."""

import torch

from . import world


def empty_scene(scene, frames, width, height, fps):
    """The rendered scenery of a scene with the object as a speck in the far distance."""
    clip = world.parameters([scene], frames, width, height, fps)
    clip[..., 4], clip[..., 5] = 1000.0, 1e-3  # z and radius
    clip[..., 6] = 0.0  # drawn as a ball, the cube's outline is not moved
    rays = world.rays(width, height)
    return world._shade(clip, rays, 1.0 / (world.FOCAL * height))[0]


def seen_colour(clip, scene, fps):
    """The named colour that most pixels of a clip [T, 3, H, W] unlike the scenery have, None when there is no object."""
    scenery = empty_scene(scene, len(clip), clip.shape[3], clip.shape[2], fps)
    # another tint, not only another brightness: that may be the shadow
    alike = torch.nn.functional.cosine_similarity(clip, scenery, dim=1)
    high = clip.amax(1)
    saturation = (high - clip.amin(1)) / high.clamp_min(1e-4)
    chosen = ((clip - scenery).abs().amax(1) > 0.15) & (alike < 0.985) & (saturation > 0.3)
    if chosen.float().sum((1, 2)).mean() < 25:
        return None
    names = list(world.OBJECT)
    references = torch.tensor([world.OBJECT[n] for n in names])
    # compare directions of colour, brightness depends on the light
    pixels = clip.permute(0, 2, 3, 1)[chosen].clamp(0, 1)
    light = torch.tensor([0.65 * a + 0.35 for a in world.SKY[scene["sky"]][10]])
    references = torch.nn.functional.normalize(references * light, dim=1)
    votes = (torch.nn.functional.normalize(pixels, dim=1) @ references.T).argmax(1).bincount(minlength=len(names))
    return names[int(votes.argmax())]
