"""What a model's repository or folder says of itself: config.json and the headers of its safetensors files.

Reads the hub through huggingface_hub (ranges of each file's beginning, never a weight) or a local folder. What the hub does
not say stays None: nothing here guesses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bruno.errors import BrunoError, InputError, Unreachable
from bruno.settings.secrets import secret

if TYPE_CHECKING:
    from huggingface_hub.utils import SafetensorsRepoMetadata

SECONDS = 10
"""How long the hub may take for each answer."""


class Tensor(NamedTuple):
    """One entry of a safetensors header."""

    name: str
    dtype: str
    """As safetensors names it: BF16, F32, F8_E4M3, U8 ..."""
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class StoredModel:
    """A model as stored. None is unknown.

    Attributes:
        name: hub id or folder.
        config: config.json.
        tensors: every tensor of the model's safetensors files.
        problem: why `tensors` is None.
    """

    name: str
    config: dict[str, Any] | None = None
    tensors: tuple[Tensor, ...] | None = None
    problem: str = ""


DEMO = StoredModel(
    name="demo",
    config={
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    problem="the demo's files are made on the machine that runs it",
)
"""The demo model (SmolLM2-135M-Instruct): its shape is known without a network."""


def read_stored(name: str, revision: str = "") -> StoredModel:
    """The model's own metadata.

    Args:
        name: a hub id, a local folder, or `demo`.
        revision: branch, tag or commit on the hub ("" = its default branch).

    Raises:
        InputError: no such model or folder, gated without a token that may read it, or broken files.
        Unreachable: the hub did not answer; nothing is known then.
    """
    if name == "demo":
        return DEMO
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(name, folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"there is no model folder {name}", fix="Give an existing folder, or a hub id (owner/name)")
    with _hub_errors(name, revision), _quiet_client():
        return _from_hub(name, revision or None)


def _from_folder(name: str, folder: Path) -> StoredModel:
    from huggingface_hub import get_local_safetensors_metadata

    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no model: it has no config.json", fix="Name the folder that has one")
    try:
        return _stored(name, _config(path), lambda: get_local_safetensors_metadata(folder))
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else "a file"
        raise InputError(f"{folder} lacks {missing}, which its index names", fix="Download the model again") from error


def _from_hub(name: str, revision: str | None) -> StoredModel:
    from huggingface_hub import HfApi, hf_hub_download

    token = secret("hf_token") or False
    api = HfApi(token=token)
    # First a call that is made once: downloads are tried again for half a minute where there is no hub.
    files = {file.rfilename for file in api.model_info(name, revision=revision, timeout=SECONDS).siblings or ()}
    config: dict[str, Any] | None = None
    if "config.json" in files:
        config = _config(
            Path(hf_hub_download(name, "config.json", revision=revision, token=token, etag_timeout=SECONDS))
        )
    return _stored(name, config, lambda: api.get_safetensors_metadata(name, revision=revision, timeout=SECONDS))


def _stored(name: str, config: dict[str, Any] | None, read: Callable[[], SafetensorsRepoMetadata]) -> StoredModel:
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        files = read().files_metadata.values()
        tensors = tuple(
            Tensor(key, entry.dtype, tuple(entry.shape), entry.data_offsets[1] - entry.data_offsets[0])
            for file in files
            for key, entry in file.tensors.items()
        )
    except NotASafetensorsRepoError:
        return StoredModel(name, config, problem="it has no model.safetensors and no index of such files")
    except (SafetensorsParsingError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"the safetensors headers of {name} are broken", fix="Name another revision") from error
    if any(size < 0 for tensor in tensors for size in (*tensor.shape, tensor.bytes)):
        raise InputError(f"the safetensors headers of {name} are broken", fix="Name another revision")
    return StoredModel(name, config, tensors)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"the config.json of {path.parent.name} is no JSON", fix="Download it again") from error
    if not isinstance(config, dict):
        raise InputError(f"the config.json of {path.parent.name} is no table", fix="Download it again")
    return config


@contextmanager
def _hub_errors(name: str, revision: str) -> Iterator[None]:
    """The hub client's many exceptions as ours, one clear line each."""
    from huggingface_hub import errors

    try:
        yield
    except BrunoError:
        raise
    except errors.GatedRepoError as error:
        fix = "Accept its terms on its page, and set HF_TOKEN to a token that may read it"
        raise InputError(f"{name} is gated on the hub", fix=fix) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name} has no revision {revision}", fix="Leave it empty for the default") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the hub has no model {name}", fix="Check the name; private ones need HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise InputError(f"{name!r} is no name of a model", fix="Write owner/name, or a folder") from error
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        fix = "Connect, or give a local folder"
        raise Unreachable(f"the hub cannot be reached, so nothing is known of {name}", fix=fix) from error


@contextmanager
def _quiet_client() -> Iterator[None]:
    """The client draws bars and writes warnings on stderr, which is the console's screen."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()
