"""How few refusals at how little KL a search finds, after how many trials: bruno's beside plain TPE, over several seeds.

    python benchmarks/search_quality.py --out FOLDER --processes 8 --device cuda     # both searches, seeds 0 to 4, 200 trials
    python benchmarks/search_quality.py --out FOLDER --arms bruno --seeds 0 --trials 40
    python benchmarks/search_quality.py --out FOLDER --collect 1024 --processes 8    # space-filling trials, as data

The demo model and its harmless prompts: 60 over-refused ones answered with up to 30 tokens, KL on 60 ordinary ones. The
plain search is Optuna's own multivariate TPE on the same space, with nothing of ours: no warm starts, no trial cut short.
bruno's is what `bruno abliterate` runs. Each (search, seed) is a process of its own and goes on where it was stopped;
FOLDER/<search>-<seed>.jsonl holds one line a trial. What each search would have chosen is scored again on the held-out
prompts, which neither it nor the directions saw. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bruno.engine.data.behaviours import load_behaviour
from bruno.engine.data.prompts import load_prompt_sets
from bruno.engine.run import Run
from bruno.engine.scoring.result import Scores, Stopped
from bruno.engine.scoring.screening import Screen
from bruno.settings.engine import Data, EngineSettings, Loading, Scoring
from bruno.settings.engine import Search as SearchSettings

CHECKPOINTS = (10, 25, 50, 80, 100, 200)
AT_MOST = (0, 1, 3)
"""Refusals that the fronts are read at."""
PROMPTS, TOKENS = 60, 30


class Lines:
    """A jsonl file that is added to. The last line may have been cut by a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                self.rows.append(json.loads(line))
            except ValueError:
                continue

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, key: str) -> dict[int, dict[str, Any]]:
        """Rows that have `key`, by trial; the last one of each."""
        return {row["trial"]: row for row in self.rows if key in row}


