"""The engine's wheel: read back by `wheel` itself, and installed by pip into an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from wheel.wheelfile import WheelFile

import bruno
from bruno.fleet import parcel

PACKAGE = Path(bruno.__file__).parent


def test_the_wheel_holds_the_engine_and_nothing_of_the_console(tmp_path: Path) -> None:
    path = parcel.build(tmp_path)
    with WheelFile(path) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        contents = {
            name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/RECORD")
        }  # checks every hash
    assert names == sorted(names)
    rooms = {name.split("/")[1] for name in names}
    assert rooms == {"__init__.py", "errors.py", "settings", "engine"}
    assert "bruno/engine/behaviours/over-refusal.toml" in names
    for name in names:
        assert contents[name] == (PACKAGE.parent / name).read_bytes()
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = parcel.build(tmp_path / "one"), parcel.build(tmp_path / "two")
    assert one.name == two.name
    assert one.name.startswith(f"bruno_engine-{bruno.__version__}+")
    assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in one.parent.iterdir()] == [one.name]


def test_it_requires_what_the_engine_extra_does_and_what_the_packed_files_import(tmp_path: Path) -> None:
    path = parcel.build(tmp_path)
    with WheelFile(path) as wheel:
        text = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    headers = Parser().parsestr(text)
    required = set(headers.get_all("Requires-Dist", []))
    ours = metadata.requires("bruno") or []
    extra = {
        line.partition(";")[0].strip() for line in ours if line.endswith(("extra == 'engine'", 'extra == "engine"'))
    }
    assert extra
    assert extra <= required
    assert {name for name in ("pydantic", "platformdirs") if any(line.startswith(name) for line in required)} == {
        "pydantic",
        "platformdirs",
    }
    assert not [
        line for line in required if line.startswith(("vastai", "textual", "fabric", "anthropic", "sqlmodel", "wheel"))
    ]
    assert {line for line in required if "liger-kernel" in line} == {'liger-kernel>=0.8.5; extra == "gpu"'}
    assert headers["Requires-Python"] == metadata.metadata("bruno")["Requires-Python"]


def test_pip_installs_it_and_the_engine_imports_without_the_console(tmp_path: Path) -> None:
    path = parcel.build(tmp_path)
    environment = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True, with_pip=False, system_site_packages=False).create(environment)
    python = environment / "bin/python"
    base = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        str(path),
    ]
    subprocess.run(base, check=True, capture_output=True, text=True)
    code = """
import bruno, bruno.errors, importlib.metadata, pathlib
print(importlib.metadata.version('bruno-engine'), pathlib.Path(bruno.__file__).parent)
"""
    result = subprocess.run([str(python), "-I", "-c", code], check=True, capture_output=True, text=True)
    version, where = result.stdout.split()
    assert version == path.name.split("-")[1]
    assert Path(where).is_relative_to(environment)
    assert sorted(p.name for p in Path(where).iterdir() if p.name != "__pycache__") == [
        "__init__.py",
        "engine",
        "errors.py",
        "settings",
    ]
