"""The `vastai` package and what surrounds it: importing it safely, and the key, address and environment it is given.

Touches the process's environment (`VAST_LOG_LEVEL`, `no_proxy` for loopback addresses) and reads the netrc file.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import sys
from threading import Lock
from types import ModuleType
from urllib.parse import urlsplit

from bruno.errors import InputError
from bruno.fleet.errors import WrongKey
from bruno.settings.secrets import hide

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_import_lock = Lock()


def preload() -> ModuleType:
    """Import `vastai` (0.55 s). Faces call this before `App.run()`.

    The package reads `sys.stdout.encoding` while it is imported, which a running Textual app's stdout lacks; should it be
    imported that late all the same, it gets a stdout of its own meanwhile. Only the package's `cli` part makes folders
    under the user's XDG directories, and it is never imported here.
    """
    with _import_lock:
        if (known := sys.modules.get("vastai")) is not None:
            return known
        os.environ.setdefault("VAST_LOG_LEVEL", "error")
        stdout = sys.stdout if hasattr(sys.stdout, "encoding") else io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with contextlib.redirect_stdout(stdout):
            package = importlib.import_module("vastai")
        # It logs to stderr by a handler of its own, which would paint over a console.
        logger = logging.getLogger("vastai")
        logger.handlers[:] = [logging.NullHandler()]
        return package


def checked_key(api_key: str) -> str:
    """The key without blanks around it, hidden from every text from now on. Raises WrongKey for what cannot be one."""
    key = api_key.strip()
    if not key:
        raise WrongKey("no Vast.ai API key is set", fix="Set VAST_API_KEY, or work in the sandbox with --sandbox")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise WrongKey("the API key contains characters that no key has", fix="Check VAST_API_KEY")
    hide(key)
    return key


def check_address(url: str) -> None:
    """Raise InputError unless requests to `url` will go there, with our key."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(f"{url} is not a usable provider address", fix="Set fleet.url to an http or https address")
    from requests.utils import get_netrc_auth

    # requests lets a netrc entry replace the Bearer key by a password, without a word.
    if get_netrc_auth(url) is not None:
        fix = "Remove it, or set NETRC to an empty file for bruno"
        raise InputError(
            f"the netrc file has an entry for {parts.hostname} that would be sent instead of the API key", fix=fix
        )
    if parts.hostname in _LOOPBACK:
        _bypass_proxies(parts.hostname)


def _bypass_proxies(host: str) -> None:
    """requests sends even loopback addresses to HTTP_PROXY unless told otherwise."""
    current = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if host not in current.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (current, host)))
