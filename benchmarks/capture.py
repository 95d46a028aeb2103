"""Seconds to capture the residual stream of every block at the last prompt position. Prints one JSON line.

    python benchmarks/capture.py --shape 7b                 # 800 prompts of about 53 tokens
    python benchmarks/capture.py --shape 32b --prompts 800

The plain reference pads the same prompts to the left and runs the model with `output_hidden_states`, in batches of as many
rows, moving the last position of each of the hidden states to the CPU; some batches are measured and the rest extrapolated
(`reference_prompts` says how many prompts). `largest_difference` is the largest change of a vector against it, relative to
the vector's length (bf16 rounds; the last of the library's states is behind the final norm, and left out).
"""

from __future__ import annotations

import json

import torch
from shapes import SHAPES, about, parser, prompts, shape_model, timed

from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import EncodedPrompts
from bruno.engine.model.loading import LoadedModel


@torch.inference_mode()
def plain(loaded: LoadedModel, encoded: EncodedPrompts, count: int, rows: int) -> torch.Tensor:
    """The first `count` prompts' last positions [count, L, d], in the order they come in."""
    parts = []
    for begin in range(0, count, rows):
        chosen = encoded.ids[begin : begin + min(rows, count - begin)]
        width = max(map(len, chosen))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in chosen], device=loaded.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in chosen], device=loaded.device)
        states = loaded.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        parts.append(torch.stack([state[:, -1].float().cpu() for state in states[:-1]], dim=1))
    return torch.cat(parts)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--prompts", type=int, default=800)
    made.add_argument("--length", type=int, default=53)
    made.add_argument("--rows", type=int, default=0, help="prompts in one pass; 0 lets the engine choose")
    made.add_argument("--repeat", type=int, default=3)
    made.add_argument("--reference-prompts", type=int, default=256)
    options = made.parse_args()
    loaded = shape_model(options.shape, options.device)
    encoded = prompts(
        options.prompts, int(SHAPES[options.shape]["vocab_size"]), length=options.length, seed=options.seed
    )
    device, said = loaded.device, []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    runs, residuals = [], torch.empty(0)
    for _ in range(options.repeat):
        residuals, seconds = timed(lambda: capture(loaded, encoded, emit=said.append, rows=options.rows), device)
        runs.append(round(seconds, 3))
    extra = round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 2) if device.type == "cuda" else None  # pyright: ignore
    few, rows = min(options.reference_prompts, options.prompts), options.rows or loaded.default_rows
    if few > 8:
        plain(loaded, encoded, 8, rows)  # loads the GPU's libraries
    expected, seconds = timed(lambda: plain(loaded, encoded, few, rows), device)
    change = torch.linalg.vector_norm(residuals[:few, :-1] - expected, dim=-1)  # type: ignore[index,operator]
    print(
        json.dumps(
            {
                "benchmark": "capture",
                **about(device),
                "shape": options.shape,
                "dtype": str(loaded.dtype).removeprefix("torch."),
                "prompts": options.prompts,
                "tokens": sum(map(len, encoded.ids)),
                "seconds": sorted(runs)[len(runs) // 2],
                "seconds_each": runs,
                "extra_gib": extra,
                "captures_gib": round(residuals.numel() * 4 / 2**30, 2),  # type: ignore[attr-defined]
                "events": [type(event).__name__ for event in said],
                "reference_prompts": few,
                "reference_seconds_all_prompts": round(seconds / few * options.prompts, 2),
                "largest_difference": float((change / torch.linalg.vector_norm(expected, dim=-1)).max()),  # type: ignore[arg-type]
            }
        )
    )


if __name__ == "__main__":
    main()
