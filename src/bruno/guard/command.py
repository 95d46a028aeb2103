"""The verdict on a raw shell command. Pure: it reads the text, never runs or looks at anything.

`check` parses the line, follows wrappers into what they run, holds each simple command against the guardrail files, and lets the
strictest verdict stand. A line that cannot be analysed asks for a typed yes, and is read a second time with its quotes and
escapes taken away: that reading can only raise the verdict.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bruno.guard.command_rules import CommandRules, shipped_commands
from bruno.guard.inline import embedded_commands, sql_danger
from bruno.guard.outputs import output_of
from bruno.guard.sanitise import safe_line
from bruno.guard.shapes import Level, Program, allows, fires
from bruno.guard.shell import Simple, read_script
from bruno.guard.words import UNKNOWN, Word, decoded_ansi
from bruno.guard.wrappers import Inner, unwrap

MAX_NESTING = 7
MAX_READINGS = 200
MAX_BYTES_READ = 10_000
_STANDARD = re.compile(r"(?:/usr)?(?:/local)?/s?bin/|/venv/main/bin/|/opt/conda/bin/")
_SET_FREELY = re.compile(
    r"(?!(?:https?|ftp|all|no)_proxy$)[a-z_][a-z0-9_]*|LC_[A-Z]+|LANG|LANGUAGE|TZ|NO_COLOR|COLUMNS|LINES|TERM|CUDA_VISIBLE_DEVICES|"
    r"PYTHONUNBUFFERED|PYTHONIOENCODING|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM|HF_HUB_OFFLINE|NCCL_DEBUG|BLOCKSIZE|BLOCK_SIZE|"
    r"TIME_STYLE|[A-Z]|[A-Z]*_?(?:DIR|FILE|NAME|ID|COUNT|LOG|PORT|N|RUN|JOB)"
)
_CODE_PROGRAMS = frozenset("python python3 python2 perl ruby node nodejs lua php awk gawk mawk sqlite3 psql mysql mariadb vim vi emacs ed gdb".split())
_SQL_PROGRAMS = frozenset("sqlite3 sqlite psql mysql mariadb duckdb cockroach clickhouse-client".split())


@dataclass(frozen=True)
class Piece:
    """One simple command of the line, where it would run, and what was found about it."""

    command: str
    where: str
    level: Level
    rule: str
    reason: str


@dataclass(frozen=True)
class CommandVerdict:
    """The strictest verdict over all pieces."""

    command: str
    level: Level
    pieces: tuple[Piece, ...]

    @property
    def verdict(self) -> str:
        """allow, ask, typed_yes or refuse."""
        return self.level.name

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that call for more than allow, strictest first."""
        return tuple(dict.fromkeys(piece.rule for piece in self._worst_first() if piece.level > Level.allow))

    @property
    def reasons(self) -> tuple[str, ...]:
        """What would happen, in words, strictest first."""
        return tuple(dict.fromkeys(piece.reason for piece in self._worst_first() if piece.level > Level.allow))

    def _worst_first(self) -> list[Piece]:
        return sorted(self.pieces, key=lambda piece: -piece.level)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        pieces = [
            {"command": p.command, "where": p.where, "verdict": p.level.name, "rule": p.rule, "reason": p.reason} for p in self.pieces
        ]
        return {"command": self.command, "verdict": self.verdict, "rules": self.rules, "reasons": self.reasons, "pieces": pieces}


def check(command: str, rules: CommandRules | None = None, *, git_remote: str = "") -> CommandVerdict:
    """The verdict on one line (or several) of shell.

    Args:
        command: the text as it would be given to bash.
        rules: the rules in force (the shipped ones when None).
        git_remote: the one remote that `git push` may go to; "" leaves every push to the rules alone.

    Never raises for what the command says.
    """
    judge = _Judge(rules or shipped_commands(), git_remote)
    pieces = list(judge.text(command, "", 0))
    if not pieces:
        pieces = [Piece(safe_line(command), "", Level.allow, "", "")]
    if judge.rules.broken:
        pieces.append(Piece(safe_line(command), "", Level.typed_yes, "guardrails-broken", "a guardrail file cannot be used: " + "; ".join(judge.rules.problems[:2])))
    return CommandVerdict(command, max(piece.level for piece in pieces), tuple(pieces))


