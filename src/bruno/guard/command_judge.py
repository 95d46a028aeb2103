"""How one shell line is judged, piece by piece: the parser's simple commands against the rules, wrappers followed. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from bruno.guard.command_rules import CommandRules
from bruno.guard.inline import embedded_commands, sql_danger
from bruno.guard.outputs import output_of
from bruno.guard.sanitise import safe_line
from bruno.guard.script import Simple
from bruno.guard.shapes import Level, Program, allows, fires
from bruno.guard.shell import read_script
from bruno.guard.words import STEERING, UNKNOWN, Word, decoded_ansi, names
from bruno.guard.wrappers import Inner, unwrap

MAX_NESTING = 7
MAX_READINGS = 200
MAX_BYTES_READ = 10_000
TANGLED = 512
"""Characters of a text that could not be read to its end, read once more without its quotes."""
_STANDARD = re.compile(r"(?:/usr)?(?:/local)?/s?bin/|/venv/main/bin/|/opt/conda/bin/")
# Programs that are installed under a version: python3.12, gcc-13.
_VERSIONED = re.compile(
    r"(python|pip|pypy|perl|ruby|lua|php|node|gcc|g\+\+|clang|java|psql|ipython|tclsh|vim|cmake)-?[\d.]+"
)
_SET_FREELY = re.compile(
    r"(?!(?:https?|ftp|all|no)_proxy$)[a-z_][a-z0-9_]*|LC_[A-Z]+|LANG|LANGUAGE|TZ|NO_COLOR|COLUMNS|LINES|TERM|CUDA_VISIBLE_DEVICES|"
    r"PYTHONUNBUFFERED|PYTHONIOENCODING|OMP_NUM_THREADS|TOKENIZERS_PARALLELISM|HF_HUB_OFFLINE|NCCL_DEBUG|BLOCKSIZE|BLOCK_SIZE|"
    r"TIME_STYLE|[A-Z]|(?!TERMINFO)(?:[A-Z]+_)?(?:DIR|FILE|NAME|ID|COUNT|LOG|PORT|RUN|JOB)"
)
_CODE_PROGRAMS = names(
    "python python3 python2 perl ruby node nodejs lua php awk gawk mawk sqlite3 psql mysql mariadb vim vi emacs ed gdb"
)
_SQL_PROGRAMS = names("sqlite3 sqlite psql mysql mariadb duckdb cockroach clickhouse-client")
_SETTERS = names("read mapfile readarray getopts unset let declare typeset export local readonly")
_LOSES = re.compile(
    r"-{0,2}(?:delete|destroy|drop|purge|wipe|erase|uninstall|remove|rm|reset|prune|terminate|kill|stop|shutdown|force|overwrite|"
    r"clean|cleanup|flush|nuke|format|revert|rollback|forget|expire|gc|halt|reboot|poweroff|down|restart|cancel|truncate|discard|"
    r"distclean|clobber|rmi|rmp|deregister|detach|decommission|evict|drain|disable|undeploy|unpublish)(?:[-_=:].*)?",
    re.IGNORECASE,
)
"""Arguments by which a program that bruno does not know is most likely told to lose something."""
_OUT = names("> >> &> &>> >|")


@dataclass(frozen=True)
class Piece:
    """One simple command of the line, where it would run, and what was found about it."""

    command: str
    where: str
    level: Level
    rule: str
    reason: str


@dataclass
class _Case:
    """One simple command on its way through the rules."""

    simple: Simple
    shown: str
    where: str
    depth: int
    name: str = ""
    """What it was called by, without its folder."""
    known: str = ""
    """The same, less a version: the name that the files know."""
    main: str = ""
    """The name under which the files describe it."""

    @property
    def arguments(self) -> list[Word]:
        return self.simple.words[1:]

    def piece(self, level: Level, rule: str, reason: str) -> Piece:
        return Piece(self.shown, self.where, level, rule, safe_line(reason, 300))


@dataclass
class CommandJudge:
    """One judgement. It counts what it reads, so that no line takes long."""

    rules: CommandRules
    git_remote: str
    readings: int = 0
    bytes_read: int = 0
    unsure: int = 0

    def text(
        self, command: str, where: str, depth: int, plainer: bool = False, feed: Simple | None = None
    ) -> Iterator[Piece]:
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
            for reading in _plainer(command[:TANGLED] if script.cut else command):
                yield from self.raising(self.text(reading, where, depth + 1, plainer=True), Level.typed_yes)

    def _too_much(self, command: str, where: str) -> Piece:
        return Piece(
            safe_line(command),
            where,
            Level.typed_yes,
            "cannot-be-analysed",
            "it is nested too deeply, or too long, to be analysed",
        )

    def raising(self, pieces: Iterator[Piece], least: Level) -> Iterator[Piece]:
        """Pieces of a reading that is not sure: only what is strict enough to matter counts."""
        for piece in pieces:
            if piece.level >= least and piece.rule not in ("cannot-be-analysed", "runs-an-unknown-program"):
                yield piece

    def simple(self, simple: Simple, where: str, depth: int) -> Iterator[Piece]:
        """One simple command: its assignments, redirections, the program, and what it runs in turn."""
        case = _Case(simple, safe_line(simple.shown()), where, depth)
        self.readings += 1
        if self.readings > MAX_READINGS:
            yield self._too_much(case.shown, where)
            return
        found = list(self._around(case))
        if simple.words:
            found += list(self._program(case))
        yield from found or [case.piece(Level.allow, "", "")]

    def _around(self, case: _Case) -> Iterator[Piece]:
        """Assignments and redirections."""
        for name, value in case.simple.assigns:
            if steers := STEERING.fullmatch(name):
                reason = f"sets {safe_line(name)}, by which other programs find what they run or read"
                yield case.piece(Level.typed_yes, "sets-a-variable", reason)
            if not steers and not _SET_FREELY.fullmatch(name):
                yield case.piece(
                    Level.ask, "sets-a-variable", f"sets {safe_line(name)}, which may change what other programs do"
                )
            if (steers or not _SET_FREELY.fullmatch(name)) and " " in value.text:
                yield from self.raising(self.text(value.text, case.where, MAX_NESTING - 1), Level.typed_yes)
        for redirect in case.simple.redirects:
            target = redirect.target
            if target is None or (redirect.op == ">&" and re.fullmatch(r"\d+|-", target.text)):
                continue
            if redirect.op in ("<", "<&"):
                if re.match(r"/dev/(?:tcp|udp)/", target.text) or self.rules.places.secret(target):
                    yield case.piece(Level.ask, "reads-elsewhere", f"reads {target.shown()}")
                continue
            level, reason = self.rules.places.written(target)
            if level > Level.allow:
                adds = redirect.op in (">>", "&>>") and level is Level.ask
                yield case.piece(level, "redirect", f"adds to {target.shown()}" if adds else reason)
        if any(redirect.op in _OUT for redirect in case.simple.redirects):
            # What is written may be run later: commands in it count, if they are strict enough to matter.
            said = output_of(case.simple, redirected=True)
            if said and re.search(r"\s", said.strip()):
                yield from self.raising(
                    self.text(said, "written to a file", case.depth + 2, plainer=True), Level.typed_yes
                )

    def _program(self, case: _Case) -> Iterator[Piece]:
        head = case.simple.words[0]
        at_risk = any(self.rules.places.root_at_risk(word) for word in case.arguments)
        if not head.known or head.glob or not head.text:
            level = Level.refuse if at_risk else Level.typed_yes
            yield case.piece(level, "runs-an-unknown-program", "which program it runs is not known before it runs")
            return
        if head.text == ":(){":
            called = case.arguments[0].shown()
            yield case.piece(
                Level.refuse,
                "calls-itself",
                f"the function {called} calls itself without end: it would take the machine down",
            )
            return
        case.name = head.text.rsplit("/", 1)[-1]
        versioned = _VERSIONED.fullmatch(case.name)
        case.known = case.name if case.name in self.rules.programs or not versioned else versioned[1]
        program = self.rules.find(case.known)
        if program is None:
            yield self._stranger(case, head)
            return
        case.main = self.rules.main[case.known]
        yield from self._judged(case, program, at_risk)

    def _stranger(self, case: _Case, head: Word) -> Piece:
        """A program that no file describes: its own arguments may still say that something ends."""
        for word in case.arguments:
            if _LOSES.fullmatch(word.text):
                told = f"{safe_line(head.text, 60)}, which is told to {safe_line(word.text.lstrip('-'), 40)}"
                reason = f"bruno has no rule for {told}; what is lost by it cannot be brought back"
                return case.piece(Level.typed_yes, "no-rule", reason)
        return case.piece(Level.ask, "no-rule", f"bruno has no rule for {safe_line(head.text, 60)}")

    def _judged(self, case: _Case, program: Program, at_risk: bool) -> Iterator[Piece]:
        """A program that the files describe: warnings first, then what allows it, then what it runs in turn."""
        head = case.simple.words[0].text
        hits = [rule for rule in program.rule if fires(rule, program, case.arguments, at_risk)]
        warned = [case.piece(rule.level, f"{case.main}/{rule.name}", _filled(rule.reason, case)) for rule in hits]
        if "/" in head and not _STANDARD.fullmatch(head[: len(head) - len(case.name)]):
            reason = f"runs {safe_line(head, 80)}, not the system's {case.name}"
            warned.append(case.piece(Level.ask, "runs-from-elsewhere", reason))
        if case.main in self.rules.suspect:
            reason = f"the guardrail file is wrong: {self.rules.suspect[case.main]}"
            warned.append(case.piece(Level.typed_yes, f"{case.name}/broken", reason))
        if case.main == "git" and self.git_remote:
            warned += self._push(case)
        if case.name in _SETTERS and (set_ := [word for word in case.arguments if STEERING.fullmatch(word.text)]):
            reason = f"sets {set_[0].shown()}, by which other programs find what they run or read"
            warned.append(case.piece(Level.typed_yes, "sets-a-variable", reason))
        yield from warned
        yield from self._secrets(case, program)
        yield from self._code(case)
        if not warned and any(allows(shape, program, case.arguments, case.known) for shape in program.allow):
            return
        found = unwrap(program, case.simple)
        if found is not None:
            yield from self._around(
                _Case(Simple(words=[], assigns=case.simple.assigns), case.shown, case.where, case.depth)
            )
            if found.own in ("ask", "typed_yes", "refuse"):
                reason = found.reason or f"{case.name} runs another command"
                yield case.piece(Level[found.own], f"{case.name}/{found.rule or 'wrapper'}", reason)
            for inner in found.inners:
                yield from self._inner(inner, case)
        named = any(piece.rule != "runs-from-elsewhere" for piece in warned)
        if not named and (found is None or found.own == "floor"):
            yield self._floor(case, program)

    def _floor(self, case: _Case, program: Program) -> Piece:
        """Neither allowed nor warned of by name: the program's floor, or more when its arguments are not known."""
        level = Level[program.floor]
        if level < Level.typed_yes and _doubtful(program, case.arguments):
            reason = f"what {case.name} is told is not known before it runs"
            return case.piece(Level.typed_yes, f"{case.name}/unknown-arguments", reason)
        says = program.says or "{program} is not on the list of commands that only read, as it is used here"
        return case.piece(level, f"{case.name}/not-read-only", _filled(says, case))

    def _inner(self, inner: Inner, case: _Case) -> Iterator[Piece]:
        """What a wrapper runs. A reading that is not sure can only raise the verdict."""
        simple = case.simple
        place = ", ".join(part for part in (case.where, safe_line(inner.where, 60)) if part)
        if inner.script is not None:
            feed = None if inner.script is simple.stdin else simple
            pieces = self.text(inner.script, place, case.depth + 1, feed=feed)
        elif case.depth > MAX_NESTING:
            pieces = iter([self._too_much(case.shown, case.where)])
        else:
            words = inner.words or []
            made = Simple(words=words, stdin=simple.stdin, piped=simple.piped, feeders=simple.feeders)
            made.source = " ".join(word.shown() for word in words)
            pieces = self.simple(made, place, case.depth + 1)
        if inner.sure:
            yield from pieces
        elif not self.unsure:  # a guess inside a guess is one of the outer guesses too
            self.unsure += 1
            yield from self.raising(pieces, Level.typed_yes)
            self.unsure -= 1

    def _push(self, case: _Case) -> list[Piece]:
        """A push goes to the one remote of the settings, or nowhere."""
        given = [word for word in case.arguments if not word.text.startswith("-")]
        at = next((index for index, word in enumerate(given) if word.text in ("push", "send-pack")), None)
        if at is None:
            return []
        named = [word.shown() for word in case.arguments if word.text.startswith(("--repo=", "--rep="))]
        remote = named[-1].partition("=")[2] if named else given[at + 1].shown() if at + 1 < len(given) else ""
        if not remote:
            reason = f"which remote it would push to is not written; the settings name {self.git_remote}"
            return [case.piece(Level.ask, "git/no-remote", reason)]
        if remote != self.git_remote:
            reason = f"git push goes only to the remote named in the settings ({self.git_remote}), not to {safe_line(remote, 80)}"
            return [case.piece(Level.refuse, "git/other-remote", reason)]
        return []

    def _secrets(self, case: _Case, program: Program) -> Iterator[Piece]:
        """Secrets that would be shown, whatever the program."""
        if not program.allow or not program.shows:
            return
        for word in case.arguments:
            path = word if not word.text.startswith("-") else Word(word.text.partition("=")[2])
            if path.text and self.rules.places.secret(path):
                reason = f"{safe_line(path.shown(), 80)} holds secrets, which would be shown"
                yield case.piece(Level.ask, f"{case.name}/secret", reason)
                return

    def _code(self, case: _Case) -> Iterator[Piece]:
        """Code in arguments: SQL that loses data, and shell commands quoted inside code."""
        if case.main not in _CODE_PROGRAMS and case.name not in _CODE_PROGRAMS | _SQL_PROGRAMS:
            return
        texts = [word.text for word in case.arguments if len(word.text) > 4]
        if case.simple.stdin is not None:
            texts.append(case.simple.stdin)
        for text in texts:
            verdict, reason = sql_danger(text) if case.name in _SQL_PROGRAMS else ("", "")
            if verdict:
                yield case.piece(Level[verdict], f"{case.name}/sql", reason)
            for command in embedded_commands(text):
                yield from self.raising(self.text(command, case.where, case.depth + 2, plainer=True), Level.typed_yes)


def _doubtful(program: Program, arguments: list[Word]) -> bool:
    """Whether an unknown argument could turn this into something that a rule of the program warns of."""
    if not any(not word.known and word.may_be_flag for word in arguments):
        return False
    given = [word.text for word in arguments if not word.text.startswith("-")]
    for rule in program.rule:
        if rule.level < Level.typed_yes:
            continue
        if (
            not rule.subs
            or any(UNKNOWN in name for name in given[:1])
            or any(tuple(given[: len(sub)]) == sub for sub in rule.subs)
        ):
            return True
    return False


def _filled(reason: str, case: _Case) -> str:
    """The reason with its `{args}` and `{program}`."""
    things = " ".join(word.shown() for word in case.arguments if not word.text.startswith("-"))
    return reason.replace("{args}", safe_line(things, 120) or "nothing named").replace("{program}", case.name)


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
