"""One engine a folder; files whole or not there; kept directions only for the run that made them."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from bruno.engine.directions.find import DirectionSet
from bruno.engine.folder import DIRECTIONS_FILE, FolderInUse, load_directions, run_folder, save_directions, write_whole
from bruno.errors import InputError
from tests.engine.edits.test_build import random_directions

HOLD = """
import sys
from pathlib import Path
from bruno.engine.folder import run_folder
with run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_by_name_and_a_killed_one_frees_the_folder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(FolderInUse, match=f"in use by another engine \\(process {holder.pid}\\)"), run_folder(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_folder(tmp_path) as folder:
        assert (folder / "engine.pid").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "engine.pid").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"), run_folder(tmp_path / "file" / "out"):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def fails(target):
        target.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_directions_come_back_only_under_their_key(tmp_path):
    assert load_directions(tmp_path, "k") is None
    made = random_directions(4, 8, count=2)
    save_directions(tmp_path, made, "k")
    assert load_directions(tmp_path, "k") is not None
    assert load_directions(tmp_path, "other") is None
    (tmp_path / DIRECTIONS_FILE).write_bytes(b"cut short")
    assert load_directions(tmp_path, "k") is None


@pytest.mark.parametrize("whole", [True, False])
def test_every_field_of_the_directions_is_kept(tmp_path, whole):
    plain = random_directions(4, 8, count=2)
    full = DirectionSet(
        plain.vectors,
        plain.weights,
        used=("mean difference", "projected"),
        skipped={"concept cones": "no clusters; continuing with the others"},
        separation=torch.arange(5.0),
        strength=torch.rand(5),
        calibration=1.3,
        compliance=torch.rand(5, 8),
        protected=torch.rand(5, 3, 8).transpose(0, 1).contiguous().transpose(0, 1),  # not contiguous
    )
    made = full if whole else plain
    save_directions(tmp_path, made, "k")
    kept = load_directions(tmp_path, "k")
    for name, value in vars(made).items():
        again = getattr(kept, name)
        assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value, name
    assert not whole or all(value is not None for value in vars(made).values())  # a new field joins this test


def test_a_file_of_another_version_is_made_again(tmp_path):
    from safetensors.torch import save_file

    for notes in (
        {"key": "k", "used": [], "skipped": {}},
        {"key": "k", "tensors": [], "values": {"used": [], "new": 1}},
    ):
        save_file({"vectors": torch.zeros(1)}, tmp_path / DIRECTIONS_FILE, metadata={"bruno": json.dumps(notes)})
        assert load_directions(tmp_path, "k") is None
