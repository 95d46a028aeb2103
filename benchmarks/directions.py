"""Seconds for directions from captures: contrastive PCA, and the supervised probe on request. Prints one JSON line.

    python benchmarks/directions.py --shape 32b                     # 400 + 400 prompts, 64 blocks x 5120, 3 directions
    python benchmarks/directions.py --shape 32b --bad 800 --good 800 --probe
    python benchmarks/directions.py --shape 32b --device cpu --reference-layers 1

Captures are random with a spectrum that falls off as a model's does (scales 1/j^0.5, a shared loud part, a shift between
the classes) and lie on the CPU, as `capture` leaves them. The plain reference does the same with the textbook's own means,
layer by layer in fp64 on the same device: thin QR, full `eigh`, and for the probe scikit-learn's cross-validated fit; some
layers are measured and the rest extrapolated (`reference_layers` says how many). `sine_to_reference` is the largest sine of
the angle between the first directions that the two find there.
"""

from __future__ import annotations

import json
import time

import torch
from shapes import SHAPES, about, parser, timed

from bruno.engine.directions.contrastive import contrastive_pca
from bruno.engine.directions.find import Samples, find_directions
from bruno.engine.directions.probe import FOLDS, supervised_probe
from bruno.settings.engine import Directions, EngineSettings


def captures(bad: int, good: int, layers: int, hidden: int, device: torch.device, seed: int) -> Samples:
    """Two classes [n, layers, d] on the CPU, in the order of memory that `capture` gives."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = torch.arange(1, hidden + 1, device=device).pow(-0.5)[
        torch.randperm(hidden, generator=generator, device=device)
    ]
    sets = [torch.empty(layers, n, hidden) for n in (bad, good)]
    for layer in range(layers):
        shift, loud = (torch.randn(hidden, generator=generator, device=device) * scale for _ in range(2))
        for rows, moved in zip(sets, (1.0, 0.0), strict=True):
            noise = torch.randn(len(rows[layer]), hidden, generator=generator, device=device) * scale
            common = 2 * torch.randn(len(rows[layer]), 1, generator=generator, device=device) * loud
            rows[layer] = (noise + common + moved * shift + loud).cpu()
    refused = torch.arange(bad) % 4 > 0
    return Samples(sets[0].transpose(0, 1), sets[1].transpose(0, 1), refused=refused)


def plain_pca(samples: Samples, layer: int, device: torch.device) -> torch.Tensor:
    """The first direction of a layer, [d], by thin QR and a full decomposition."""
    bad, good = (sample[:, layer].to(device).double() for sample in (samples.bad, samples.good))
    rows = torch.cat([bad, good]) - good.mean(0)
    share = torch.cat([bad.new_full((len(bad),), 1 / len(bad)), bad.new_full((len(good),), -1 / len(good))])
    basis, triangle = torch.linalg.qr(rows.T)
    _, vectors = torch.linalg.eigh((triangle * share) @ triangle.T)
    return (basis @ vectors[:, -3:]).flip(-1)[:, 0]


def plain_probe(samples: Samples, layer: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = torch.cat([samples.bad[:, layer], samples.good[:, layer]]).double().numpy()
    labels = torch.cat([samples.refused, torch.zeros(len(samples.good), dtype=torch.bool)]).int().numpy()  # type: ignore[list-item]
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    cross_val_score(model, rows, labels, scoring="balanced_accuracy", cv=folds)
    model.fit(rows, labels)


def memory(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--bad", type=int, default=400)
    made.add_argument("--good", type=int, default=400)
    made.add_argument("--directions", type=int, default=3)
    made.add_argument("--probe", action="store_true", help="the supervised probe, too")
    made.add_argument("--reference-layers", type=int, default=3)
    made.add_argument("--repeat", type=int, default=2, help="the last one counts: the first loads the GPU's libraries")
    options = made.parse_args()
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    )
    shape = SHAPES[options.shape]
    layers, hidden = int(shape["num_hidden_layers"]) + 1, int(shape["hidden_size"])
    samples = captures(options.bad, options.good, layers, hidden, device, options.seed)
    settings = EngineSettings(directions=Directions(contrastive_pca=True, n_directions=options.directions))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    runs = []
    for _ in range(options.repeat):
        found, seconds = timed(lambda: find_directions(samples, settings, device=device), device)
        runs.append(round(seconds, 3))
    spectrum, pca_seconds = timed(
        lambda: contrastive_pca(samples.bad, samples.good, options.directions, device=device), device
    )
    result: dict[str, object] = {
        "benchmark": "directions",
        **about(device),
        "shape": options.shape,
        "prompts": [options.bad, options.good],
        "layers": layers,
        "hidden": hidden,
        "directions": options.directions,
        "seconds": runs[-1],
        "seconds_each": runs,
        "pca_seconds": round(pca_seconds, 3),
        "unsettled_layers": spectrum.unsettled,  # type: ignore[attr-defined]
        "peak_gib_beyond_captures": memory(device),
        "used": found.used,  # type: ignore[attr-defined]
    }
    chosen = range(1, layers, max(1, layers // options.reference_layers))[: options.reference_layers]
    plain_pca(samples, layers - 1, device)  # loads the GPU's libraries
    plain, seconds = timed(lambda: [plain_pca(samples, layer, device) for layer in chosen], device)
    ours = torch.stack([spectrum.vectors[layer, 0] for layer in chosen])  # type: ignore[attr-defined]
    expected = torch.stack(plain)  # type: ignore[arg-type]
    left = ours - (ours * expected).sum(-1, keepdim=True) * expected
    result["reference_layers"] = len(chosen)
    result["reference_seconds_all_layers"] = round(seconds / len(chosen) * layers, 2)
    result["sine_to_reference"] = float(torch.linalg.vector_norm(left, dim=-1).max())
    if options.probe:
        import sklearn.model_selection  # noqa: F401  (its import is no part of the probe)

        assert samples.refused is not None
        _, seconds = timed(lambda: supervised_probe(samples.bad, samples.good, samples.refused, device=device), device)
        result["probe_seconds"] = round(seconds, 2)
        result["peak_gib_with_probe"] = memory(device)
        began = time.perf_counter()
        plain_probe(samples, layers // 2)
        result["probe_reference_layers"] = 1
        result["probe_reference_seconds_all_layers"] = round((time.perf_counter() - began) * layers, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
