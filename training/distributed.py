"""Several processes on one training, started by torchrun; alone it does nothing.

    torchrun --nproc-per-node 8 -m training.train_teacher --preset gpu
"""

import os

import torch
import torch.distributed as group


def start(device):
    """Joins the processes that torchrun started: (this one's number, how many, its device)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not group.is_initialized():
        group.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return group.get_rank(), world, device


def shared(module):
    """The module with its gradients averaged over all processes."""
    if not group.is_initialized():
        return module
    return torch.nn.parallel.DistributedDataParallel(module)


def agreed(value, device):
    """The mean of a number over all processes, so that all of them stop at the same step."""
    if not group.is_initialized():
        return value
    number = torch.tensor(value, dtype=torch.float64, device=device)
    group.all_reduce(number)
    return number.item() / group.get_world_size()


def finish():
    if group.is_initialized():
        group.destroy_process_group()
