"""Concept cones: the behaviour's own varieties. Clusters of bad prompts, and a direction for each. Pure on tensors.

The prompts are clustered once, at the layer where the classes are furthest apart, and a direction is taken for each
cluster at every layer: direction j then means the same prompts everywhere, so neighbours may be interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bruno.engine.directions.algebra import layer_of, normalise, orthonormal, project_out, stable_order
from bruno.engine.directions.record import NotApplicable

# Random directions that a cone direction is compared with.
_RANDOM = 8
# Of which less than this is not in the others' span, a direction adds nothing to them.
_NEW = 1e-3


@dataclass(frozen=True)
class Clusters:
    """A clustering of the bad prompts.

    Attributes:
        labels: [n_bad] long, cluster of each prompt, the largest cluster 0; -1 for prompts of clusters too small to
            keep.
        count: clusters kept, at least 2.
        silhouette: mean silhouette (cosine) of the clustering, -1 to 1.
    """

    labels: torch.Tensor
    count: int
    silhouette: float


@dataclass(frozen=True)
class Cones:
    """What the clusters add to the directions that are removed already.

    Attributes:
        vectors: [L + 1, c, d] fp64, orthonormal, orthogonal to those: what of the clusters' span was kept.
        clusters: the clustering.
        drops: [clusters] fp64, by how much removing each direction of the span's basis (in the order of the clusters)
            lowers the held-out separation (standard deviations, averaged over blocks).
        random_drop: the largest such drop of a random direction, at least 0.
    """

    vectors: torch.Tensor
    clusters: Clusters
    drops: torch.Tensor
    random_drop: float


def concept_cones(
    bad: torch.Tensor,
    good: torch.Tensor,
    removed: torch.Tensor,
    *,
    layer: int,
    most: int,
    min_size: int,
    min_silhouette: float,
) -> Cones:
    """Directions of clusters of the bad prompts, without what is removed already.

    Half of the prompts make the clusters, the other half judges: a direction of the orthonormal basis stays only if
    taking it out lowers the separation of the held-out classes more than any of `_RANDOM` random directions. (Two
    clusters beside the mean difference point opposite ways: they span one direction, and the second of the basis is
    noise.) The directions returned are then taken from all prompts.

    Args:
        bad, good: captures, [n, L + 1, d].
        removed: [L + 1, k, d] orthonormal; what the cones add to. Everything is computed where they are.
        layer: index (0 to L) where the prompts are clustered.
        most: largest number of clusters tried.

    Raises:
        NotApplicable: too few prompts, no clusters, or no direction that separates held-out prompts.
    """
    if len(bad) < 2 * min_size or len(good) < 4:
        raise NotApplicable(f"{len(bad)} bad prompts; two clusters of {min_size} need {2 * min_size}")
    device = removed.device
    bad_order, good_order = stable_order(bad, device), stable_order(good, device)
    centre = layer_of(good, layer, device).mean(0)
    units = normalise(layer_of(bad, layer, device) - centre)
    clusters = cluster(units, bad_order[::2], most=most, min_size=min_size, floor=min_silhouette)
    fitted = _cluster_directions(bad, good, clusters, removed, bad_order[::2], good_order[::2])
    basis = orthonormal(fitted, floor=_NEW)
    drops, random_drop = held_out_drops(fitted, basis, bad, good, bad_order[1::2], good_order[1::2])
    stays = drops > random_drop
    if not stays.any():
        raise NotApplicable(
            f"no direction of {clusters.count} clusters separates held-out prompts better than a random one"
        )
    whole = _cluster_directions(bad, good, clusters, removed, bad_order, good_order)
    return Cones(orthonormal(whole, floor=_NEW)[:, stays.to(whole.device)], clusters, drops, random_drop)


def cluster(units: torch.Tensor, half: torch.Tensor, *, most: int, min_size: int, floor: float) -> Clusters:
    """Spherical clusters of unit differences [n, d]: k-means on one half, every prompt to its nearest centre.

    k from 2 to `most` is the one with the best silhouette among those that leave at least two clusters of `min_size`.

    Raises:
        NotApplicable: no such k, or its silhouette is below `floor`.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    points = units.cpu().numpy()
    seeds = points[half.cpu().numpy()]
    best: tuple[float, np.ndarray] | None = None
    for k in range(2, min(most, len(seeds)) + 1):
        model = KMeans(k, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]  (its default is a word)
        labels = np.asarray(model.fit(seeds).predict(points))
        sizes = np.bincount(labels, minlength=k)
        if (sizes >= min_size).sum() < 2:
            continue
        score = float(silhouette_score(points, labels, metric="cosine"))
        if best is None or score > best[0]:
            best = score, labels
    if best is None:
        raise NotApplicable(f"the bad prompts form no two clusters of {min_size}")
    score, labels = best
    if score < floor:
        raise NotApplicable(f"the bad prompts do not fall into clusters: silhouette {score:.2f}, below {floor:g}")
    sizes = np.bincount(labels)
    kept = [c for c in np.argsort(-sizes, kind="stable") if sizes[c] >= min_size]
    renamed = np.full(len(sizes), -1)
    renamed[kept] = np.arange(len(kept))
    return Clusters(torch.from_numpy(renamed[labels]), len(kept), score)


