"""The words of a shell tree: quotes, expansions and substitutions, as far as they can be known. Pure.

What is inside a word counts as well: a command in `$(...)` is walked like any other. `walk` and `redirect` come from the
reader of statements (`shell`), which this class is the lower half of.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from bruno.guard.outputs import output_of
from bruno.guard.script import Script, Simple
from bruno.guard.words import UNKNOWN, Word, braces, decoded_ansi, has_braces, names, unescaped

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_DEPTH = 24
_RANGE_ONLY = re.compile(r"\{-?\w+\.\.-?\w+(?:\.\.-?\d+)?\}")
_PLAIN = names("word number variable_name special_variable_name file_descriptor extglob_pattern regex test_operator")
_SAYING = names("command pipeline redirected_statement")
# HOME and PWD stand for themselves: they begin with a slash, so they are no flags. The rest are numbers.
_PLACES = {
    "HOME": "~",
    "PWD": ".",
    "OLDPWD": ".",
    "#": "0",
    "?": "0",
    "$": "4321",
    "!": "4321",
    "UID": "0",
    "EUID": "0",
    "RANDOM": "7",
}


class WordReader:
    """Reads words. `constants` holds variables whose one value is known at this point."""

    def __init__(self, source: bytes, script: Script) -> None:
        self.source = source
        self.script = script
        self.constants: dict[str, str | None] = {}
        self.followed = False
        """A constant was put in place of its variable."""
        self.branching = 0
        self.looping = 0
        self.mentions: Counter[str] | None = None
        """How often each name stands without a `$` before it, once that was asked for."""
        self.code_in_quotes = False
        self.arithmetic = False

    def walk(self, node: Node, depth: int) -> None:
        """Read a statement."""
        raise NotImplementedError

    def redirect(self, node: Node, simple: Simple, depth: int) -> None:
        """Read a redirection of `simple`."""
        raise NotImplementedError

    def text(self, node: Node) -> str:
        return self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def doubt(self, why: str) -> None:
        """Say why the line may be misread, once."""
        if why not in self.script.doubts:
            self.script.doubts.append(why)

    def words(self, node: Node, depth: int) -> list[Word]:
        """The node as arguments: several when braces expand."""
        raw = self.text(node)
        if node.type in ("word", "concatenation") and "{" in raw and has_braces(raw):
            plain = not re.search(r"[\"'`$\\]", raw)
            many = braces(raw) if plain else None
            if many is not None:
                return [Word(text, glob="*" in text or "?" in text) for text in many]
            if not _RANGE_ONLY.fullmatch(raw):
                self.doubt("it expands braces")
            return [Word(UNKNOWN, splits=not _RANGE_ONLY.fullmatch(raw))]
        return [self.joined(node, depth)]

    def joined(self, node: Node, depth: int) -> Word:
        """The node as one word."""
        kind = node.type
        if depth > MAX_DEPTH:
            self.doubt("it is nested too deeply or too long")
            return Word(UNKNOWN, splits=True)
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(self, node, depth)
        if kind not in _PLAIN:
            self.doubt(f"it contains {kind.replace('_', ' ')}, which bruno does not read")
            self.operands(node, depth + 1)
            return Word(UNKNOWN, splits=True)
        raw = self.text(node)
        text, glob = unescaped(raw)
        return Word(text, glob=glob, quoted="\\" in raw)

    def raw_string(self, node: Node, depth: int) -> Word:
        del depth
        self.note_code(node)
        return Word(self.text(node)[1:-1], quoted=True)

    def ansi_string(self, node: Node, depth: int) -> Word:
        del depth
        self.note_code(node)
        return Word(decoded_ansi(self.text(node)[2:-1]), quoted=True)

    def number(self, node: Node, depth: int) -> Word:
        """`$((...))` and `{1..5}`: some number, so surely no flag and no program."""
        self.arithmetic = self.arithmetic or node.type == "arithmetic_expansion"
        self.operands(node, depth + 1)
        return Word("1" + UNKNOWN)

    def array(self, node: Node, depth: int) -> Word:
        """`(a b)` and `x[1]`: what is inside counts, its value is not followed."""
        for child in node.named_children:
            self.joined(child, depth + 1)
        self.arithmetic = self.arithmetic or node.type == "subscript"
        return Word(UNKNOWN, splits=True)

    def string(self, node: Node, depth: int) -> Word:
        """Double quotes: literal pieces by their bytes, so that nothing between two children is lost."""
        self.note_code(node)
        pieces, end = [], node.start_byte + (2 if self.text(node).startswith('$"') else 1)
        if node.type == "translated_string":
            return self.string(node.named_children[0], depth) if node.named_children else Word("", quoted=True)
        for child in node.named_children:
            if child.type == "string_content":
                continue
            pieces.append(self.source[end : child.start_byte].decode("utf-8", "replace"))
            pieces.append(self.joined(child, depth + 1))
            end = child.end_byte
        pieces.append(self.source[end : max(end, node.end_byte - 1)].decode("utf-8", "replace"))
        text = "".join(
            piece.text if isinstance(piece, Word) else re.sub(r'\\([$`"\\])', r"\1", piece.replace("\\\n", ""))
            for piece in pieces
        )
        return Word(text, quoted=True)

    def concatenated(self, node: Node, depth: int) -> Word:
        word, end = Word(""), node.start_byte
        for child in node.children:
            if child.start_byte != end:
                self.doubt("two words touch in a way that bruno does not read")
            end = child.end_byte
            piece = self.joined(child, depth + 1) if child.is_named else Word(self.text(child))
            word.text += piece.text
            word.splits = word.splits or piece.splits
            word.glob = word.glob or piece.glob
            word.quoted = word.quoted or piece.quoted
        return word

    def expansion(self, node: Node, depth: int) -> Word:
        """`$x` and `${x...}`: known for constants, else unknown; what is inside is walked."""
        raw = self.text(node)
        quoted = node.parent is not None and node.parent.type == "string"
        plain = re.fullmatch(r"\$(?:\{(\w+|[#?$!@*-])\}|(\w+|[#?$!@*-]))", raw)
        if plain is None:
            if re.search(r"@[A-Za-z]\}$|^\$\{!", raw):
                self.doubt("it evaluates the contents of a variable")
            if ":=" in raw or re.search(r"^\$\{\w+=", raw):
                self.doubt("it assigns inside an expansion")
            self.operands(node, depth + 1)
            return Word(UNKNOWN, splits=not quoted)
        name = plain[1] or plain[2]
        if name in _PLACES and name not in self.constants:
            return Word(_PLACES[name])
        if name == "IFS" and name not in self.constants:
            self.doubt("it uses IFS to part words")
            return Word(UNKNOWN, splits=True)
        if name in ("@", "*", "-"):
            # No arguments at the top of a line: bash puts nothing here.
            return Word("" if name != "-" else UNKNOWN, splits=name == "-")
        value = self.constants.get(name)
        self.followed = self.followed or value is not None
        if value is None:
            return Word(UNKNOWN, splits=not quoted)
        if not quoted and re.search(r"[\s*?\[]", value):
            self.doubt("it splits a variable into words")
        return Word(value, glob=not quoted and bool(re.search(r"[*?\[]", value)))

    def substitution(self, node: Node, depth: int) -> Word:
        """`$(...)`, backticks, `<(...)`: the commands inside count; their output is known for `echo` and the like."""
        if self.text(node).startswith("`") and "\\" in self.text(node):
            self.doubt("it nests backticks")
        start = len(self.script.commands)
        self.branching += 1
        for child in node.named_children:
            if child.type.endswith("redirect"):  # $(< file), $(> file)
                alone = Simple(words=[], source=self.text(node))
                self.redirect(child, alone, depth)
                self.script.commands.append(alone)
            else:
                self.walk(child, depth + 1)
        self.branching -= 1
        if node.type == "process_substitution":
            return Word("/dev/fd/63", quoted=True)
        made = self.script.commands[start:]
        single = node.named_child_count == 1 and node.named_children[0].type in _SAYING
        said = output_of(made[-1]) if made and single else None
        quoted = node.parent is not None and node.parent.type == "string"
        if said is None or UNKNOWN in said:
            return Word(UNKNOWN, splits=not quoted)
        said = said.rstrip("\n")
        if not quoted and re.search(r"\s", said):
            self.doubt("it splits the output of a command into words")
        return Word(said)

    def operands(self, node: Node, depth: int) -> None:
        """Find the commands inside tests, arithmetic and here-documents."""
        for child in node.named_children:
            if child.type in ("raw_string", "string", "ansi_c_string"):
                self.note_code(child)
            if child.type in ("command_substitution", "process_substitution"):
                self.substitution(child, depth)
            elif depth < MAX_DEPTH:
                self.operands(child, depth + 1)
                if child.type == "expansion":
                    self.expansion(child, depth)
            else:
                self.doubt("it is nested too deeply or too long")

    def note_code(self, node: Node) -> None:
        """Remember quoted text that bash would run if it came to be evaluated as arithmetic (`a[$(command)]`)."""
        text = self.text(node)
        if node.type == "ansi_c_string":
            text = decoded_ansi(text[2:-1])
        elif node.type == "string":
            text = " ".join(re.findall(r"\\[$`]\(?", text)).replace("\\", "")
        self.code_in_quotes = self.code_in_quotes or "$(" in text or "`" in text or "${" in text


_READERS = {
    "raw_string": WordReader.raw_string,
    "ansi_c_string": WordReader.ansi_string,
    "string": WordReader.string,
    "translated_string": WordReader.string,
    "concatenation": WordReader.concatenated,
    "simple_expansion": WordReader.expansion,
    "expansion": WordReader.expansion,
    "command_substitution": WordReader.substitution,
    "process_substitution": WordReader.substitution,
    "arithmetic_expansion": WordReader.number,
    "brace_expression": WordReader.number,
    "array": WordReader.array,
    "subscript": WordReader.array,
}
