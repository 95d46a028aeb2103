"""The log at home is read on from where the last reading ended."""

from __future__ import annotations

from pathlib import Path

from bruno.runs.home import read_home

BLOCK = "Running trial {n} of 9...\n  * KL divergence: 0.{n}\n  * Refusals: {n}/60\n"


def test_reads_on_and_starts_over(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert read_home(tmp_path).read_at is None
    log.write_text("* Initial refusals: 58/60\n" + BLOCK.format(n=3))
    first = read_home(tmp_path)
    assert (first.progress.trial, first.progress.refusals and first.progress.refusals.refused) == (3, 3)
    with log.open("a") as file:
        file.write(BLOCK.format(n=4)[:-20])
    assert read_home(tmp_path).progress.completed == 1
    with log.open("a") as file:
        file.write(BLOCK.format(n=4)[-20:])
    second = read_home(tmp_path)
    assert second.progress.completed == 2
    assert second.tail[0] == "* Initial refusals: 58/60"
    log.write_text("* Initial refusals: 50/60\n")
    third = read_home(tmp_path)
    assert third.progress.completed == 0
    assert third.tail == ("* Initial refusals: 50/60",)
