"""What a study's numbers depend on, part by part, so that a resume onto something else is refused by name.

Reads the model folder's configuration and the edges of its weight files. Settings that change only speed, length or
what happens after the search (batch sizes, device, number of trials, the KL ceiling, export) are left out on purpose.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path

from bruno import __version__
from bruno.engine.data.behaviours import Behaviour
from bruno.engine.data.prompts import PromptSets
from bruno.settings.engine import EngineSettings

_EDGE = 1 << 16  # bytes read at each end of a weight file: enough to tell models apart without reading 64 GB
_SETTINGS = {
    "data": ("system_prompt", "max_prompt_tokens"),
    "directions": None,
    "protection": None,
    "edit": None,
    "loading": ("quantization",),
    "scoring": ("max_new_tokens", "refusal_detection_mode", "kl_divergence_tokens"),
}
"""Groups, and which of their settings change a trial's scores (None: all)."""


def fingerprint(settings: EngineSettings, behaviour: Behaviour, prompts: PromptSets, source: Path) -> dict[str, str]:
    """The parts of a study's identity, each as a short text that can stand in an error message.

    Args:
        source: the model's folder.
    """
    parts = {
        "engine version": __version__,
        "model": f"{settings.model} ({model_digest(source)})",
        "behaviour": f"{behaviour.name} ({_digest(behaviour.recognition)})",
        "seed": str(settings.seed),
    }
    for field in fields(prompts):
        if "held_out" not in field.name:
            texts = getattr(prompts, field.name)
            parts[f"{field.name} prompts"] = f"{len(texts)} prompts ({_digest(json.dumps(texts))})"
    for group, names in _SETTINGS.items():
        for name, value in getattr(settings, group).model_dump(mode="json").items():
            if names is None or name in names:
                parts[f"{group}.{name}"] = json.dumps(value)
    return parts


def model_digest(source: Path) -> str:
    """Short digest of a model folder: its configuration, and each weight file's name, size and edges."""
    digest = hashlib.sha256((source / "config.json").read_bytes())
    for path in sorted(source.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(0, size - _EDGE))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:12]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
