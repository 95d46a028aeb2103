"""Milliseconds to switch trials: tensors from the weights, then into the running model. Prints one JSON line.

    python benchmarks/switch.py --shape 7b                  # 8 trials of the search's space, 3 directions
    python benchmarks/switch.py --shape 32b --trials 8
    python benchmarks/switch.py --shape 7b --mode row

Measured is `build_edits` and `EditSession.write` for T new trials, the first one of a run (which takes the weights' norms and
makes the buffers) apart from the later ones. No weight is written: `weights_unchanged` compares each parameter's version. The
plain reference does for one trial what tools usually do: restore each edited weight from a copy kept in the machine's memory,
widen it to fp32, subtract the projection, restore the columns' norms and write it back; some blocks are measured and the rest
extrapolated (`reference_blocks` says how many).
"""

from __future__ import annotations

import json
import random
from functools import partial

import torch
from shapes import about, parser, random_trial, shape_model, timed

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.build import EditRules, build_edits, orthonormal
from bruno.engine.edits.session import EditSession
from bruno.engine.model.architectures import Writer


@torch.inference_mode()
def write_in_place(writer: Writer, kept: torch.Tensor, basis: torch.Tensor) -> None:
    """One weight as other tools change it, for one trial."""
    parameter = writer.parameter
    parameter.copy_(kept)
    wide = parameter.float()
    before = torch.linalg.vector_norm(wide, dim=0)
    wide -= basis.T @ (basis @ wide)
    wide *= before / torch.linalg.vector_norm(wide, dim=0).clamp_min(1e-30)
    parameter.copy_(wide)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=8)
    made.add_argument("--directions", type=int, default=3)
    made.add_argument("--mode", default="column", choices=["column", "none", "row", "frobenius"])
    made.add_argument("--repeat", type=int, default=10)
    made.add_argument("--reference-blocks", type=int, default=4)
    options = made.parse_args()
    loaded = shape_model(options.shape, options.device)
    device = loaded.device
    generator, draw = torch.Generator().manual_seed(options.seed), random.Random(options.seed)
    vectors = orthonormal(torch.randn(loaded.layers + 1, options.directions, loaded.hidden_size, generator=generator))
    directions = DirectionSet(vectors, torch.linspace(1, 0.4, options.directions), ("random",))
    rules = EditRules(norm_mode=options.mode)
    batches = [[random_trial(draw, loaded.layers) for _ in range(options.trials)] for _ in range(options.repeat + 1)]
    versions = [parameter._version for parameter in loaded.model.parameters()]
    weights = sum(w.parameter.numel() * w.parameter.element_size() for w in loaded.writers)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    both, built = [], []
    with EditSession(loaded.writers, max_trials=options.trials) as session:
        for trials in batches:
            edits, seconds = timed(partial(build_edits, trials, directions, loaded.writers, rules), device)
            built.append(seconds)
            both.append(seconds + timed(partial(session.write, edits), device)[1])
            touched = len(edits.edits)  # type: ignore[attr-defined]
    unchanged = versions == [parameter._version for parameter in loaded.model.parameters()]
    extra = round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 2) if device.type == "cuda" else None  # pyright: ignore
    later, only_built = sorted(both[1:]), sorted(built[1:])
    chosen = [writer for writer in loaded.writers if writer.layer < options.reference_blocks]
    kept = [writer.parameter.detach().to("cpu", copy=True) for writer in chosen]
    basis = vectors[1].to(device)
    write_in_place(chosen[0], kept[0], basis)  # loads the GPU's libraries

    def all_in_place() -> None:
        for writer, copy in zip(chosen, kept, strict=True):
            write_in_place(writer, copy, basis)

    _, seconds = timed(all_in_place, device)
    print(
        json.dumps(
            {
                "benchmark": "switch",
                **about(device),
                "shape": options.shape,
                "trials": options.trials,
                "directions": options.directions,
                "mode": options.mode,
                "writers_edited": touched,
                "weights_gb": round(weights / 1e9, 2),
                "seconds": round(later[len(later) // 2], 4),
                "seconds_build": round(only_built[len(only_built) // 2], 4),
                "seconds_worst": round(later[-1], 4),
                "seconds_first": round(both[0], 4),
                "weights_unchanged": unchanged,
                "extra_gib": extra,
                "reference_blocks": options.reference_blocks,
                "reference_seconds_one_trial_all_blocks": round(seconds / options.reference_blocks * loaded.layers, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
