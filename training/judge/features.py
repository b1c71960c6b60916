"""Fréchet distance between sets of clips in the features of the probe (after Heusel et al., 2017)."""

import torch


def frechet(a, b):
    """Distance between Gaussians fitted to features [N, D] and [M, D]."""
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    one, two = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # the trace of the root of the product, by a symmetric matrix with the same eigenvalues
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    return max((mean + one.trace() + two.trace() - 2 * cross).item(), 0.0)
