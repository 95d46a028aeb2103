"""Paths that need care: trees, devices, system files, secrets (guardrails/places.toml). Pure; the disk is not looked at."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from bruno.guard.shapes import Level
from bruno.guard.words import UNKNOWN, Word


class PlaceFile(BaseModel):
    """guardrails/places.toml: lists of expressions that a whole path must match."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    roots: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """The compiled lists."""

    roots: re.Pattern[str]
    devices: re.Pattern[str]
    system: re.Pattern[str]
    secrets: re.Pattern[str]
    sinks: re.Pattern[str]

    @classmethod
    def of(cls, *files: PlaceFile) -> Places:
        """Compile the lists of all files together. A file of a user cannot add sinks: those loosen."""
        joined = {
            name: [one for file in files for one in getattr(file, name)]
            for name in ("roots", "devices", "system", "secrets")
        }
        joined["sinks"] = list(files[0].sinks)
        return cls(
            **{name: re.compile("|".join(f"(?:{one})" for one in many) or r"(?!)") for name, many in joined.items()}
        )

    def root_at_risk(self, word: Word) -> bool:
        """Whether the argument is such a tree or all that is in it, or may become one when an unknown part is empty."""
        if not word.text.startswith(("/", "~", UNKNOWN)) and word.text[1:2] != ":":
            return False
        paths = {word.text, word.text.replace(UNKNOWN, "")} if word.text != UNKNOWN else set()
        return any(
            path and self.roots.fullmatch(_whole_tree(path))
            for path in paths
            if path.startswith(("/", "~")) or path[1:2] == ":"
        )

    def written(self, path: Word) -> tuple[Level, str]:
        """How much care writing to this path needs, and what it would do."""
        shown = path.shown()
        if not path.known:
            if self.devices.fullmatch(path.text.replace(UNKNOWN, "sda")):
                return Level.refuse, f"writes to {shown}, a raw device"
            return Level.ask, f"writes to {shown}, which is not known before it runs"
        plain = _plain(path.text)
        if self.sinks.fullmatch(plain):
            return Level.allow, ""
        if self.devices.fullmatch(plain):
            return Level.refuse, f"writes to {shown}, a raw device: what is on it is destroyed for good"
        if self.roots.fullmatch(plain) or self.system.fullmatch(plain):
            return (
                Level.typed_yes,
                f"writes to {shown}, which the machine or its data depends on; what was there cannot be brought back",
            )
        return Level.ask, f"writes to {shown}; what was in it is lost"

    def secret(self, word: Word) -> bool:
        """Whether reading the path would show a secret."""
        text = word.text.replace(UNKNOWN, "x")
        return bool(self.secrets.fullmatch(_plain(text)) or (word.glob and re.search(r"\.ssh/|shadow|\.env", text)))


def _plain(path: str) -> str:
    """`.` and `..` resolved, doubled slashes gone; the disk's links are not followed."""
    if not path:
        return path
    plain = posixpath.normpath(path)
    return "/" + plain.lstrip("/") if plain.startswith("/") else plain


def _whole_tree(path: str) -> str:
    """The tree that `path` empties: `/etc/*`, `/etc/.` and `/etc/{*,.*}` are `/etc`."""
    path = re.sub(r"(?:/+(?:\.?\*+|\.\[!?[^\]]*\]\*?|\*\.\*|\.|\{[^}]*\}|\?\*))+/*$", "/", path)
    return _plain(path) or "/"
