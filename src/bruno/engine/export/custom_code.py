"""Make a saved model stand on its own: code that its configuration names in another repository is brought in.

`auto_map` may say `other/repo--module.Class`; the model then loads only while that repository exists and stays the
same. Here the module, and what it imports beside it, is copied from the local hub cache, and the reference made local.
Two slips that keep tokenizers from loading are repaired on the way. Files without any of this keep their bytes.
Touches only the folder that is being written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bruno.engine.events import Emit, Fallback, Notice

_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_REFERENCE = re.compile(r"(?:(?P<repo>[\w.-]+(?:/[\w.-]+)?)--)?(?P<module>\w+)\.(?P<class>\w+)")


class _Stays(Exception):
    """Why a reference cannot be made local. Never leaves this module."""


def localise_code(source: Path, partial: Path, emit: Emit) -> None:
    """Rewrite the configuration files in `partial`, a copy of the model in `source`, where they need it.

    A reference whose code is not on this machine stays as it is, and a `Fallback` says so: the model then loads as the
    source does, over the network.
    """
    for name in _FILES:
        path = partial / name
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError:
            emit(Notice(text=f"{source / name} is not JSON and was copied as it is", level="warning"))
            continue
        if not isinstance(before, dict):
            continue
        after = dict(before)
        if "auto_map" in before:
            after["auto_map"] = _local_map(before["auto_map"], partial, emit)
        if name == "tokenizer_config.json":
            _loadable_tokens(after, emit)
        if after != before:
            path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _local_map(auto_map: Any, partial: Path, emit: Emit) -> Any:
    """`auto_map` with local references; `AutoTokenizer` as [slow, fast], which is what transformers indexes."""

    def local(reference: str) -> str:
        try:
            return _local(reference, partial)
        except _Stays as reason:
            emit(
                Fallback(
                    method=f"bringing in the code of {reference}",
                    reason=str(reason),
                    instead="the reference to the other repository, which loading will follow",
                )
            )
            return reference

    if not isinstance(auto_map, dict):
        return _each(auto_map, local)  # older tokenizers: the [slow, fast] pair itself
    mapped = {name: _each(value, local) for name, value in auto_map.items()}
    tokenizer = mapped.get("AutoTokenizer")
    if isinstance(tokenizer, str):
        mapped["AutoTokenizer"] = [None, tokenizer] if tokenizer.endswith("Fast") else [tokenizer, None]
    return mapped


def _each(value: Any, local: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [local(item) if isinstance(item, str) else item for item in value]
    return local(value) if isinstance(value, str) else value


def _local(reference: str, partial: Path) -> str:
    """The reference without its repository, whose module now lies in `partial`.

    Raises:
        _Stays: no such form, not on this machine, or another file of that name is there.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise _Stays("it is no reference of the form repository--module.Class")
    if match["repo"] is None:
        return reference
    main = _cached(match["repo"], f"{match['module']}.py")
    if main is None:
        raise _Stays(f"{match['module']}.py of {match['repo']} is not on this machine")
    from transformers.dynamic_module_utils import get_relative_import_files

    try:
        needed = {f"{match['module']}.py": main}
        for beside in (Path(file) for file in get_relative_import_files(main)):
            relative = beside.relative_to(main.parent).as_posix()
            found = beside if beside.is_file() else _cached(match["repo"], relative)
            if found is None:
                raise _Stays(f"{relative} of {match['repo']}, which it imports, is not on this machine")
            needed[relative] = found
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise _Stays(f"{match['module']}.py of {match['repo']} cannot be read ({error})") from error
    for relative, file in needed.items():
        there = partial / relative
        if there.exists() and there.read_bytes() != file.read_bytes():
            raise _Stays(f"the model has another file called {relative}")
    for relative, file in needed.items():
        (partial / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, partial / relative)
    return f"{match['module']}.{match['class']}"


def _cached(repo: str, file: str) -> Path | None:
    """A file of a hub repository in the local cache (where loading put it), or of a local folder; None without."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _loadable_tokens(config: dict[str, Any], emit: Emit) -> None:
    """`extra_special_tokens` as a list (transformers 5 writes it, 4 fails on it) -> `additional_special_tokens`, which
    both read."""
    extra = config.get("extra_special_tokens")
    if not isinstance(extra, list):
        return
    del config["extra_special_tokens"]
    known = config.get("additional_special_tokens") or []
    joined = [*known, *(token for token in extra if token not in known)]
    if joined:
        config["additional_special_tokens"] = joined
    emit(
        Notice(text="tokenizer_config.json listed extra_special_tokens, which older transformers cannot load: repaired")
    )
