"""Programs that run the command in their arguments: sudo, env, xargs, sh -c, ssh, find -exec and their like. Pure.

`unwrap` gives what runs inside, as words or as text that a shell will read again. Where it cannot tell where the inner command
begins, it offers every place it could, marked as not sure: such readings may raise a verdict and never lower it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from bruno.guard.script import Simple
from bruno.guard.shapes import Program, Wrapper
from bruno.guard.words import UNKNOWN, Word, names

SHELLS = names("sh bash dash zsh ksh ash rbash mksh fish")


@dataclass(slots=True)
class Inner:
    """What runs inside: `words` as they are, or `script` read by a shell. `where` says on what or as whom."""

    words: list[Word] | None = None
    script: str | None = None
    where: str = ""
    sure: bool = True


@dataclass(slots=True)
class Unwrapped:
    """The readings of a wrapper's arguments, and what the wrapper itself calls for."""

    inners: list[Inner] = field(default_factory=list)
    own: str = "allow"
    reason: str = ""
    rule: str = ""


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


def _own_part(wrapper: Wrapper, words: list[Word]) -> int | None:
    """Index of the first word that is not the wrapper's own flag, or None when a flag is not known."""
    at = 0
    while at < len(words):
        text = words[at].text
        if text == "--":
            return at + 1
        if not text.startswith("-") or len(text) < 2:
            return None if words[at].may_be_flag and words[at].splits else at
        name = text.split("=", 1)[0]
        if text in wrapper.values:
            at += 2
        elif text in wrapper.flags or name in wrapper.values or (name.startswith("--") and name + "=" in wrapper.flags):
            at += 1
        elif not text.startswith("--") and _cluster(wrapper, text):
            at += 2 if text[-1] and "-" + text[-1] in wrapper.values and "-" + text[1] not in wrapper.values else 1
        else:
            return None
    return at


def _cluster(wrapper: Wrapper, text: str) -> bool:
    """`-u root` written `-uroot`, or flags run together (`-nE`)."""
    for letter in text[1:]:
        if "-" + letter in wrapper.values:
            return True
        if "-" + letter not in wrapper.flags:
            return "-N" in wrapper.flags and text[1:].isdigit()
    return True


def _anywhere(words: list[Word], where: str = "") -> Unwrapped:
    """Every place where the inner command could begin, when its start cannot be found."""
    inners = [
        Inner(words=words[at:], where=where, sure=False)
        for at in range(min(len(words), 12))
        if not words[at].text.startswith("-")
    ]
    return Unwrapped(
        inners, own="typed_yes", reason="where its inner command begins cannot be told", rule="wrapper-unclear"
    )


