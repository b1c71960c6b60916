"""Muon with AdamW for the rest: orthogonalised momentum steps for weight matrices.

After Jordan et al., "Muon" (2024), with the step size of Liu et al., "Muon is
scalable for LLM training" (2025): 0.2 * sqrt(max(rows, columns)) so that a step
is about as large as AdamW's at the same rate. Convolutions count as matrices
[out, in * kh * kw].
"""

import torch


def orthogonalise(m, steps=3):
    """Nearest semi-orthogonal matrix, roughly, by the quintic Newton-Schulz iteration."""
    tall = m.shape[-2] > m.shape[-1]
    x = m.mT if tall else m
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Groups with `muon=True` take orthogonalised steps, others AdamW."""

    def __init__(self, groups, lr=1e-3, momentum=0.95, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0):
        super().__init__(groups, dict(lr=lr, momentum=momentum, betas=betas, eps=eps, weight_decay=weight_decay))
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def set_scale(self, scale):
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * scale

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group.get("muon"):
                self._muon(group, parameters)
            else:
                self._adamw(group, parameters)

    def _muon(self, group, parameters):
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients, momentum = [p.grad for p in parameters], [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shapes = {}
        for p, update in zip(parameters, torch._foreach_lerp(gradients, momentum, group["momentum"])):
            update = update.flatten(1)
            shapes.setdefault(update.shape, []).append((p, update))
        for (rows, columns), items in shapes.items():
            updates = orthogonalise(torch.stack([u for _, u in items]))
            scale = 0.2 * max(rows, columns) ** 0.5
            torch._foreach_add_([p for p, _ in items], [u.view(p.shape) for (p, _), u in zip(items, updates)],
                                alpha=-group["lr"] * scale)

    def _adamw(self, group, parameters):
        if not parameters:
            return
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters]
        m, v = [s["m"] for s in states], [s["v"] for s in states]
        beta1, beta2 = group["betas"]
        step = states[0]["step"]
        torch._foreach_lerp_(m, gradients, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        root = torch._foreach_sqrt(v)
        torch._foreach_div_(root, (1 - beta2 ** step) ** 0.5)
        torch._foreach_add_(root, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, m, root, -group["lr"] / (1 - beta1 ** step))


def groups(named_parameters, matrix, muon_lr, lr, weight_decay=0.0):
    """Split parameters: those `matrix(name, parameter)` accepts go to Muon, the rest to AdamW."""
    named = list(named_parameters)
    chosen = [p for n, p in named if p.ndim >= 2 and matrix(n, p)]
    rest = [p for n, p in named if not (p.ndim >= 2 and matrix(n, p))]
    return [{"params": chosen, "muon": True, "lr": muon_lr, "weight_decay": weight_decay},
            {"params": rest, "lr": lr}]
