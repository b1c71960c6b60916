"""Writes unipc.json: runs of diffusers' UniPCMultistepScheduler, set up as for Wan, over a toy velocity.

    python tests/goldens/unipc.py

The velocity of x at sigma is 0.7 x + 0.4 sigma - 0.2 for every element.
"""

import json
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler


def run(steps, shift, start):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    x, states = torch.tensor([start], dtype=torch.float64), []
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = 0.7 * x + 0.4 * scheduler.sigmas[index].double() - 0.2
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        states.append(x[0].tolist())
    return {"shift": shift, "sigmas": scheduler.sigmas[:-1].tolist(), "start": start, "states": states}


def main():
    runs = [run(steps, shift, [1.0, -0.4, 2.5]) for steps, shift in ((1, 3.0), (2, 3.0), (6, 3.0), (20, 5.0))]
    (Path(__file__).parent / "unipc.json").write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