def make_run(given: argparse.Namespace, name: str, seed: int) -> Run:
    """The demo model, loaded, with this benchmark's prompts, in a folder of its own. Settings as shipped but for `--set`."""
    from bruno.engine.model.loading import load

    folder = given.out / name
    folder.mkdir(parents=True, exist_ok=True)
    search: dict[str, Any] = {"trials": given.trials, "trial_batch": given.batch}
    search |= {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    settings = EngineSettings(
        model=given.model,
        behaviour="over-refusal",
        seed=seed,
        out=str(folder),
        loading=Loading.model_validate({"device": given.device, "threads": given.threads}),
        data=Data(),
        search=SearchSettings.model_validate(search),
        scoring=Scoring(bad_count=PROMPTS, good_count=PROMPTS, max_new_tokens=TOKENS),
    )
    behaviour = load_behaviour(settings)
    prompts = load_prompt_sets(settings, behaviour, quiet)
    return Run(settings, behaviour, folder, quiet, prompts, load(settings, quiet))


def quiet(event: object) -> None:
    """Events that nobody reads here, except the warnings among them."""
    if getattr(event, "level", "") == "warning" or getattr(event, "kind", "") == "fallback":
        print(event, file=sys.stderr, flush=True)


def row_of(trial: int, parameters: dict[str, Any], scores: Scores | Stopped, seconds: float) -> dict[str, Any]:
    """A trial as a line: its count, or what it had at least when it was stopped."""
    counted = {"at_least": scores.at_least} if isinstance(scores, Stopped) else {"refusals": scores.refusals}
    measured = {"prompts": scores.prompts, "kl": scores.kl, "seconds": round(seconds, 3)}
    return {"trial": trial, "parameters": parameters, **counted, **measured}


def plain(run: Run, lines: Lines) -> None:
    """Optuna's TPE as it comes. Its state is made again by telling it the stored scores of the trials it draws again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials, batch = run.settings.search.trials, run.batch
    sampler = optuna.samplers.TPESampler(seed=run.settings.seed, multivariate=True, constant_liar=batch > 1)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    known = lines.of("parameters")
    scorer = run.scorer(run.prompts.bad_search, run.prompts.good_search)
    for first in range(0, trials, batch):
        asked = [study.ask() for _ in range(min(batch, trials - first))]
        drawn = [run.space.suggest(trial) for trial in asked]
        if first not in known or first + len(asked) - 1 not in known:
            began = time.perf_counter()
            with run.session:
                scores = scorer.score([run.space.edit(each) for each in drawn])
            seconds = (time.perf_counter() - began) / len(asked)
            for offset, (parameters, score) in enumerate(zip(drawn, scores, strict=True)):
                known[first + offset] = row_of(first + offset, dict(parameters), score, seconds)
                lines.add(known[first + offset])
        for offset, trial in enumerate(asked):
            row = known[first + offset]
            if row["parameters"] != drawn[offset]:
                raise SystemExit(f"{lines.path} was made by another version of the sampler: remove it")
            study.tell(trial, [row["refusals"] / row["prompts"], row["kl"]])


def ours(run: Run, lines: Lines) -> None:
    """What `bruno abliterate` does, its study in the run's folder; its trials are noted as they are told."""
    import optuna

    noted = set(lines.of("parameters"))
    last = time.perf_counter()

    def note(event: object) -> None:
        nonlocal last
        quiet(event)
        if getattr(event, "kind", "") == "initial_scores":  # what came before is no trial's
            last = time.perf_counter()
        if getattr(event, "kind", "") == "progress":
            told = run.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            new = [trial for trial in told if trial.user_attrs["index"] not in noted]
            seconds = (time.perf_counter() - last) / max(1, len(new))
            for trial in new:
                kept, index = trial.user_attrs, trial.user_attrs["index"]
                noted.add(index)
                scores = Scores(**kept["scores"]) if "scores" in kept else Stopped(**kept["stopped"])
                lines.add(row_of(index, dict(trial.params), scores, seconds))
            last = time.perf_counter()

    run.emit = note
    run.search()


ARMS: dict[str, Callable[[Run, Lines], None]] = {"plain": plain, "bruno": ours}


def collect(run: Run, lines: Lines, part: int, parts: int, count: int) -> None:
    """Points of a scrambled Sobol sequence over the space, every `parts`-th of them, scored in full, with what forward
    passes alone say of each."""
    from scipy.stats import qmc

    ranges = run.space.ranges()
    points = qmc.Sobol(len(ranges) + 1, rng=0).random(count)
    scorer = run.scorer(run.prompts.bad_search, run.prompts.good_search)
    screen = Screen(scorer)
    done = lines.of("parameters")
    for index in range(part, count, parts):
        if index in done:
            continue
        values = (low + u * (high - low) for u, (low, high) in zip(points[index][1:], ranges.values(), strict=True))
        scope = {"direction_scope": "global" if points[index][0] < 0.75 else "per layer"}
        parameters = scope | dict(zip(ranges, map(float, values), strict=True))
        began = time.perf_counter()
        score = scorer.score([run.space.edit(parameters)])[0]
        row = row_of(index, parameters, score, time.perf_counter() - began)
        lines.add(row | {"screened": [round(value, 3) for value in screen.measure()[0].tolist()]})


def below(rows: list[dict[str, Any]], refusals: int) -> dict[str, Any] | None:
    """The trial with the lowest KL among those with at most so many refusals, truly counted."""
    able = [row for row in rows if row.get("refusals", PROMPTS) <= refusals]
    return min(able, key=lambda row: row["kl"], default=None)


def held_out(run: Run, lines: Lines, trials: int) -> None:
    """Score what the search would have chosen at each checkpoint on prompts that nothing else saw."""
    rows, done = lines.of("parameters"), lines.of("held_out")
    wanted = {
        chosen["trial"]
        for checkpoint in CHECKPOINTS
        for most in AT_MOST
        if checkpoint <= trials
        and (chosen := below([row for row in rows.values() if row["trial"] < checkpoint], most)) is not None
    } - set(done)
    if not wanted:
        return
    with run.session:
        scorer = run.scorer(run.prompts.bad_held_out, run.prompts.good_held_out)
        for trial in sorted(wanted):
            score = scorer.score([run.space.edit(rows[trial]["parameters"])])[0]
            answered = scorer.ordinary(run.space.edit(rows[trial]["parameters"])).kl_answered
            lines.add({"trial": trial, "held_out": [score.refusals, score.prompts, score.kl, answered]})


def job(given: argparse.Namespace, name: str) -> None:
    """One process's share: `arm-seed`, or `collect-part`."""
    arm, number = name.rsplit("-", 1)
    lines = Lines(given.out / f"{name}.jsonl")
    run = make_run(given, name, 0 if arm == "collect" else int(number))
    if arm == "collect":
        with run.session:
            collect(run, lines, int(number), given.processes, given.collect)
        return
    ARMS[arm](run, lines)
    if given.held_out:
        held_out(run, lines, given.trials)


def summary(given: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Lowest KL at so many refusals after so many trials, by seed; None where no trial came so low."""
    files = [Lines(given.out / f"{arm}-{seed}.jsonl") for seed in given.seeds]
    rows = [[row for _, row in sorted(each.of("parameters").items())] for each in files]
    held = [each.of("held_out") for each in files]
    after: dict[str, Any] = {}
    for checkpoint in (each for each in CHECKPOINTS if each <= given.trials):
        for most in AT_MOST:
            found = [below([row for row in each if row["trial"] < checkpoint], most) for each in rows]
            kls = [round(each["kl"], 4) if each else None for each in found]
            known = [kl for kl in kls if kl is not None]
            outside = [
                by[each["trial"]]["held_out"]
                for by, each in zip(held, found, strict=True)
                if each and each["trial"] in by
            ]
            after[f"{checkpoint} trials, at most {most} refused"] = {
                "kl": kls,
                "median": round(statistics.median(known), 4) if len(known) == len(kls) else None,
                "held_out_refusals": [refused for refused, *_ in outside],
                "held_out_kl": [round(kl, 4) for _, _, kl, _ in outside],
                "held_out_kl_where_the_original_answers": [round(kl, 4) for *_, kl in outside],
            }
    seconds = [row["seconds"] for each in rows for row in each]
    stopped = sum("at_least" in row for each in rows for row in each)
    return {
        "after": after,
        "seconds_a_trial": round(float(np.mean(seconds)), 3),
        "stopped": stopped,
        "trials": len(seconds),
    }


def machine() -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {each: version(each) for each in ("torch", "transformers", "optuna")}
    return {"machine": name, "cores": str(os.cpu_count()), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="demo", help="`demo`, or the folder it was materialised in")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1, help="trials evaluated together (and drawn without each other)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each process")
    parser.add_argument("--collect", type=int, default=0, metavar="N", help="score N space-filling trials instead")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=JSON", help="settings of [search] for bruno's arm"
    )
    parser.add_argument("--held-out", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.job:
        job(given, given.job)
        return
    began = time.perf_counter()
    names = [f"{arm}-{seed}" for seed in given.seeds for arm in given.arms]
    if given.collect:
        names = [f"collect-{part}" for part in range(given.processes)]

    def start(name: str) -> int:
        with (given.out / f"{name}.log").open("a") as log:
            command = [sys.executable, __file__, *sys.argv[1:], "--job", name]
            threads = str(given.threads or max(1, (os.cpu_count() or 1) // given.processes))
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "BRUNO_HOME": str(given.out / "home")}
            return subprocess.run(command, stdout=log, stderr=log, check=False, env=environment).returncode

    with ThreadPoolExecutor(given.processes) as pool:
        codes = dict(zip(names, pool.map(start, names), strict=True))
    report: dict[str, Any] = {
        "benchmark": "search_quality",
        **machine(),
        "prompts": PROMPTS,
        "tokens": TOKENS,
        "batch": given.batch,
        "set": given.set,
        "seconds": round(time.perf_counter() - began, 1),
        "failed": [name for name, code in codes.items() if code],
    }
    if given.collect:
        report["collected"] = sum(len(Lines(given.out / f"{name}.jsonl").of("parameters")) for name in names)
    else:
        report |= {arm: summary(given, arm) for arm in given.arms}
    print(json.dumps(report), flush=True)
    raise SystemExit(bool(report["failed"]))


if __name__ == "__main__":
    main()
