"""The algebra that every extraction is made of: pure functions on tensors, means and products in fp64.

Captures come in as [n, L + 1, d] fp32, directions are [L + 1, d] or [L + 1, k, d]. Knows nothing of models or settings.
"""

from __future__ import annotations

import torch

# A difference smaller than this share of the mean's length is rounding (the embedding of a shared last token, say).
_NOTHING = 1e-6


def working_device(device: torch.device | None) -> torch.device | None:
    """Where the maths of directions runs when the model is on `device`: there if it computes in fp64, on the CPU if not
    (Apple's GPUs)."""
    return device if device is None or device.type in ("cpu", "cuda", "xpu") else torch.device("cpu")


def layer_of(sample: torch.Tensor, layer: int, device: torch.device | None = None) -> torch.Tensor:
    """One layer of the captures in fp64, [n, d], on a device (None: the captures' own). It travels as fp32."""
    return sample[:, layer].to(device).double() if device is not None else sample[:, layer].double()


def mean(sample: torch.Tensor, rows: torch.Tensor | None = None, device: torch.device | None = None) -> torch.Tensor:
    """Mean over prompts in fp64, [n, L + 1, d] -> [L + 1, d], one layer at a time to spare memory.

    `rows` [n] bool chooses among the prompts.
    """
    rows = rows if rows is None else rows.to(device or sample.device)
    layers = (layer_of(sample, layer, device) for layer in range(sample.shape[1]))
    return torch.stack([(layer if rows is None else layer[rows]).mean(0) for layer in layers])


def mean_difference(bad: torch.Tensor, good: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """normalise(mean bad - mean good) per layer, [L + 1, d] fp64; zero where the means agree to rounding.

    Source: the difference of class means, as in Arditi et al. 2024, "Refusal in Language Models Is Mediated by a
    Single Direction".
    """
    return unit_difference(mean(bad, device=device), mean(good, device=device))


def unit_difference(bad_mean: torch.Tensor, good_mean: torch.Tensor) -> torch.Tensor:
    """`mean_difference` from the means themselves, [L + 1, d]."""
    difference = bad_mean - good_mean
    scale = torch.linalg.vector_norm(good_mean, dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    return torch.where(length > _NOTHING * scale, normalise(difference), torch.zeros_like(difference))


def project_out(vectors: torch.Tensor, from_span: torch.Tensor) -> torch.Tensor:
    """Vectors without their component in a span, per layer, fp64.

    Args:
        vectors: [L + 1, d] or [L + 1, k, d].
        from_span: [L + 1, m, d], any m vectors; they need be neither unit nor orthogonal, and zero ones span nothing.
    """
    basis = orthonormal(from_span)  # [L + 1, m, d]
    left = vectors.double() if vectors.dim() == 3 else vectors.double()[:, None]
    for _ in range(2):  # the second pass removes what rounding left of the first
        left = left - (left @ basis.mT) @ basis
    return left.reshape(vectors.shape)


def orthonormal(vectors: torch.Tensor, floor: float = 1e-6) -> torch.Tensor:
    """Gram-Schmidt in order over k, fp64: [..., k, d] -> the same shape. Keeps signs.

    A vector of which less than the share `floor` is new becomes zero: a QR factorisation would put an arbitrary
    direction in its place.
    """
    done: list[torch.Tensor] = []
    for vector in vectors.double().unbind(-2):
        left = vector
        for _ in range(2):  # the second pass removes what rounding left of the first
            for other in done:
                left = left - (left * other).sum(-1, keepdim=True) * other
        new = torch.linalg.vector_norm(left, dim=-1, keepdim=True)
        whole = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        done.append(torch.where(new > floor * whole, normalise(left), torch.zeros_like(left)))
    return torch.stack(done, dim=-2) if done else vectors.double()


def aligned(vectors: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Vectors [L + 1, k, d] with the sign that agrees with the reference [L + 1, d]: an eigenvector has none of its
    own, and sums of opposites vanish."""
    along = (vectors * reference[:, None].to(vectors)).sum(-1, keepdim=True)
    return torch.where(along < 0, -vectors, vectors)


def normalise(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors along the last axis; zero stays zero."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length > 1e-12, vectors / length.clamp_min(1e-30), torch.zeros_like(vectors))


def stable_order(sample: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """An order of the prompts that does not depend on the order they came in, [n] long: by length at the last layer.

    Folds, halves and clusters are drawn from it, so that shuffled prompts give the same directions.
    """
    return torch.linalg.vector_norm(layer_of(sample, sample.shape[1] - 1, device), dim=-1).argsort(stable=True)


def separation(bad: torch.Tensor, good: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Distance of the class means along v in pooled standard deviations (d'), per layer: [L + 1] fp32, where v is."""

    def along(sample: torch.Tensor) -> torch.Tensor:  # [L + 1, n]
        return torch.stack([layer_of(sample, i, v.device) @ v.double() for i, v in enumerate(vectors)])

    along_bad, along_good = along(bad), along(good)
    spread = ((along_bad.var(1) + along_good.var(1)) / 2).sqrt()
    gap = along_bad.mean(1) - along_good.mean(1)
    return torch.where(spread > 0, gap / spread.clamp_min(1e-30), torch.zeros_like(gap)).float()


def winsorise(vectors: torch.Tensor, quantile: float) -> torch.Tensor:
    """Clamp each vector (last axis) to the q-quantile of its own absolute values, so that no outlier dimension rules
    a mean. 0.5 < q <= 1; 1 changes nothing."""
    if quantile >= 1:
        return vectors
    count = vectors.shape[-1]
    rank = min(count, max(1, round(quantile * count)))
    limit = vectors.abs().kthvalue(rank, dim=-1, keepdim=True).values
    return vectors.clamp(-limit, limit)