def _cluster_directions(
    bad: torch.Tensor,
    good: torch.Tensor,
    clusters: Clusters,
    removed: torch.Tensor,
    bad_rows: torch.Tensor,
    good_rows: torch.Tensor,
) -> torch.Tensor:
    """normalise(mean of a cluster - good mean), without the removed directions: [L + 1, clusters, d] fp64, unit."""
    labels = clusters.labels.to(removed.device)[bad_rows]
    layers = []
    for layer in range(bad.shape[1]):
        centre = layer_of(good, layer, removed.device)[good_rows].mean(0)
        difference = layer_of(bad, layer, removed.device)[bad_rows] - centre
        members = torch.stack([(labels == c).double() for c in range(clusters.count)])  # [clusters, n]
        layers.append(members @ difference / members.sum(-1, keepdim=True).clamp_min(1))
    return normalise(project_out(normalise(torch.stack(layers)), removed))


def held_out_drops(
    directions: torch.Tensor,
    tried: torch.Tensor,
    bad: torch.Tensor,
    good: torch.Tensor,
    bad_rows: torch.Tensor,
    good_rows: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Drop of the held-out separation (d', mean over blocks) when a direction is taken out of the stream: of each of
    `tried` [L + 1, t, d], and the largest that a random direction causes, at least 0.

    A prompt's score is its largest component along any of `directions` [L + 1, c, d]: near to one cluster is enough.
    """
    generator = torch.Generator().manual_seed(0)
    noise = normalise(torch.randn(_RANDOM, directions.shape[-1], generator=generator, dtype=torch.float64))
    drops = []
    for layer in range(1, bad.shape[1]):
        own = directions[layer]  # [c, d]
        ours, others = layer_of(bad, layer, own.device)[bad_rows], layer_of(good, layer, own.device)[good_rows]
        held = ours - others.mean(0), others - others.mean(0)
        base = _score_gap(held, own)
        taken = torch.cat([tried[layer], noise.to(own)])  # [t + random, d]
        # x - v (v . x) seen along the directions u is x seen along u - v (v . u)
        drops.append(torch.stack([base - _score_gap(held, own - (own @ v)[:, None] * v) for v in taken]))
    mean_drop = torch.stack(drops).mean(0).cpu()
    return mean_drop[: tried.shape[1]], max(0.0, float(mean_drop[tried.shape[1] :].max()))


def _score_gap(classes: tuple[torch.Tensor, torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
    bad, good = ((rows @ directions.T).max(-1).values for rows in classes)
    spread = ((bad.var() + good.var()) / 2).sqrt()
    return torch.where(spread > 1e-12, (bad.mean() - good.mean()) / spread.clamp_min(1e-30), torch.zeros_like(spread))
