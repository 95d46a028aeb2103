"""Words of a shell command as far as they can be known before it runs. Pure.

A `Word` holds the text that bash would pass on, with `UNKNOWN` in place of what only the run decides (a variable, the output of
a command). Everything here is careful in one direction: what is not surely known is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN = "\ufffc"
"""Stands for text that only the run decides. The parser refuses to read a command that contains it."""

_ESCAPES = {"a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ANSI = re.compile(
    r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|0?([0-7]{1,3})|c(.)|(.))", re.DOTALL
)
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_RANGE = re.compile(r"\{(-?\w+)\.\.(-?\w+)(?:\.\.-?\d+)?\}")


STEERING = re.compile(
    r"PATH|IFS|ENV|HOME|SHELL|CDPATH|PROMPT_COMMAND|PS[0-4]|SHELLOPTS|BASHOPTS|GLOBIGNORE|EXECIGNORE|BASH_\w+(?:\[.*\])?|LD_\w+|DYLD_\w+|"
    r"GIT_\w+|PYTHON\w+|PERL5?\w*|RUBY\w+|NODE_\w+|LUA_\w+|JAVA_TOOL_OPTIONS|PG\w+|MYSQL_\w+|LESS\w*|(?:\w+_)?(?:PAGER|EDITOR|ASKPASS)|"
    r"VISUAL|BROWSER|TAR_OPTIONS|RSYNC_RSH|CVS_RSH|RIPGREP_CONFIG_PATH|DOCKER_\w+|KUBECONFIG|XDG_CONFIG_\w+|RANDFILE|OPENSSL_\w+"
)
"""Variables by which programs find other programs, settings or code: whoever sets one may change what `ls` does."""


def names(text: str) -> frozenset[str]:
    """The words of `text` as a set: how the long lists of the guard's modules are written."""
    return frozenset(text.split())


@dataclass(slots=True)
class Word:
    """One argument.

    Args:
        text: what bash passes on; `UNKNOWN` where that is not known.
        splits: an unquoted unknown part may fall into several words, any of which may be a flag.
        glob: unquoted wildcards may turn it into any number of file names.
        quoted: some of it was quoted, so it is no keyword, alias or wildcard.
    """

    text: str
    splits: bool = False
    glob: bool = False
    quoted: bool = False

    @property
    def known(self) -> bool:
        return UNKNOWN not in self.text

    @property
    def may_be_flag(self) -> bool:
        """Whether it could begin with a dash once it is known."""
        return self.splits or self.text[:1] in ("-", UNKNOWN) or (self.glob and self.text[:1] in "*?[")

    def shown(self) -> str:
        """For people: the unknown parts as an ellipsis."""
        return self.text.replace(UNKNOWN, "…")


def decoded_ansi(text: str) -> str:
    """What `$'...'` means: backslash escapes of bash, bytes above 127 as Latin-1."""

    def one(match: re.Match[str]) -> str:
        for group in (1, 2, 3):
            if match[group]:
                number = int(match[group], 16)
                return chr(number) if number < 0x110000 else UNKNOWN
        if match[4]:
            return chr(int(match[4], 8) & 255)
        if match[5]:
            return chr(ord(match[5]) & 31)
        return _ESCAPES.get(match[6], match[6] if match[6] in "\\'\"?" else "\\" + match[6])

    # A NUL ends the string in bash.
    return _ANSI.sub(one, text).split("\0", maxsplit=1)[0]


def unescaped(text: str) -> tuple[str, bool]:
    """An unquoted word without its backslashes, and whether it holds wildcards that are not escaped."""
    if "\\" not in text:
        return text, bool(_GLOB.search(text))
    bare = re.sub(r"\\.", "", text, flags=re.DOTALL)
    return re.sub(r"\\\n", "", text) if text == "\\\n" else re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL), bool(
        _GLOB.search(bare)
    )


_GLOB = re.compile(r"[*?\[]")


def has_braces(text: str) -> bool:
    """Whether bash would expand braces in this unquoted text."""
    return "{" in text and bool(_BRACES.search(text) or _RANGE.search(text) or (text.count("{") > 1 and "," in text))


def braces(text: str, limit: int = 64) -> list[str] | None:
    """The words that one level of braces stands for; None when they are nested, ranged or too many."""
    if _RANGE.search(text):
        return None
    done, waiting = [], [text]
    while waiting:
        if len(done) + len(waiting) > limit:
            return None
        now = waiting.pop(0)
        found = _BRACES.search(now)
        if not found:
            if "{" in now and "," in now:
                return None
            done.append(now)
            continue
        waiting = [now[: found.start()] + part + now[found.end() :] for part in found[1].split(",")] + waiting
    return done