@dataclass
class _Judge:
    rules: CommandRules
    git_remote: str
    readings: int = 0
    bytes_read: int = 0
    unsure: int = 0

    def text(self, command: str, where: str, depth: int, plainer: bool = False, feed: Simple | None = None) -> Iterator[Piece]:
        """Every piece of a script that a shell would read. `feed`: the command whose input the script reads as its own."""
        self.bytes_read += len(command)
        if depth > MAX_NESTING or self.readings > MAX_READINGS or (depth and self.bytes_read > MAX_BYTES_READ):
            yield self._too_much(command, where)
            return
        script = read_script(command)
        doubts = script.doubts
        if doubts:
            reason = f"it cannot be analysed ({'; '.join(doubts[:3])}), so what it would do is not known"
            yield Piece(safe_line(command), where, Level.typed_yes, "cannot-be-analysed", reason)
        for simple in script.commands:
            if feed is not None and not simple.piped:
                simple.stdin, simple.piped, simple.feeders = feed.stdin, feed.piped, feed.feeders
            yield from self.simple(simple, where, depth)
        if (doubts or "`" in command) and not plainer:
            for reading in _plainer(command):
                yield from self.raising(self.text(reading, where, depth + 1, plainer=True), Level.typed_yes)

    def _too_much(self, command: str, where: str) -> Piece:
        return Piece(safe_line(command), where, Level.typed_yes, "cannot-be-analysed", "it is nested too deeply, or too long, to be analysed")

    def raising(self, pieces: Iterator[Piece], least: Level) -> Iterator[Piece]:
        """Pieces of a reading that is not sure: only what is strict enough to matter counts."""
        for piece in pieces:
            if piece.level >= least and piece.rule not in ("cannot-be-analysed", "runs-an-unknown-program"):
                yield piece

    def simple(self, simple: Simple, where: str, depth: int) -> Iterator[Piece]:
        """One simple command: its assignments, redirections, the program, and what it runs in turn."""
        shown = safe_line(simple.shown())
        self.readings += 1
        if self.readings > MAX_READINGS:
            yield self._too_much(shown, where)
            return
        found = list(self._around(simple, shown, where))
        if any(redirect.op in (">", ">>", "&>", ">|") for redirect in simple.redirects):
            # What is written may be run later: commands in it count, if they are strict enough to matter.
            said = output_of(simple, redirected=True)
            if said and re.search(r"\s", said.strip()):
                found += list(self.raising(self.text(said, "written to a file", depth + 2, plainer=True), Level.typed_yes))
        if simple.words:
            found += list(self._program(simple, shown, where, depth))
        yield from found or [Piece(shown, where, Level.allow, "", "")]

    def _around(self, simple: Simple, shown: str, where: str) -> Iterator[Piece]:
        for name, value in simple.assigns:
            if not _SET_FREELY.fullmatch(name):
                reason = f"sets {safe_line(name)}, which may change what other programs do"
                yield Piece(shown, where, Level.ask, "sets-a-variable", reason)
                if " " in value.text:
                    yield from self.raising(self.text(value.text, where, MAX_NESTING - 1), Level.typed_yes)
        for redirect in simple.redirects:
            target = redirect.target
            if target is None or redirect.op == ">&" and re.fullmatch(r"\d+|-", target.text):
                continue
            if redirect.op in ("<", "<&"):
                if re.match(r"/dev/(?:tcp|udp)/", target.text) or self.rules.places.secret(target):
                    yield Piece(shown, where, Level.ask, "reads-elsewhere", f"reads {safe_line(target.shown())}")
                continue
            level, reason = self.rules.places.written(target)
            if level > Level.allow:
                if redirect.op in (">>", "&>>") and level is Level.ask:
                    reason = f"adds to {target.shown()}"
                yield Piece(shown, where, level, "redirect", safe_line(reason))

    def _program(self, simple: Simple, shown: str, where: str, depth: int) -> Iterator[Piece]:
        head, arguments = simple.words[0], simple.words[1:]
        places = self.rules.places
        at_risk = any(places.root_at_risk(word) for word in arguments)
        if not head.known or head.glob or not head.text:
            level = Level.refuse if at_risk else Level.typed_yes
            yield Piece(shown, where, level, "runs-an-unknown-program", "which program it runs is not known before it runs")
            return
        name = head.text.rsplit("/", 1)[-1]
        if head.text == ":(){":
            reason = f"the function {arguments[0].shown()} calls itself without end: it would take the machine down"
            yield Piece(shown, where, Level.refuse, "calls-itself", safe_line(reason))
            return
        program = self.rules.find(name)
        if program is None and name[-1:].isdigit():  # python3.12, gcc-13
            program = self.rules.find(re.sub(r"-?[\d.]+$", "", name))
        own_place = "/" in head.text and not _STANDARD.fullmatch(head.text[: len(head.text) - len(name)])
        if program is None:
            yield Piece(shown, where, Level.ask, "no-rule", f"bruno has no rule for {safe_line(head.text, 60)}")
            return
        yield from self._judged(simple, program, name, shown, where, depth, at_risk, own_place)

    def _judged(
        self, simple: Simple, program: Program, name: str, shown: str, where: str, depth: int, at_risk: bool, own_place: bool
    ) -> Iterator[Piece]:
        arguments = simple.words[1:]
        main = self.rules.main.get(name) or self.rules.main[re.sub(r"-?[\d.]+$", "", name)]
        hits = [rule for rule in program.rule if fires(rule, program, arguments, at_risk)]
        for rule in hits:
            yield Piece(shown, where, rule.level, f"{main}/{rule.name}", _filled(rule.reason, name, arguments))
        if main == "git" and self.git_remote:
            yield from self._push(arguments, shown, where)
        yield from self._places(program, name, arguments, shown, where)
        yield from self._code(name, arguments, simple, shown, where, depth)
        if not hits and not own_place and main not in self.rules.suspect and any(allows(shape, program, arguments) for shape in program.allow):
            return
        found = unwrap(program, simple)
        if found is not None:
            yield from self._around(Simple(words=[], assigns=simple.assigns), shown, where)
            if Level.__members__.get(found.own, Level.ask) > Level.allow and found.own != "floor":
                reason = safe_line(found.reason or f"{name} runs another command")
                yield Piece(shown, where, Level[found.own], f"{name}/{found.rule or 'wrapper'}", reason)
            for inner in found.inners:
                yield from self._inner(inner, simple, where, depth)
            if found.own != "floor":
                return
        if main in self.rules.suspect:
            yield Piece(shown, where, Level.typed_yes, f"{name}/broken", f"the guardrail file is wrong: {self.rules.suspect[main]}")
            return
        if any(hit.level > Level.allow for hit in hits):
            return
        if own_place:
            yield Piece(shown, where, Level.ask, "runs-from-elsewhere", f"runs {safe_line(simple.words[0].shown(), 80)}, not the system's {name}")
            return
        level, doubtful = Level[program.floor], _doubtful(program, arguments)
        if doubtful and level < Level.typed_yes:
            yield Piece(shown, where, Level.typed_yes, f"{name}/unknown-arguments", f"what {name} is told is not known before it runs")
            return
        says = program.says or f"{name} is not on the list of commands that only read, as it is used here"
        yield Piece(shown, where, level, f"{name}/not-read-only", _filled(says, name, arguments))

    def _inner(self, inner: Inner, simple: Simple, where: str, depth: int) -> Iterator[Piece]:
        place = ", ".join(part for part in (where, safe_line(inner.where, 60)) if part)
        if inner.script is not None:
            pieces = self.text(inner.script, place, depth + 1, feed=simple if inner.script is not simple.stdin else None)
        elif depth > MAX_NESTING:
            pieces = iter([self._too_much(simple.shown(), where)])
        else:
            words = inner.words or []
            made = Simple(words=words, stdin=simple.stdin, piped=simple.piped, feeders=simple.feeders)
            made.source = " ".join(word.shown() for word in words)
            pieces = self.simple(made, place, depth + 1)
        if inner.sure:
            yield from pieces
        elif not self.unsure:  # a guess inside a guess is one of the outer guesses too
            self.unsure += 1
            yield from self.raising(pieces, Level.typed_yes)
            self.unsure -= 1

    def _push(self, arguments: list[Word], shown: str, where: str) -> Iterator[Piece]:
        """A push goes to the one remote of the settings, or nowhere."""
        names = [word for word in arguments if not word.text.startswith("-")]
        at = next((index for index, word in enumerate(names) if word.text in ("push", "send-pack")), None)
        if at is None:
            return
        remote = names[at + 1].shown() if at + 1 < len(names) else ""
        if remote and remote != self.git_remote:
            reason = f"git push goes only to the remote named in the settings ({self.git_remote}), not to {safe_line(remote, 80)}"
            yield Piece(shown, where, Level.refuse, "git/other-remote", reason)
        elif not remote:
            reason = f"which remote it would push to is not written; the settings name {self.git_remote}"
            yield Piece(shown, where, Level.ask, "git/no-remote", reason)

    def _places(self, program: Program, name: str, arguments: list[Word], shown: str, where: str) -> Iterator[Piece]:
        """Secrets that would be shown, whatever the program."""
        if not program.allow or not program.shows:
            return
        for word in arguments:
            path = word if not word.text.startswith("-") else Word(word.text.partition("=")[2])
            if path.text and self.rules.places.secret(path):
                yield Piece(shown, where, Level.ask, f"{name}/secret", f"{safe_line(path.shown(), 80)} holds secrets, which would be shown")
                return

    def _code(self, name: str, arguments: list[Word], simple: Simple, shown: str, where: str, depth: int) -> Iterator[Piece]:
        """Code in arguments: SQL that loses data, and shell commands quoted inside code."""
        if name not in _CODE_PROGRAMS and name not in _SQL_PROGRAMS and not name.startswith("python"):
            return
        texts = [word.text for word in arguments if len(word.text) > 4]
        if simple.stdin is not None:
            texts.append(simple.stdin)
        for text in texts:
            if name in _SQL_PROGRAMS:
                verdict, reason = sql_danger(text)
                if verdict:
                    yield Piece(shown, where, Level[verdict], f"{name}/sql", reason)
            for command in embedded_commands(text):
                yield from self.raising(self.text(command, where, depth + 2, plainer=True), Level.typed_yes)


