"""The house's own rules that import contracts cannot say: one road out, two places that mint, nothing heavy at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bruno"
ROADS = {
    "vastai": {"fleet/vast.py"},
    "fabric": {"fleet/*"},
    "paramiko": {"fleet/*"},
    "asyncssh": {"sandbox/*"},
    "subprocess": {"sandbox/*", "fleet/local.py", "engine/crew.py"},
    "invoke": {"fleet/*"},
    "pty": {"sandbox/*"},
    "textual": {"tui/*"},
    "torch": {"engine/*"},
    "transformers": {"engine/*"},
    "optuna": {"engine/*"},
    "sqlmodel": {"records/*"},
    "anthropic": {"assistant/claude.py"},
}
"""Package -> the only files that may import it: the choke points of the world."""


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(ROADS))
def test_only_its_own_room_imports(package: str) -> None:
    users = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if package in _imports(path)}
    allowed = ROADS[package]
    strangers = {user for user in users if user not in allowed and f"{user.split('/')[0]}/*" not in allowed}
    assert strangers == set()


def test_no_shell_anywhere() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("os", "system"), ("os", "popen")}, path
                assert not (node.value.id == "os" and node.attr.startswith(("exec", "spawn", "posix_spawn"))), path
                assert not node.attr.startswith("create_subprocess") or "sandbox" in path.parts, path


def test_only_the_two_confirm_files_mint() -> None:
    minting = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "bruno.guard.permit":
                minting |= {path.relative_to(SOURCE).as_posix() for alias in node.names if alias.name == "mint"}
    assert minting == {"tui/confirm.py", "cli/confirm.py"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import bruno", {"pydantic", "torch", "textual"}),
        ("import bruno.cli", {"torch", "textual", "sqlmodel", "vastai", "anthropic", "transformers"}),
        ("import bruno.tui.app", {"torch", "transformers", "sqlmodel", "vastai", "anthropic"}),
        ("import bruno.operator.service, bruno.operator.answers", {"torch", "transformers", "anthropic", "textual"}),
        ("import bruno.engine, bruno.engine.events, bruno.engine.scoring.refusals", {"torch", "transformers"}),
    ],
)
def test_doors_stay_light(code: str, absent: set[str]) -> None:
    script = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert absent & {name.split(".")[0] for name in done.stdout.split()} == set()
