"""The guard's figures: what passes, what is asked, how long a verdict takes. Prints one JSON line.

    python benchmarks/guard.py [--differential N]

Corpora are those of tests/guard/corpus. Times are CPU time of this thread, in milliseconds, warm (rules read, examples checked);
`cold_*` are the first reading of the files and the first verdict. `--differential N` adds N strings held against shfmt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bruno.guard.bench import bombs, latencies, timed, verdicts
from bruno.guard.command_rules import shipped_commands
from bruno.guard.phrases import ambiguous
from tests.guard.corpus import lines
from tests.guard.shfmt import disagreements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--differential", type=int, default=0, help="strings to hold against shfmt")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()

    start = time.thread_time()
    rules = shipped_commands()
    read = (time.thread_time() - start) * 1e3
    first = timed("ls -la", rules)
    start = time.thread_time()
    failing = rules.check_all()
    examples = (time.thread_time() - start) * 1e3

    commands = [command for name in ("must_never.txt", "own_reads.txt", "benign.txt") for command in lines(name)]
    vague, clear = lines("phrases_ask.txt"), lines("phrases_clear.txt")
    figures: dict[str, object] = {
        "programs": len(rules.programs),
        "failing_examples": len(failing),
        "must_never": verdicts(lines("must_never.txt"), rules),
        "own_reads": verdicts(lines("own_reads.txt"), rules),
        "benign": verdicts(lines("benign.txt"), rules),
        "phrases": {"vague": len(vague), "missed": sum(ambiguous(one) is None for one in vague)},
        "clear_phrases": {"clear": len(clear), "asked": sum(ambiguous(one) is not None for one in clear)},
        "cold_read_ms": round(read, 2),
        "cold_first_ms": round(first, 2),
        "all_examples_ms": round(examples, 2),
        **latencies(commands, rules, asked.rounds),
        "worst_bomb_ms": max(bombs(rules).values()),
    }
    if asked.differential:
        allowed, bad = disagreements(asked.differential, seed=3)
        figures["differential"] = {"strings": asked.differential, "allowed": allowed, "disagree": len(bad)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
