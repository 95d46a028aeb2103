"""Read a model into memory: the demo, a local folder or a hub id; a data type that gives finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bruno.engine.architectures import Writer
    from bruno.settings.engine import EngineSettings

Emit = Callable[[Any], None]
"""Takes an event of `bruno.engine.events`."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be searched.

    Attributes:
        model: in evaluation mode, no gradients.
        tokenizer: pads on the left, always has a pad token.
        device: where inputs go.
        dtype: the data type that loaded and gave finite logits.
        source: local folder with the original files; export copies from it.
        name: what was asked for (hub id, folder, or "demo").
        family: model_type of the decoder's config, e.g. "llama"; warm starts are keyed by it.
        writers: from `architectures.find_writers`.
        layers: number of decoder blocks L.
        hidden_size: d.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    source: Path
    name: str
    family: str
    writers: list[Writer]
    layers: int
    hidden_size: int


def load(settings: EngineSettings, emit: Emit) -> LoadedModel:
    """Load `settings.model` as `settings.loading` says.

    Raises:
        InputError: no such model, gated, offline, custom code without `trust_remote_code`; says which and what to do.
        UnsupportedModel: the architecture cannot be edited whole.
    """
    raise NotImplementedError
