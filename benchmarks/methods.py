"""`bruno abliterate` on the demo model with each method on and off: what each does to refusals, KL, held-out counts, time.

    python benchmarks/methods.py --out FOLDER [--trials 8] [--only NAME ...] [--table docs/engine.md]

Every row is a run of its own process with the same seed, the same first trials and the same prompts; only the settings
named differ. Prints one JSON line a row and goes on where it was stopped. `--table` writes the rows between the two
markers of a Markdown file. No network: where a method needs plain text or other prompts, they are this repository's own
(see SOURCES), which says little about what the method does with the sources it has by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
SOURCES = {
    "protection.helpful": "{out}/helpful.txt",
    "protection.plain": "{out}/plain.txt",
    "protection.sacred": "{out}/capability.txt",
}
METHODS: dict[str, dict[str, str]] = {
    "as shipped": {},
    "good mean not projected out": {"directions.project_good_mean": "false"},
    "winsorised at 0.995": {"directions.winsorize_quantile": "0.995"},
    "contrastive PCA, 3 directions": {"directions.contrastive_pca": "true"},
    "contrastive PCA, 1 direction": {"directions.contrastive_pca": "true", "directions.n_directions": "1"},
    "probe and mean difference": {"directions.supervised_probe": "true"},
    "probe and contrastive PCA": {"directions.supervised_probe": "true", "directions.contrastive_pca": "true"},
    "concept cones": {"directions.concept_cones": "true"},
    "helpfulness protected": {"protection.orthogonalize_directions": "true", **SOURCES},
    "sacred directions protected": {
        "protection.sacred_directions": "true",
        "protection.allow_sacred_overlap": "true",
        **SOURCES,
    },
    "activation calibration": {"directions.activation_calibration": "true"},
    "compliance addition (CAA)": {"edit.compliance_addition": "true"},
    "one round of refinement": {"directions.refinement_rounds": "1"},
    "a quarter of the heads": {"edit.heads": "true"},
    "layer profile 0.5, 1, 1, 0.5": {"edit.layer_profile": "0.5,1,1,0.5"},
    "no norms kept": {"edit.norm_mode": "none"},
    "row norms kept": {"edit.norm_mode": "row"},
    "frobenius norm kept": {"edit.norm_mode": "frobenius"},
}
"""Name of the row to the settings that differ from the shipped ones."""


def write_sources(out: Path) -> None:
    """Plain text from the repository's documents; prompts from its behaviours' training sets."""
    from bruno.engine.demo import prompts

    ordinary = prompts("train", "ordinary")
    (out / "helpful.txt").write_text("\n".join(ordinary[::2]) + "\n")
    (out / "capability.txt").write_text("\n".join(ordinary[1::2]) + "\n")
    words = " ".join(path.read_text() for path in sorted(ROOT.glob("*.md"))).split()
    plain = [" ".join(words[start : start + 30]) for start in range(0, len(words) - 30, 30)]
    (out / "plain.txt").write_text("\n".join(plain) + "\n")


def run(name: str, changes: dict[str, str], out: Path, trials: int) -> dict:
    """One row: the run's report in short, or what it said when it ended without one."""
    folder = out / re.sub(r"\W+", "-", name)
    row_file = folder / "row.json"
    if row_file.is_file():
        return json.loads(row_file.read_text())
    given = [part for key, value in changes.items() for part in (f"--{key}", value.format(out=out))]
    command = [sys.executable, "-m", "bruno.engine", "demo", "--out", str(folder), "--export.save", "false"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--search.trials", str(trials), "--search.startup_trials", str(max(1, trials // 2)), *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BRUNO_HOME": str(out / "home")},
    )
    seconds = round(time.perf_counter() - began, 1)
    row: dict = {"method": name, "settings": {k: v for k, v in changes.items() if k not in SOURCES}, "trials": trials}
    if done.returncode:
        return row | {"failed": (done.stdout + done.stderr).strip().splitlines()[-1], "seconds": seconds}
    report = json.loads((folder / "report.json").read_text())
    chosen, held = report["chosen"], report["held_out"]
    row |= {
        "initial": report["initial_refusals"],
        "refusals": chosen["refusals"],
        "prompts": chosen["prompts"],
        "kl": round(chosen["kl"], 4),
        "held_out": [held["after"], held["prompts"]],
        "held_out_kl": round(held["kl"], 4),
        "front": [[trial["refusals"], round(trial["kl"], 4)] for trial in report["front"]],
        "used": report["directions"]["used"],
        "skipped": report["directions"]["skipped"],
        "seconds": seconds,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": report["machine"],
    }
    row_file.write_text(json.dumps(row))
    return row


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| method | refusals | KL | best KL with at most 3 refusals | held out | KL held out | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['method']} | {row['failed']} | | | | | {row['seconds']:.0f} |")
            continue
        few = [kl for refusals, kl in row["front"] if refusals <= 3]
        held, of = row["held_out"]
        lines.append(
            f"| {row['method']} | {row['refusals']}/{row['prompts']} | {row['kl']:.3f} | "
            f"{f'{min(few):.3f}' if few else 'none'} | {held}/{of} | {row['held_out_kl']:.3f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--trials", type=int, default=8)
    arguments.add_argument("--only", nargs="*", default=[])
    arguments.add_argument("--table", type=Path)
    given = arguments.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_sources(out)
    rows = []
    for name, changes in METHODS.items():
        if given.only and name not in given.only:
            continue
        rows.append(run(name, changes, out, given.trials))
        print(json.dumps(rows[-1]), flush=True)
    if given.table:
        text = given.table.read_text()
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        given.table.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
