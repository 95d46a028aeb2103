"""Text from logs, hosts, models and APIs, made fit for a screen. Pure.

Such text is hostile: escape sequences repaint the screen or make the terminal type an answer (an ENQ, a device report), and
bidirectional or zero-width characters make one thing look like another. `safe` is the only maker of `SafeText`, and
widgets for foreign text accept nothing else; they show it with markup off, since `[@click=...]` is left as it is.
"""

from __future__ import annotations

import re
from typing import Final

_KEY: Final = object()
DEFAULT_LIMIT = 20_000
LINE_LIMIT = 200

# DCS, SOS, OSC, PM and APC carry a string up to ST or BEL. One that does not end on its line loses its introducer alone:
# swallowing the rest would let a log line hide what follows it.
_STRINGS = re.compile(r"(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\r\n]*(?:\x07|\x1b\\|\x9c)")
_CSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
_ESC = re.compile(r"\x1b[ -/]*[0-~]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NEWLINES = re.compile(r"\r\n?")
# Cf (format: bidi, zero width, tags), the line and paragraph separators, surrogates, blank letters, supplementary
# variation selectors: drawn as nothing, or as something else than what they are.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
_PILE = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")


class SafeText(str):
    """Text that may be drawn. Made by `safe` and `safe_line` alone; slicing or joining gives a plain `str` again."""

    __slots__ = ()

    def __new__(cls, text: str, key: object = None) -> SafeText:
        if key is not _KEY:
            raise TypeError("SafeText is made by bruno.guard.sanitise.safe() alone")
        return super().__new__(cls, text)

    def __reduce__(self) -> tuple[object, ...]:
        return (safe, (str(self), len(self) + 1))


def safe(text: str, limit: int = DEFAULT_LIMIT) -> SafeText:
    """Remove what acts on a terminal, make visible what hides, cap the length.

    OSC, DCS, CSI and other escape sequences go, with all of C0 and C1 but tab and newline (a lone carriage return becomes
    a newline, so that nothing is overwritten). Bidirectional, zero-width and other invisible characters become
    `<U+202E>`. Longer text keeps its first `limit` characters and says how many were left out.

    Args:
        text: anything; bytes are decoded by the caller (`errors="replace"`).
        limit: most characters of the text that are kept, at least 1.
    """
    if isinstance(text, SafeText) and len(text) <= limit:
        return text
    left_out = len(text) - limit
    if left_out > 0:
        text = text[:limit]
    if not _PLAIN.fullmatch(text):
        text = _cleaned(text)
    if left_out > 0:
        text = f"{text}… ({left_out} more characters)"
    return SafeText(text, _KEY)


def safe_line(text: str, limit: int = LINE_LIMIT) -> SafeText:
    """`safe` for one line of a table or a label: newlines and tabs become blanks, ends are stripped."""
    return safe(" ".join(safe(text, max(limit, 1) * 4).split()), limit)


def _cleaned(text: str) -> str:
    text = _NEWLINES.sub("\n", text)
    for pattern in (_STRINGS, _CSI, _ESC, _CONTROLS):
        text = pattern.sub("", text)
    text = _INVISIBLE.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)
    return _PILE.sub(r"\1", text)
