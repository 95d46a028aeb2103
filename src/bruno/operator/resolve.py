"""Names into things: a model, a GPU, an instance. Unknown names are errors that suggest the nearest; nothing is guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rapidfuzz import process

from bruno.errors import InputError
from bruno.fleet.models import Instance, Listing
from bruno.records import InstanceRecord
from bruno.settings.console import GpuAlias, ModelAlias, Settings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,95}")


@dataclass(frozen=True)
class Model:
    """A model that a run can be planned for."""

    alias: str
    """Short name for labels and folders."""
    about: ModelAlias


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU as the person and the provider call it."""

    name: str
    about: GpuAlias


def find_model(name: str, settings: Settings) -> Model:
    """The model behind a short name or a hub id.

    Raises:
        InputError: unknown name (nearest ones suggested), or a hub id whose size cannot be learned.
    """
    wanted = name.strip()
    for alias, about in settings.models.items():
        if wanted.casefold() in (alias.casefold(), about.id.casefold()):
            return Model(alias, about)
    if _HUB_ID.fullmatch(wanted):
        return Model(slug(wanted.rpartition("/")[2]), _ask_hub(wanted))
    raise InputError(f"unknown model {wanted!r}", fix=_nearest(wanted, list(settings.models), "models"))


def find_gpu(name: str, settings: Settings) -> Gpu:
    """The GPU behind a short name or one of the provider's names. InputError with the nearest names otherwise."""
    wanted = name.strip().casefold().replace("_", " ")
    for short, about in settings.gpus.items():
        said = {short.casefold(), *(provider.casefold() for provider in about.names)}
        if wanted in said or wanted.replace(" ", "") in {each.replace(" ", "") for each in said}:
            return Gpu(short, about)
    raise InputError(f"unknown GPU {name.strip()!r}", fix=_nearest(name.strip(), list(settings.gpus), "GPUs"))


def slug(text: str) -> str:
    """Lower case letters, figures and single dashes, at most 40 characters: safe in labels, folders and URLs."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "model"


def candidates(target: str | None, listing: Listing, ours: list[InstanceRecord]) -> list[Instance]:
    """The instances that `target` may mean. Several: ask. None at all: say so. Never the first of a list.

    Args:
        target: id, label or run name; None is "it": one of bruno's own that is not surely stopped already.
        listing: the provider's list; the caller has checked that it is known.
        ours: what the records say bruno rented.
    """
    if target is None:
        labels = {record.instance_id: record.label for record in ours}
        return [each for each in listing.instances if each.id in labels and each.label == labels[each.id]]
    wanted = target.strip().removeprefix("#")
    by_id = [each for each in listing.instances if str(each.id) == wanted]
    if by_id:
        return by_id
    by_run = {record.instance_id for record in ours if record.run_id == wanted}
    return [each for each in listing.instances if each.label == wanted or each.id in by_run]


def _nearest(name: str, names: list[str], what: str) -> str:
    close = [match for match, score, _ in process.extract(name.casefold(), names, limit=3) if score >= 55]
    if close:
        return f"Did you mean {' or '.join(close)}? All: {', '.join(names)}"
    return f"Known {what}: {', '.join(names)}"


def _ask_hub(model_id: str) -> ModelAlias:
    """Size of the weight files from the hub's own listing: nothing is downloaded."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    from bruno.settings.secrets import secret

    unknown = f"the size of {model_id} is unknown"
    own = f'Or give it a name in config.toml: [models.NAME] with id = "{model_id}" and weights_gb'
    try:
        info = HfApi(token=secret("hf_token") or False).model_info(model_id, files_metadata=True, timeout=10)
    except GatedRepoError as error:
        raise InputError(f"{model_id} is gated", fix="Accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model {model_id}", fix="Check the name; private models need HF_TOKEN"
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise InputError(f"{unknown}: the hub cannot be reached", fix=f"Check the network. {own}") from error
    sizes = [file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(".safetensors")]
    if not sum(sizes):
        raise InputError(f"{unknown}: the hub lists no .safetensors files", fix=own)
    return ModelAlias(id=model_id, weights_gb=sum(sizes) / 1e9, gated=bool(info.gated))
