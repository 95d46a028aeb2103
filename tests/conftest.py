"""For every test: signals as a terminal gives them. For those who ask: the demo model, built once.

A suite started in the background (`make test &`, nohup, some CI runners) inherits ignored signals and hands them on to what it
starts; tests of Ctrl-C and of a closed terminal would then test nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

# How fast examples are drawn depends on what else the machine does, and says nothing about what is tested; in CI they
# are the same in every run.
settings.register_profile(
    "bruno", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("bruno")

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

BUILD = """
import sys
from pathlib import Path
from bruno.engine import demo
demo.materialise(Path(sys.argv[1]))
print("torch" in sys.modules)
"""


@pytest.fixture(scope="session")
def built_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo model's folder, and what the two processes that built it at once said on whether they had to load torch.

    Built once for all of xdist's workers: it takes 20 s of processor time. Nobody may change it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, words = shared / "demo-model" / "not-yet" / "demo", shared / "demo-model.json"
    with FileLock(shared / "demo-model.lock"):
        if not words.exists():
            words.write_text(json.dumps(_build_twice(folder)))
    return folder, json.loads(words.read_text())


def _build_twice(folder: Path) -> list[str]:
    argv = [sys.executable, "-c", BUILD, str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as one, subprocess.Popen(argv, **pipes) as other:
        try:
            ends = [(process, *process.communicate()) for process in (one, other)]
        finally:
            one.kill()
            other.kill()
    for process, _, err in ends:
        assert process.returncode == 0, err
    return [out.strip() for _, out, _ in ends]
