"""Seconds a trial on a model of a real shape, beside plain `model.generate` in the same run. Prints one JSON line.

    python benchmarks/trials.py --shape 7b                            # 100 prompts x 100 tokens, batches of 8 trials
    python benchmarks/trials.py --shape 32b --tokens 30 --together 1,2
    python benchmarks/trials.py --shape tiny --device cpu             # the same code, anywhere

The work of a trial: greedy answers to N prompts of about 53 tokens (20 of them the chat template's, the same in all), with
no row leaving early, and first-token log-probabilities and the KL divergence on N others. Trials are drawn as the search's
space draws them, with column norms kept. The plain reference does the same with the base model: `generate` on padded rows
and one padded pass. Random weights; time does not depend on what they are.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from shapes import SHAPES, about, parser, peak, prompts, random_trial, shape_model, timed

from bruno.engine.directions.find import DirectionSet
from bruno.engine.edits.build import EditRules, build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.model.chat_format import EncodedPrompts
from bruno.engine.model.generate import first_token_logprobs, generate, prepare
from bruno.engine.model.loading import LoadedModel
from bruno.engine.scoring.scores import kl_divergence


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--prompts", type=int, default=100)
    options_of.add_argument("--tokens", type=int, default=100)
    options_of.add_argument("--together", default="1,8", help="trials in one batch, several sizes")
    options_of.add_argument(
        "--batches", type=int, default=3, help="measured batches of each size, after one unmeasured"
    )
    options_of.add_argument("--no-plain", action="store_true")
    options_of.add_argument("--profile", default="", help="write a table of the last batch's kernels to this file")
    options = options_of.parse_args()
    with torch.inference_mode():
        report = measure(options)
    print(json.dumps(report))


def measure(options) -> dict[str, object]:
    loaded = shape_model(options.shape, options.device)
    device, vocabulary = loaded.device, int(SHAPES[options.shape]["vocab_size"])
    bad, good = (prompts(options.prompts, vocabulary, seed=seed) for seed in (1, 2))
    report: dict[str, object] = {"benchmark": "trials", **about(device), "shape": options.shape}
    report |= {"dtype": str(loaded.dtype).removeprefix("torch."), "prompts": len(bad), "tokens": options.tokens}
    if not options.no_plain:
        report["plain"] = plain(loaded, bad, good, options.tokens)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    directions = random_set(loaded)
    (prepared_bad, prepared_good), seconds = timed(
        lambda: [
            prepare(loaded, p, emit=lambda event: print(event, file=sys.stderr), answers=answers)
            for p, answers in ((bad, True), (good, False))
        ],
        device,
    )
    base = first_token_logprobs(loaded, prepared_good)[0]
    report |= {
        "prepare_seconds": round(seconds, 3),
        "prefix": prepared_bad.prefix,
        "graphs": bool(prepared_bad.graphs),
        "lean": loaded.lean is not None and not loaded.lean.refused,
    }
    generator = random.Random(options.seed)
    sizes = [int(size) for size in options.together.split(",")]
    with EditSession(loaded.writers, max(sizes)) as session:
        for size in sizes:
            runs = []
            for batch in range(options.batches + 1):
                trials = [random_trial(generator, loaded.layers) for _ in range(size)]
                profiling = options.profile and size == sizes[-1] and batch == options.batches
                with Profiler(options.profile if profiling else ""):
                    runs.append(
                        one_batch(loaded, session, directions, trials, prepared_bad, prepared_good, base, options)
                    )
            report[f"together_{size}"] = summary(runs, size)
    return report | {"peak_gb": peak(device)}


def one_batch(loaded, session, directions, trials, bad, good, base, options) -> dict[str, float]:
    device = loaded.device
    rules = EditRules(norm_mode="column")
    _, switch = timed(lambda: session.write(build_edits(trials, directions, loaded.writers, rules)), device)
    answers, writing = timed(lambda: generate(loaded, bad, max_new_tokens=options.tokens, session=session), device)
    if answers.tokens != len(trials) * options.prompts * options.tokens:
        raise SystemExit(f"{answers.tokens} tokens were written, which is not the work that is timed")
    _, scoring = timed(
        lambda: [kl_divergence(base, each) for each in first_token_logprobs(loaded, good, session=session)], device
    )
    lowest = sum(session.first_layer) / len(session.first_layer)
    return {"switch": switch, "generate": writing, "kl": scoring, "first_layer": lowest}


def summary(runs: list[dict[str, float]], size: int) -> dict[str, float]:
    """Medians of the measured batches, a trial; the first batch, which compiles and captures, apart."""

    def median(of) -> float:
        values = sorted(map(of, runs[1:]))
        return values[len(values) // 2]

    total = ("switch", "generate", "kl")
    return {
        "seconds_per_trial": round(median(lambda run: sum(run[k] for k in total)) / size, 4),
        "first_batch_seconds": round(sum(runs[0][k] for k in total), 3),
        "switch_ms_per_batch": round(1e3 * median(lambda run: run["switch"]), 1),
        "generate_per_trial": round(median(lambda run: run["generate"]) / size, 4),
        "kl_per_trial": round(median(lambda run: run["kl"]) / size, 4),
        "mean_first_layer": round(median(lambda run: run["first_layer"]), 1),
    }


def random_set(loaded: LoadedModel) -> DirectionSet:
    vectors = torch.randn(loaded.layers + 1, 1, loaded.hidden_size, generator=torch.Generator().manual_seed(0))
    return DirectionSet(vectors / vectors.norm(dim=-1, keepdim=True), torch.ones(1), ("random",))


def plain(loaded: LoadedModel, bad: EncodedPrompts, good: EncodedPrompts, tokens: int) -> dict[str, float]:
    """The same work for the base model, as the library's users write it: once to warm up with few tokens, once timed."""

    def padded(some: EncodedPrompts) -> dict[str, torch.Tensor]:
        (batch,) = some.batches(len(some), loaded.device)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    rows, others = padded(bad), padded(good)

    def write(count: int):
        return loaded.model.generate(**rows, do_sample=False, min_new_tokens=count, max_new_tokens=count)

    def score():
        return loaded.model(**others, logits_to_keep=1).logits.float().log_softmax(-1)

    write(3), score()
    _, writing = timed(lambda: write(tokens), loaded.device)
    _, scoring = timed(score, loaded.device)
    return {"seconds_per_trial": round(writing + scoring, 3), "generate": round(writing, 3), "kl": round(scoring, 4)}


class Profiler:
    """Writes the kernels' times to a file, where one is named."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.profile = torch.profiler.profile() if path else None

    def __enter__(self) -> None:
        if self.profile:
            self.profile.__enter__()

    def __exit__(self, *error: object) -> None:
        if self.profile:
            self.profile.__exit__(*error)  # type: ignore[arg-type]
            table = self.profile.key_averages().table(
                sort_by="self_device_time_total", row_limit=40, max_name_column_width=90
            )
            Path(self.path).write_text(table)


if __name__ == "__main__":
    main()