def _doubtful(program: Program, arguments: list[Word]) -> bool:
    """Whether an unknown argument could turn this into something that a rule of the program warns of."""
    if not any(not word.known and word.may_be_flag for word in arguments):
        return False
    names = [word.text for word in arguments if not word.text.startswith("-")]
    for rule in program.rule:
        if rule.level < Level.typed_yes:
            continue
        if not rule.subs or any(UNKNOWN in name for name in names[:1]) or any(tuple(names[: len(sub)]) == sub for sub in rule.subs):
            return True
    return False


def _filled(reason: str, name: str, arguments: list[Word]) -> str:
    things = [word.shown() for word in arguments if not word.text.startswith("-")]
    return safe_line(reason.replace("{args}", safe_line(" ".join(things), 120) or "nothing named").replace("{program}", name), 300)


def _plainer(command: str) -> list[str]:
    """Other texts that bash might make of it: without escapes, quotes, backticks and tricks with IFS."""
    text = unicodedata.normalize("NFKC", command).replace("\\\n", "")
    text = re.sub(r"\$\{?IFS[^}\s]*\}?", " ", text)
    text = re.sub(r"\$'((?:[^'\\]|\\.)*)'", lambda match: decoded_ansi(match[1]), text)
    text = re.sub(r"\$[@*]|\$\{[@*]\}|\$\(\)|``", "", text)
    text = re.sub(r"\{([^{}\s]*,[^{}\s]*)\}", lambda match: match[1].replace(",", " "), text)
    text = "".join(character if character in "\n\t" or character.isprintable() else "" for character in text)
    flat = re.sub(r"[\"'\\]", "", text)
    readings = [text, flat, re.sub(r"\$\(|`|[(){}]", "\n", flat)]
    return [reading for reading in dict.fromkeys(readings) if reading != command]
