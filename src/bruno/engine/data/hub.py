"""Prompts from data sets on the hub, by id: the whole split, or row by row over the network.

Reads the network and the hub's local cache, through `datasets` alone. Every failure says which data set it was and what
to do about it.

**Streaming takes the rows that were asked for.** A split of hundreds of gigabytes is opened where it lies and read up to
the last row of the slice; no file is downloaded whole. What goes over the network is what stands before that row, in
whole pieces: a row group of parquet, a few megabytes of lines. (JSON that is one array instead of lines cannot be read
in part by any reader.)
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import DatasetInfo

from bruno.engine.data.local import reason
from bruno.engine.data.source import Source
from bruno.errors import InputError

LARGE = 20 * 10**9
"""Bytes of data files above which a data set is only streamed."""

SECONDS = 15
"""How long the hub may take to say what a data set is."""

HUB_ERRORS = (OSError, ValueError, RuntimeError, hub_errors.HTTPError)  # type: ignore[attr-defined]
"""What the hub's client raises when it gets no answer, or one that says no."""

_UNREACHABLE = (hub_errors.OfflineModeIsEnabled, hub_errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
_OWN_FILES = "or give a local file in its place"


def read_hub(source: Source) -> Any:
    """The rows that `source` names, as a `datasets.Dataset`.

    Raises:
        InputError: unknown, gated, not reachable, no such configuration, split or rows.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    if not source.stream:
        _refuse_what_is_too_large(source)
    try:
        if source.stream:
            return datasets.Dataset.from_list(_streamed(source))
        loaded = datasets.load_dataset(source.source, source.config or None, split=source.split_name)
        return loaded.select(source.span(len(loaded)))  # type: ignore[union-attr]
    except InputError:
        raise
    except DatasetNotFoundError as error:
        raise (gated(source) if "gated" in str(error) else missing(source)) from error
    except (*HUB_ERRORS, DatasetsError) as error:
        raise unreadable(source, error) from error


def check_size(source: Source, info: DatasetInfo) -> None:
    """Refuse to download far more than is read. `datasets` fetches every split of a configuration to give one slice.

    Raises:
        InputError: the data set's files are larger than `LARGE` in all, and it is not streamed.
    """
    size = sum(file.size or 0 for file in info.siblings or ())
    if size > LARGE and not source.stream:
        raise InputError(
            f"The data set {source.source} holds {size / 1e9:.0f} GB, which would be downloaded",
            fix=f"Stream the rows that are needed, as in {source.source}::split=train[:400],stream=true",
        )


def _refuse_what_is_too_large(source: Source) -> None:
    try:
        info = HfApi().dataset_info(source.source, timeout=SECONDS, files_metadata=True)
    except HUB_ERRORS:
        return  # `datasets` says what is wrong, or finds the data set in its cache
    check_size(source, info)


def _streamed(source: Source) -> list[dict[str, Any]]:
    """Exactly the rows of the slice, and not one row further."""
    import datasets
    import pyarrow
    import pyarrow.dataset

    builder = datasets.load_dataset_builder(source.source, source.config or None)
    if hasattr(builder.config, "fragment_scan_options"):
        # Parquet is otherwise fetched tens of megabytes ahead of the row group that is read.
        lazily = pyarrow.CacheOptions(lazy=True, prefetch_limit=0, range_size_limit=1 << 20)
        builder.config.fragment_scan_options = pyarrow.dataset.ParquetFragmentScanOptions(cache_options=lazily)  # type: ignore[attr-defined]
    loaded: Any = builder.as_streaming_dataset(split=source.split_name)
    first, last = source.bounds
    wanted = (last or 0) - first
    rows = list(islice(loaded.skip(first), wanted))
    if len(rows) < wanted:
        length = first + len(rows) if rows else "fewer than that many"
        raise InputError(
            f"{source.label} has {length} rows where rows {first} to {last} were asked for",
            fix="Ask for rows that it has",
        )
    return rows


class HubUnreachable(InputError):
    """Nobody can say whether a data set can be read: the hub does not answer."""


def unreadable(source: Source, error: BaseException) -> InputError:
    """What went wrong with a hub data set, and what to do, in one line."""
    causes = _chain(error)
    if any(isinstance(cause, hub_errors.GatedRepoError) for cause in causes):
        return gated(source)
    if any(isinstance(cause, hub_errors.RepositoryNotFoundError) for cause in causes):
        return missing(source)
    if any(map(_is_silence, causes)):
        return HubUnreachable(
            f"The data set {source.source} is not on this machine and the hub cannot be reached ({reason(error)})",
            fix=f"Check the network and HF_HUB_OFFLINE, {_OWN_FILES}",
        )
    return InputError(
        f"The data set {source.source} ({source.split}) cannot be read ({reason(error)})",
        fix=f"Check its name, configuration and split, {_OWN_FILES}",
    )


def _is_silence(error: BaseException) -> bool:
    """Whether this says nothing about the data set: no connection, no answer, or a server that fails."""
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    return isinstance(error, (*_UNREACHABLE, hub_errors.HTTPError))  # type: ignore[attr-defined]


def gated(source: Source) -> InputError:
    """The error for a data set whose conditions were not accepted."""
    return InputError(
        f"The data set {source.source} is gated and this account has no access to it",
        fix=f"Accept its conditions on its page and set HF_TOKEN, {_OWN_FILES}",
    )


def missing(source: Source) -> InputError:
    """The error for a data set that the hub does not show."""
    return InputError(
        f"There is no data set {source.source} on the hub, or it is private",
        fix=f"Check its name, set HF_TOKEN, {_OWN_FILES}",
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and everything that it was raised from."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found