def _prefix(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    at = _own_part(wrapper, words)
    if at is None:
        return _anywhere(words)
    inner = words[at + wrapper.skip :]
    if inner and inner[0].text == "--":
        inner = inner[1:]
    while inner and re.match(r"[A-Za-z_]\w*=", inner[0].text):
        simple.assigns.append((inner[0].text.partition("=")[0], Word(inner[0].text.partition("=")[2])))
        inner = inner[1:]
    found = Unwrapped([Inner(words=inner, where=simple.words[0].text)]) if inner else None
    if found and wrapper.loose:
        found.inners += _anywhere(inner[1:8]).inners
    return found


def _env(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    for at, word in enumerate(words):
        split = re.match(r"(?:-[a-z0]*S|--split-string)(?:=|$)?(.*)", word.text, re.DOTALL)
        if split and word.text.startswith("-"):
            text = split[1] or (words[at + 1].text if at + 1 < len(words) else "")
            rest = words[at + (1 if split[1] else 2) :]
            return Unwrapped([Inner(script=_joined([Word(text), *rest]), where="env")])
    at = _own_part(wrapper, words)
    if at is None:
        return _anywhere(words)
    while at < len(words) and "=" in words[at].text and not words[at].text.startswith("="):
        name, _, value = words[at].text.partition("=")
        simple.assigns.append((name, Word(value)))
        at += 1
    return _prefix(Wrapper(), program, simple, words[at:]) if at < len(words) else None


def _shell(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """sh and its like: a string after -c, a script file, or what comes through standard input."""
    del wrapper, program
    at, string, stdin = 0, False, False
    while at < len(words) and re.match(r"[-+][A-Za-z-]", words[at].text):
        text = words[at].text
        if text in ("--version", "--help"):
            return None
        if text == "--":
            at += 1
            break
        if text in ("--rcfile", "--init-file", "-o", "+o", "-O", "+O"):
            at += 2
            continue
        string = string or (not text.startswith("--") and text[0] == "-" and "c" in text)
        stdin = stdin or text == "-s"
        at += 1
    if at < len(words) and words[at].splits:
        return _anywhere(words)
    if string:
        if at >= len(words):
            return None
        return Unwrapped([Inner(script=_given(words[at].text, words[at + 1 :]), where=simple.words[0].text)])
    if at < len(words) and words[at].text not in ("-", "/dev/stdin") and not stdin:
        text = words[at].shown()
        piped = text.startswith("/dev/fd/")
        reason = "runs the output of another command as a script" if piped else f"runs the script {text}"
        return Unwrapped(own="typed_yes" if piped else "ask", reason=reason, rule="runs-a-script")
    if simple.stdin is not None:
        return Unwrapped(
            [Inner(script=_given(simple.stdin, words[at:]), where=f"{simple.words[0].text}, from its input")]
        )
    if simple.piped:
        hidden = any(feeder.rsplit("/", 1)[-1] in _DECODERS for feeder in simple.feeders)
        reason = "runs whatever comes through the pipe as a script" + (
            ", decoded on the way, so that it cannot be read" if hidden else ""
        )
        return Unwrapped(own="refuse" if hidden else "typed_yes", reason=reason, rule="pipe-to-shell")
    return Unwrapped(own="ask", reason="opens a shell", rule="opens-a-shell")


def _given(script: str, arguments: list[Word]) -> str:
    """The script with its positional parameters unknown, when it is given any: `sh -c 'find "$@"' _ -delete`."""
    return re.sub(r"\$[@*]|\$\{[@*][^}]*\}", UNKNOWN, script) if arguments else script


def _eval(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del wrapper, program
    return (
        Unwrapped([Inner(script=" ".join(word.text for word in words), where=simple.words[0].text)]) if words else None
    )


def _ssh(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    local = [
        word.text
        for word in words
        if re.search(
            r"(?i)proxycommand|localcommand|knownhostscommand|proxyusefdpass|pkcs11provider|securitykeyprovider|xauthlocation|^include",
            word.text,
        )
    ]
    at = _own_part(wrapper, words)
    if at is None or at >= len(words):
        return _anywhere(words) if at is None else None
    host, inner = words[at], words[at + 1 :]
    if inner and inner[0].text == "--":
        inner = inner[1:]
    found = Unwrapped()
    if local or not host.known:
        found.own, found.reason = (
            "typed_yes",
            "runs a local command, or reaches a host that is not known before it runs",
        )
        found.inners += [
            Inner(script=re.split(r"[= ]", text, maxsplit=1)[-1], where="this machine", sure=False) for text in local
        ]
    if inner:
        found.inners.append(Inner(script=" ".join(word.text for word in inner), where=f"on {host.shown()}"))
    elif simple.piped:
        shell = Simple(words=[Word("sh")], stdin=simple.stdin, piped=True, feeders=simple.feeders)
        return _shell(Wrapper(), Program(), shell, [])
    elif found.own == "allow":
        found.own, found.reason = "ask", f"opens a session on {host.shown()}"
    return found


def _xargs(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    del program
    at = _own_part(wrapper, words)
    if at is None:
        return _anywhere([*words, Word(UNKNOWN, splits=True)])
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


def _joined_script(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """watch, tmux, parallel and others that hand their arguments, joined, to a shell."""
    del program
    at = _own_part(wrapper, words)
    if at is None:
        return _anywhere(words)
    inner = words[at + wrapper.skip :]
    texts = [word.text for word in inner]
    if ":::" in texts:
        inner, added = inner[: texts.index(":::")], inner[texts.index(":::") + 1 :]
        one = added[0].text if len(added) == 1 else UNKNOWN
        inner = [Word(word.text.replace("{}", one)) for word in inner] + (
            [] if any("{}" in t for t in texts) else [Word(one)]
        )
    if not inner:
        return None
    # The text may be one quoted string, or words that are joined: both are read.
    return Unwrapped([Inner(script=" ".join(word.text for word in inner), where=simple.words[0].text)])


def _keys(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """tmux send-keys, screen -X stuff: text typed into a terminal elsewhere."""
    del program, simple
    at = _own_part(wrapper, words)
    texts = words[at or 0 :]
    typed = "".join(
        "\n" if word.text in ("Enter", "C-m", "KPEnter") else word.text + (" " if len(texts) > 2 else "")
        for word in texts
    )
    typed = typed.replace("^M", "\n").replace("\\n", "\n")
    return Unwrapped(
        [Inner(script=typed, where="typed into a terminal")], own="ask", reason="types into a running terminal"
    )


def _option(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """su -c, script -c, flock -c, tar --to-command=...: a shell string as the value of an option in `values`."""
    del program
    found = Unwrapped()
    for at, word in enumerate(words):
        for option in wrapper.values:
            if word.text == option and at + 1 < len(words):
                found.inners.append(Inner(script=words[at + 1].text, where=simple.words[0].text))
            elif word.text.startswith(option + "=") or (
                len(option) == 2 and word.text.startswith(option) and len(word.text) > 2
            ):
                found.inners.append(Inner(script=word.text[len(option) :].lstrip("="), where=simple.words[0].text))
    return found if found.inners else None


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


def _module(wrapper: Wrapper, program: Program, simple: Simple, words: list[Word]) -> Unwrapped | None:
    """`python -m pip list` is `pip list`; code that comes through standard input is code that nobody has read."""
    del wrapper, program
    for at, word in enumerate(words[:6]):
        if (
            word.text == "-m"
            and at + 1 < len(words)
            and words[at + 1].text in ("pip", "uv", "ipython", "huggingface_hub", "vllm", "bruno")
        ):
            return Unwrapped([Inner(words=words[at + 1 :], where=simple.words[0].text)])
    rest = [word.text for word in words if not word.text.startswith("-") or word.text == "-"]
    if simple.piped and rest in ([], ["-"]) and not any(word.text in ("-c", "-m", "-V", "--version") for word in words):
        return Unwrapped(
            own="typed_yes", reason="runs whatever comes through the pipe as a program", rule="pipe-to-python"
        )
    return None


def _joined(words: list[Word]) -> str:
    return " ".join(words[0].text.split()) + "".join(
        " " + (shlex.quote(word.text) if word.known else word.text) for word in words[1:]
    )


_DECODERS = names(
    "base64 base32 xxd rev tr openssl gzip gunzip zcat bzip2 xz uudecode od hexdump sed awk perl python python3 basenc"
)
_READERS: dict[str, Reader] = {
    "prefix": _prefix,
    "env": _env,
    "shell": _shell,
    "eval": _eval,
    "ssh": _ssh,
    "xargs": _xargs,
    "find": _find,
    "joined": _joined_script,
    "keys": _keys,
    "option": _option,
    "maybe": _maybe,
    "module": _module,
}
KINDS = frozenset(_READERS)
