"""Secrets: where they come from, and how they are kept out of everything stored, shown or sent to a model.

A secret comes from the environment, from `secrets.toml` beside config.toml (mode 0600, or it is refused), or from the system
keyring when the `keyring` package is installed. It is never a setting, so no dump of the settings can hold one.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Literal
from urllib.parse import unquote

from bruno.errors import InputError
from bruno.settings.paths import Paths, paths

SecretName = Literal["vast_api_key", "hf_token", "anthropic_api_key"]
REDACTED = "[redacted]"
_ENVIRONMENT: dict[SecretName, str] = {
    "vast_api_key": "VAST_API_KEY",
    "hf_token": "HF_TOKEN",
    "anthropic_api_key": "ANTHROPIC_API_KEY",
}
# Shapes of keys seen in the field; anything found in a text by shape alone is redacted too.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{16,}"
    r"|(?<=api_key=)[A-Za-z0-9._~+/=-]{8,}"
    # user:password of a URL; a port with a path behind it is none
    r"|(?<=://)[^\s:/@'\"]*:(?!\d{1,5}(?:/|\s|$))(?!\*\*\*@)[^\s'\"]+(?=@)"
    r"|(?<=[?&]password=)[^\s&'\"]+",
    re.DOTALL,
)
_known: set[str] = set()


def secret(name: SecretName, *, where: Paths | None = None) -> str | None:
    """The secret, or None when it is set nowhere. What is found is redacted from every text from then on.

    Raises:
        InputError: secrets.toml can be read by others, or is broken.
    """
    value = os.environ.get(_ENVIRONMENT[name]) or _from_file(name, where or paths()) or _from_keyring(name)
    if value:
        value = value.strip()
        hide(value)
    return value or None


def hide(value: str) -> None:
    """Redact this exact text everywhere from now on (shorter than eight characters is no secret worth the confusion)."""
    if len(value) >= 8:
        _known.add(value)


def hide_url(url: str) -> None:
    """Redact a URL that holds a password, what stands before its path, and the password, wherever they stand from now on.

    A password that the rest of the URL spells too (`postgres`) is not redacted by itself: it would take the address with it.
    """
    place = url.partition("://")[2].split("/", 1)[0]
    login, at, _host = place.rpartition("@")
    password = login.partition(":")[2]
    if not at or not password:
        return
    rest = url.replace(f":{password}@", "@", 1)
    for text in (url, place, *(word for word in (password, unquote(password)) if word not in rest)):
        hide(text)


def redact(text: str, extra: Iterable[str] = ()) -> str:
    """`text` with every known secret, and everything shaped like one, replaced by `[redacted]`."""
    for value in sorted({*_known, *extra}, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return _SHAPES.sub(REDACTED, text)


def _from_file(name: SecretName, where: Paths) -> str | None:
    path = where.config.parent / "secrets.toml"
    if not path.is_file():
        return None
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"{path} can be read by other users", fix=f"chmod 600 {path}")
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8-sig")).get(name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return str(value) if value else None


@cache
def _keyring_available() -> bool:
    return find_spec("keyring") is not None


def _from_keyring(name: SecretName) -> str | None:
    if not _keyring_available():
        return None
    import keyring
    from keyring.errors import KeyringError

    try:
        return keyring.get_password("bruno", name)
    except KeyringError:
        return None  # no keyring service on this machine: the same as none set
