"""Programs that run the command in their arguments: sudo, env, xargs, sh -c, ssh, find -exec and their like. Pure.

`unwrap` gives what runs inside, as words or as text that a shell will read again. Where it cannot tell where the inner command
begins, it offers every place it could, marked as not sure: such readings may raise a verdict and never lower it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from bruno.guard import wrapper_scripts as scripts
from bruno.guard.script import Simple
from bruno.guard.shapes import Program, Wrapper
from bruno.guard.words import UNKNOWN, Word
from bruno.guard.wrapper_parts import Inner, Unwrapped, anywhere, own_part

Reader = Callable[[Wrapper, Program, Simple, list[Word]], Unwrapped | None]


def unwrap(program: Program, simple: Simple) -> Unwrapped | None:
    """What runs inside `simple`, or None when it is no wrapper as it is used here."""
    words = simple.words[1:]
    for wrapper in program.wrapper:
        reader = _READERS[wrapper.kind]
        rest = words
        if wrapper.sub:
            at = _after_sub(wrapper, program, words)
            if at is None:
                continue
            rest = words[at:]
        found = reader(wrapper, program, simple, rest)
        if found is not None:
            if wrapper.own != "allow" and found.own == "allow":
                found.own = wrapper.own
            found.reason = found.reason or wrapper.reason
            return found
    return None


def _after_sub(wrapper: Wrapper, program: Program, words: list[Word]) -> int | None:
    """Index after the subcommand, or None when it is another one."""
    at = 0
    while at < len(words):
        text = words[at].text
        if text in program.global_values:
            at += 2
        elif text.startswith("-"):
            at += 1
        else:
            break
    for sub in sorted(wrapper.sub, key=len, reverse=True):
        parts = sub.split()
        if [word.text for word in words[at : at + len(parts)]] == parts:
            return at + len(parts)
    return None


def _prefix(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    at = own_part(wrapper, words)
    if at is None:
        return anywhere(words)
    inner = words[at + wrapper.skip :]
    if wrapper.skip and inner and inner[0].text.startswith("-") and inner[0].text != "--":
        at = own_part(wrapper, inner)  # kubectl exec pod -c container -- command
        if at is None:
            return anywhere(inner)
        inner = inner[at:]
    if inner and inner[0].text == "--":
        inner = inner[1:]
    while inner and re.match(r"[A-Za-z_]\w*=", inner[0].text):
        simple.assigns.append((inner[0].text.partition("=")[0], Word(inner[0].text.partition("=")[2])))
        inner = inner[1:]
    found = Unwrapped([Inner(words=inner, where=simple.words[0].text)]) if inner else None
    if found and wrapper.loose:
        found.inners += anywhere(inner[1:8]).inners
    return found


def _env(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    for at, word in enumerate(words):
        split = re.match(r"(?:-[a-z0]*S|--split-string)(?:=|$)?(.*)", word.text, re.DOTALL)
        if split and word.text.startswith("-"):
            text = split[1] or (words[at + 1].text if at + 1 < len(words) else "")
            rest = words[at + (1 if split[1] else 2) :]
            return Unwrapped([Inner(script=_joined([Word(text), *rest]), where="env")])
    at = own_part(wrapper, words)
    if at is None:
        return anywhere(words)
    while at < len(words) and "=" in words[at].text and not words[at].text.startswith("="):
        name, _, value = words[at].text.partition("=")
        simple.assigns.append((name, Word(value)))
        at += 1
    return _prefix(Wrapper(), program, simple, words[at:]) if at < len(words) else None


def _xargs(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    at = own_part(wrapper, words)
    if at is None:
        return anywhere([*words, Word(UNKNOWN, splits=True)])
    inner = words[at:] or [Word("echo")]
    placeholder = _placeholder(words[:at])
    plain = simple.stdin is not None and not re.search(
        r"[\"'\\\\\ufffc]", simple.stdin
    )  # xargs reads quotes in its own way
    said = simple.stdin.split() if plain and simple.stdin is not None else None
    added = [Word(text) for text in said] if said is not None else [Word(UNKNOWN, splits=True)]
    if placeholder:
        one = added[0].text if len(added) == 1 else UNKNOWN
        inner = [Word(word.text.replace(placeholder, one), word.splits, word.glob, word.quoted) for word in inner]
    else:
        inner = [*inner, *added]
    return Unwrapped([Inner(words=inner, where="xargs")])


def _placeholder(words: list[Word]) -> str:
    for at, word in enumerate(words):
        if word.text in ("-I", "--replace", "-i"):
            return words[at + 1].text if word.text == "-I" and at + 1 < len(words) else "{}"
        if word.text.startswith("-I"):
            return word.text[2:]
    return ""


def _find(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del wrapper, program, simple
    inners, at = [], 0
    starts = [word.text for word in words[:1] if not word.text.startswith("-")] or ["."]
    while at < len(words):
        if words[at].text in ("-exec", "-execdir", "-ok", "-okdir", "-x", "--exec", "-X", "--exec-batch"):
            end = next((i for i in range(at + 1, len(words)) if words[i].text in (";", "+")), len(words))
            found = [
                Word(re.sub(r"\{[/.]*\}", starts[0] + "/" + UNKNOWN, word.text), word.splits)
                for word in words[at + 1 : end]
            ]
            inners.append(Inner(words=found, where="for each file found"))
            at = end
        at += 1
    return Unwrapped(inners) if inners else None


def _maybe(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """set -- words, alias x='...', hash -p: words that a later command may run. They can only raise the verdict."""
    del wrapper, program, simple
    texts = [word for word in words if not word.text.startswith("-")]
    inners = [Inner(words=texts, sure=False)] if texts else []
    for word in texts:
        whole, _, value = word.text.partition("=")
        scripts = {word.text, value} if value else {whole}
        inners += [Inner(script=script, sure=False) for script in sorted(scripts) if " " in script or value]
    return Unwrapped(inners, own="floor") if inners else None


def _joined(words: list[Word]) -> str:
    return " ".join(words[0].text.split()) + "".join(
        " " + (shlex.quote(word.text) if word.known else word.text) for word in words[1:]
    )


_READERS: dict[str, Reader] = {
    "prefix": _prefix,
    "env": _env,
    "shell": scripts.shell,
    "eval": scripts.evaluated,
    "ssh": scripts.ssh,
    "xargs": _xargs,
    "find": _find,
    "joined": scripts.joined,
    "keys": scripts.keys,
    "option": scripts.option,
    "maybe": _maybe,
    "module": scripts.module,
    "program": scripts.program,
    "later": scripts.later,
    "sourced": scripts.sourced,
}
KINDS = frozenset(_READERS)
