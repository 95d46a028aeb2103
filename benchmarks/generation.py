"""Trials per minute on the demo model, beside plain `model.generate` in the same run. Prints one JSON line.

    python benchmarks/generation.py                # 30 prompts x 30 tokens, 2 trials
    python benchmarks/generation.py --prompts 60 --trials 4 --dtype bfloat16

The work of a trial: greedy answers to the over-refused search prompts (no early leaving: every row writes all its
tokens unless it ends), and first-token log-probabilities on as many ordinary ones. The plain reference does the same with
the base model through `generate` and one padded forward pass. Seconds are wall time; on a machine with other work,
compare `cpu_seconds`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shapes import about, random_trial

from bruno.engine import demo
from bruno.engine.directions.find import Samples, find_directions
from bruno.engine.edits.build import build_edits
from bruno.engine.edits.session import EditSession
from bruno.engine.model.capture import capture
from bruno.engine.model.chat_format import encode
from bruno.engine.model.generate import first_token_logprobs, generate, prepare
from bruno.engine.model.loading import load
from bruno.settings.engine import EngineSettings, Loading


def measured(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
    return result, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 1 gives cpu_seconds that other work disturbs least"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    loading = Loading.model_validate({"dtype": [options.dtype], "device": options.device, "threads": options.threads})
    loaded = load(EngineSettings(model=options.model, loading=loading), lambda _: None)
    bad, good = (
        encode(loaded.tokenizer, demo.prompts("search", kind)[: options.prompts])
        for kind in ("over_refused", "ordinary")
    )
    report: dict[str, object] = {
        "benchmark": "generation",
        **about(loaded.device),
        "model": Path(options.model).name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "prompts": len(bad),
        "trials": options.trials,
    }
    report["plain"] = plain(loaded, bad, good, options.tokens)
    (captures, report["capture"]) = measured(lambda: [capture(loaded, p, emit=tell) for p in (bad, good)])
    directions = find_directions(Samples(*captures), EngineSettings())  # type: ignore[misc]
    (prepared, report["prepare"]) = measured(lambda: [prepare(loaded, p, emit=tell) for p in (bad, good)])
    generator = random.Random(options.seed)
    trials = [random_trial(generator, loaded.layers) for _ in range(options.trials)]
    with EditSession(loaded.writers, options.trials) as session:
        _, report["switch"] = measured(lambda: session.write(build_edits(trials, directions, loaded.writers)))
        answers, writing = measured(
            lambda: generate(loaded, prepared[0], max_new_tokens=options.tokens, session=session)  # type: ignore[index]
        )
        _, scoring = measured(lambda: first_token_logprobs(loaded, prepared[1], session=session))  # type: ignore[index]
        first_layers = list(session.first_layer)
    tokens = answers.tokens  # type: ignore[attr-defined]
    report["bruno"] = {
        "first_layers": first_layers,
        "prefix_tokens": prepared[0].prefix,  # type: ignore[index]
        "generate": writing,
        "kl_pass": scoring,
        "tokens_per_second": round(tokens / writing["seconds"], 1),
        "seconds_per_trial": round((writing["seconds"] + scoring["seconds"]) / options.trials, 2),
        "cpu_seconds_per_trial": round((writing["cpu_seconds"] + scoring["cpu_seconds"]) / options.trials, 2),
    }
    print(json.dumps(report))


@torch.inference_mode()
def plain(loaded, bad, good, tokens: int) -> dict[str, object]:
    """The same work for the base model, as the library's users write it."""
    padded = [
        loaded.tokenizer.pad({"input_ids": [list(ids) for ids in p.ids]}, return_tensors="pt").to(loaded.device)
        for p in (bad, good)
    ]
    loaded.model(**{k: v[:2] for k, v in padded[0].items()})
    output, writing = measured(lambda: loaded.model.generate(**padded[0], do_sample=False, max_new_tokens=tokens))
    _, scoring = measured(lambda: loaded.model(**padded[1], logits_to_keep=1).logits.float().log_softmax(-1))
    answers = output[:, padded[0]["input_ids"].shape[1] :]  # type: ignore[index]
    count = int((answers != loaded.tokenizer.pad_token_id).sum())
    return {
        "generate": writing,
        "kl_pass": scoring,
        "tokens_per_second": round(count / writing["seconds"], 1),
        "seconds_per_trial": round(writing["seconds"] + scoring["seconds"], 2),
        "cpu_seconds_per_trial": round(writing["cpu_seconds"] + scoring["cpu_seconds"], 2),
    }


def tell(event: object) -> None:
    print(event, file=sys.stderr)


if __name__ == "__main__":
    main()
