"""The engine as a wheel, packed from the installed package's own files, for the rented machine. Reads them; writes one file.

The machine gets what the console runs with, not what an index happens to offer: `bruno/{__init__,errors}.py`, `settings` and
`engine` with their data. The same source gives the same bytes, and the version carries a digest of them, so that pip never takes
one engine for another and a run's records say which one it ran.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any
from zipfile import ZIP_DEFLATED, ZipInfo

from wheel.wheelfile import WheelFile

import bruno
from bruno.errors import BrunoError

DISTRIBUTION = "bruno_engine"
_PARTS = ("__init__.py", "errors.py", "settings", "engine")
_WHEEL = "Wheel-Version: 1.0\nGenerator: bruno\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_FILE_MODE = 0o100644
_NAME = re.compile(r"[A-Za-z0-9._-]+")


_building = Lock()
"""Several instances may be installed at once, and Python 3.11's parser is not safe in several threads at once."""

_EXTRAS = ("gpu", "postgres")


def build(folder: Path) -> Path:
    """Write `bruno_engine-<version>+<digest>-py3-none-any.whl` into `folder` and return its path. No network.

    Raises:
        BrunoError: bruno is not installed as a package (then nobody knows what its engine requires), or lacks its engine.
    """
    with _building:
        return _build(folder)


def _build(folder: Path) -> Path:
    sources = _sources(Path(bruno.__file__).parent)
    headers = _headers(sources)
    digest = hashlib.sha256(headers.encode())
    for name, data in sources.items():
        digest.update(f"\0{name}\0{len(data)}\0".encode() + data)
    version = f"{bruno.__version__}+{digest.hexdigest()[:12]}"
    info = f"{DISTRIBUTION}-{version}.dist-info"
    intro = f"Metadata-Version: 2.1\nName: bruno-engine\nVersion: {version}\nSummary: bruno's engine\n"
    files = {**sources, f"{info}/METADATA": (intro + headers).encode(), f"{info}/WHEEL": _WHEEL.encode()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{DISTRIBUTION}-{version}-py3-none-any.whl"
    # Built aside and renamed: a wheel under this name is always whole.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as aside:
        unfinished = Path(aside, path.name)
        with _TimelessWheel(unfinished, "w", ZIP_DEFLATED) as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
        unfinished.replace(path)
    return path


class _TimelessWheel(WheelFile):
    """A wheel whose entries, RECORD included, bear one fixed date and mode."""

    def writestr(self, zinfo_or_arcname: str | ZipInfo, data: Any, compress_type: int | None = None) -> None:
        name = zinfo_or_arcname if isinstance(zinfo_or_arcname, str) else zinfo_or_arcname.filename
        entry = ZipInfo(name)  # dated 1980-01-01
        entry.external_attr = _FILE_MODE << 16
        entry.create_system = 3  # Unix, whatever packs it
        super().writestr(entry, data, compress_type or self.compression)


def _sources(package: Path) -> dict[str, bytes]:
    """Name in the wheel -> bytes of every file of the parts that travel, in a steady order."""
    files: list[Path] = []
    for part in _PARTS:
        path = package / part
        files += [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = {file.relative_to(package.parent).as_posix(): file for file in files}
    sources = {name: file.read_bytes() for name, file in sorted(names.items()) if _travels(name)}
    if "bruno/engine/__init__.py" not in sources:
        raise BrunoError(f"the engine is missing from {package}", fix="Install bruno again")
    return sources


def _travels(name: str) -> bool:
    parts = name.split("/")
    return "__pycache__" not in parts and not parts[-1].startswith(".") and not name.endswith((".pyc", ".pyo"))


def _headers(sources: dict[str, bytes]) -> str:
    """Requires-Python and Requires-Dist: the `engine` extra, and of the console's own requirements those that are imported.

    Some extras stay extras: only workers that share a database need its driver, only GPUs the kernels for them.
    """
    try:
        ours = metadata.distribution("bruno")
    except metadata.PackageNotFoundError as error:
        raise BrunoError(
            "bruno is not installed as a package, so what its engine requires is unknown", fix="pip install ."
        ) from error
    known = _distributions()
    imported = {_plain(name) for module in _imports(sources) for name in known.get(module, ())}
    chosen: set[str] = set()
    further: set[str] = set()
    for requirement in ours.requires or ():
        text, _, marker = (part.strip() for part in requirement.partition(";"))
        match = _NAME.match(text)
        further.update(
            f'{text}; extra == "{name}"' for name in _EXTRAS if f'extra == "{name}"' in marker.replace("'", '"')
        )
        if 'extra == "engine"' in marker.replace("'", '"') or (not marker and match and _plain(match[0]) in imported):
            chosen.add(text)
    lines = [
        f"Requires-Python: {ours.metadata['Requires-Python']}",
        *(f"Requires-Dist: {text}" for text in sorted(chosen)),
        *(f"Provides-Extra: {name}" for name in _EXTRAS),
        *(f"Requires-Dist: {line}" for line in sorted(further)),
    ]
    return "\n".join(lines) + "\n"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level name -> distributions. Reads every installed package's file list, which takes more than a second."""
    return metadata.packages_distributions()


def _imports(sources: dict[str, bytes]) -> set[str]:
    """Top-level names of everything outside the standard library that the packed files import, early or late."""
    found: set[str] = set()
    for name, data in sources.items():
        if name.endswith(".py"):
            found.update(_imported_by(ast.walk(ast.parse(data, name))))
    return found - set(sys.stdlib_module_names) - {"bruno"}


def _imported_by(nodes: Iterable[ast.AST]) -> Iterable[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _plain(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
