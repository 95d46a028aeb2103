"""A shell line, read into simple commands without running anything. Pure; fails closed.

tree-sitter-bash gives the tree; only node types on a short list are believed. Whatever is not surely understood becomes a
*doubt*: the caller then treats the whole line as one that cannot be analysed. Constants are followed (`X=rm; $X file`,
`$(echo rm)`, a literal piped into a shell), so that hiding a word does not hide it from the rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from bruno.guard.outputs import output_of
from bruno.guard.words import UNKNOWN, Word, braces, decoded_ansi, has_braces, unescaped

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

MAX_BYTES = 4096
MAX_DEPTH = 24
MAX_COMMANDS = 200


@dataclass(slots=True)
class Redirect:
    """`op` is bash's operator (`>`, `>>`, `<`, `<>`, `>&`, ...); `target` None for a here-document."""

    op: str
    target: Word | None


@dataclass(slots=True)
class Simple:
    """One simple command with what is known of its input.

    `stdin` is the text it reads when that is known; `piped` says that it reads from another command or a file.
    """

    words: list[Word]
    assigns: list[tuple[str, Word]] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)
    stdin: str | None = None
    piped: bool = False
    source: str = ""
    feeders: tuple[str, ...] = ()
    """Programs earlier in its pipeline."""

    def shown(self) -> str:
        return self.source or " ".join(word.shown() for word in self.words)


@dataclass(slots=True)
class Script:
    """All simple commands of a line, wherever they stand, and why the line may be misread."""

    commands: list[Simple] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


# Nodes whose named children are walked one after the other.
_GROUPS = frozenset(
    "program list compound_statement subshell do_group else_clause elif_clause negated_command if_statement while_statement".split()
)
_JOINTS = frozenset("; & && || | |& ( ) { } (( )) ! if then fi else elif while until do done in \n".split(" "))
_NO_COMMAND = frozenset({"test_command", "compound_statement"})
_CUT_REDIRECT = re.compile(r"[<>][|&]?[ \t]*(?:\n|$)")
_LONE_ESCAPE = re.compile(r"(?:^|[\s;&|(){}<>])\\[ \t\n]")
_ARITHMETIC = frozenset(
    "binary_expression unary_expression postfix_expression ternary_expression parenthesized_expression number variable_name "
    "word simple_expansion expansion string string_content raw_string concatenation test_operator regex extglob_pattern "
    "command_substitution arithmetic_expansion subscript special_variable_name ansi_c_string brace_expression".split()
)
# HOME and PWD stand for themselves: they begin with a slash, so they are no flags.
_PLACES = {"HOME": "~", "PWD": ".", "OLDPWD": ".", "#": "0", "?": "0", "$": "1", "!": "1", "UID": "0", "EUID": "0", "RANDOM": "1"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@lru_cache(maxsize=1)
def _parser() -> Parser:
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def read_script(text: str) -> Script:
    """Read `text` as bash would. Never raises for what it says; see `Script.doubts`."""
    script = Script()
    source = text.encode("utf-8", "surrogatepass")
    doubts = script.doubts
    if len(source) > MAX_BYTES:
        doubts.append(f"it is longer than {MAX_BYTES} bytes")
        source = source[:MAX_BYTES]
    if not text.isascii():
        doubts.append("it contains characters that are not ASCII")
    if _CONTROL.search(text):
        doubts.append("it contains control characters")
    if "\\\n" in text:
        doubts.append("it continues a line with a backslash")
    if _CUT_REDIRECT.search(text):
        doubts.append("a redirection is cut off by the end of a line")
    if _LONE_ESCAPE.search(text):
        doubts.append("it escapes a blank between words")
    root = _parser().parse(source).root_node
    if root.has_error:
        doubts.append("it is not complete shell syntax")
    _Reader(source, script).walk(root, 0)
    if not script.commands and not all(child.type in _NO_COMMAND and child.named_children for child in root.named_children if child.type != "comment"):
        doubts.append("no command can be found in it")
    return script


class _Reader:
    """Walks one tree. `constants` holds variables whose one value is known at this point."""

    def __init__(self, source: bytes, script: Script) -> None:
        self.source = source
        self.script = script
        self.constants: dict[str, str | None] = {}
        self.branching = 0
        self.code_in_quotes = False
        self.arithmetic = False

    def text(self, node: Node) -> str:
        return self.source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def doubt(self, why: str) -> None:
        if why not in self.script.doubts:
            self.script.doubts.append(why)

    def walk(self, node: Node, depth: int) -> None:
        kind = node.type
        if depth > MAX_DEPTH or len(self.script.commands) > MAX_COMMANDS:
            self.doubt("it is nested too deeply or too long")
            return
        if kind == "command":
            self.command(node, depth)
        elif kind in _GROUPS:
            if kind == "compound_statement" and not node.named_children:
                self.doubt("it runs a command that is named {}")
            # Whether the later parts of a list or branch run is not known, so nothing set there is a constant.
            branches = kind not in ("program", "compound_statement")
            self.branching += branches
            for child in node.children:
                if child.is_named:
                    self.walk(child, depth + 1)
                elif child.type not in _JOINTS:
                    self.doubt(f"it contains {child.type!r} where bruno does not expect it")
            self.branching -= branches
        elif kind == "pipeline":
            self.pipeline(node, depth)
        elif kind == "redirected_statement":
            self.redirected(node, depth)
        elif kind == "variable_assignment":
            self.assignment(node, depth, None)
        elif kind == "variable_assignments":
            for child in node.named_children:
                self.walk(child, depth + 1)
        elif kind in ("declaration_command", "unset_command"):
            self.declaration(node, depth)
        elif kind in ("for_statement", "case_statement", "case_item"):
            self.words_and_bodies(node, depth)
        elif kind == "test_command":
            self.arithmetic = True
            self.operands(node, depth)
        elif kind in _ARITHMETIC:
            self.arithmetic = True
            self.operands(node, depth)
        elif kind == "function_definition":
            self.function(node, depth)
        elif kind != "comment":
            self.doubt(f"it contains {kind.replace('_', ' ')}, which bruno does not read")
            for child in node.named_children:
                if child.type != kind:
                    self.walk(child, depth + 1)
        if self.arithmetic and self.code_in_quotes:
            self.doubt("quoted text with code in it may be evaluated as arithmetic")

    # -- statements -------------------------------------------------------------------------------------------------

    def command(self, node: Node, depth: int, extra: list[Redirect] | None = None) -> Simple:
        simple = Simple(words=[], redirects=list(extra or ()), source=self.text(node))
        end = -1
        for child in node.named_children:
            kind = child.type
            if kind == "variable_assignment":
                self.assignment(child, depth, simple)
                continue
            if kind.endswith("redirect"):
                self.redirect(child, simple, depth)
                continue
            if child.start_byte == end:
                self.doubt("two words touch in a way that bruno does not read")
            end = child.end_byte
            inner = child.named_children[0] if kind == "command_name" and child.named_children else child
            simple.words.extend(self.words(inner, depth))
        if simple.words and simple.words[0].text in _RESERVED and node.children[0].type.endswith("redirect"):
            self.doubt("a word of the shell's own stands after a redirection")
        if simple.words and simple.words[0].text in _EVALUATING and any("$(" in w.text or "`" in w.text for w in simple.words[1:]):
            self.doubt("a builtin may evaluate code in its arguments")
        self.script.commands.append(simple)
        return simple

    def pipeline(self, node: Node, depth: int) -> None:
        """Commands joined by pipes: each learns what is known of its input."""
        said: str | None = None
        feeders: tuple[str, ...] = ()
        self.branching += 1
        for index, child in enumerate(child for child in node.named_children if child.type != "comment"):
            start = len(self.script.commands)
            self.walk(child, depth + 1)
            made = self.script.commands[start:]
            if index:
                for simple in made:
                    if not simple.piped and simple.stdin is None:
                        simple.piped, simple.stdin, simple.feeders = True, said, feeders
            last = made[-1] if len(made) == 1 else None
            said = output_of(last) if last else None
            feeders += tuple(simple.words[0].text for simple in made if simple.words)
        self.branching -= 1

    def redirected(self, node: Node, depth: int) -> None:
        body = node.child_by_field_name("body")
        if body is None and not re.match(r"\s*(?:\d+|\{\w+\})?&?[<>]", self.text(node)):
            self.doubt("it holds a redirection without a command")
        start = len(self.script.commands)
        if body is not None:
            self.walk(body, depth + 1)
        made = self.script.commands[start:]
        if not made:
            made = [Simple(words=[], source=self.text(node))]
            self.script.commands.extend(made)
        for child in node.named_children:
            if child.type.endswith("redirect"):
                for simple in made:
                    before = len(simple.words)
                    self.redirect(child, simple, depth)
                    if len(simple.words) > before and len(made) > 1:
                        self.doubt("words follow a redirection of several commands")

    def redirect(self, node: Node, simple: Simple, depth: int) -> None:
        kind = node.type
        if kind == "heredoc_redirect":
            self.heredoc(node, simple, depth)
            return
        words = [child for child in node.named_children if child.type != "file_descriptor"]
        if kind == "herestring_redirect":
            word = self.joined(words[0], depth) if words else Word(UNKNOWN)
            simple.stdin, simple.piped = (word.text + "\n" if word.known else None), True
        else:
            op = next((child.type for child in node.children if not child.is_named), "?")
            simple.redirects.append(Redirect(op, self.joined(words[0], depth) if words else None))
            if op == "<":
                simple.piped = True
        for extra in words[1:]:  # the grammar gives a redirection the arguments that follow it: `xargs < list rm`
            simple.words.extend(self.words(extra, depth))

    def heredoc(self, node: Node, simple: Simple, depth: int) -> None:
        simple.piped = True
        start = next((child for child in node.named_children if child.type == "heredoc_start"), None)
        body = next((child for child in node.named_children if child.type == "heredoc_body"), None)
        if start is not None and body is not None:
            text = self.text(body)
            literal = self.text(start)[:1] in "'\"\\" or not re.search(r"[$`\\]", text)
            simple.stdin = text if literal else re.sub(r"\$\w+|\$\{\w+\}", UNKNOWN, text) + UNKNOWN
            if not literal:
                self.operands(body, depth)
        for child in node.named_children:
            if child.type in ("heredoc_start", "heredoc_body", "heredoc_end", "file_descriptor"):
                continue
            if child.type.endswith("redirect"):
                self.redirect(child, simple, depth)
                continue
            if child.type in _WORDS:
                simple.words.extend(self.words(child, depth))
                continue
            before = len(self.script.commands)
            self.walk(child, depth + 1)
            for made in self.script.commands[before : before + 1]:
                made.piped, made.stdin = True, output_of(simple)

    def assignment(self, node: Node, depth: int, simple: Simple | None) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        said = Word("") if value is None else self.joined(value, depth)
        target = self.text(name) if name is not None else "?"
        if simple is not None:
            simple.assigns.append((target, said))
            return
        self.script.commands.append(Simple(words=[], assigns=[(target, said)], source=self.text(node)))
        self.learn(target, said)

    def learn(self, name: str, value: Word) -> None:
        """Remember a variable that has one value from here to the end; any second mention by name may change it."""
        mentions = len(re.findall(rf"(?<![\w$}}{{]){re.escape(name)}\b", self.source.decode("utf-8", "replace")))
        once = mentions == 1 and not self.branching and value.known and not value.glob
        self.constants[name] = value.text if once else None

    def declaration(self, node: Node, depth: int) -> None:
        program = self.text(node).split(None, 1)[0]
        simple = Simple(words=[Word(program)], source=self.text(node))
        for child in node.named_children:
            if child.type == "variable_assignment":
                self.assignment(child, depth, simple)
                self.learn(*simple.assigns[-1])
            else:
                simple.words.extend(self.words(child, depth))
        self.script.commands.append(simple)

    def words_and_bodies(self, node: Node, depth: int) -> None:
        self.branching += 1
        values: list[Word] = []
        variable = None
        for child in node.named_children:
            if child.type == "variable_name":
                variable = self.text(child)
            elif child.type in ("do_group", "case_item", "compound_statement") or child.type in _STATEMENTS:
                if variable and variable not in self.constants:
                    single = values[0] if len(values) == 1 and not values[0].glob else None
                    self.constants[variable] = single.text if single and single.known else None
                self.walk(child, depth + 1)
            else:
                values.extend(self.words(child, depth))
        self.branching -= 1

    def function(self, node: Node, depth: int) -> None:
        self.doubt("it defines a function")
        name = node.child_by_field_name("name")
        start = len(self.script.commands)
        body = node.child_by_field_name("body")
        if body is not None:
            self.walk(body, depth + 1)
        called = {simple.words[0].text for simple in self.script.commands[start:] if simple.words}
        if name is not None and self.text(name) in called:
            self.script.commands.append(Simple(words=[Word(":(){"), Word(self.text(name))], source=self.text(node)))

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

    # -- words ------------------------------------------------------------------------------------------------------

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
        kind = node.type
        raw = self.text(node)
        if kind in ("word", "number", "variable_name", "special_variable_name", "file_descriptor", "extglob_pattern", "regex"):
            text, glob = unescaped(raw)
            return Word(text, glob=glob, quoted="\\" in raw)
        if kind == "raw_string":
            self.note_code(node)
            return Word(raw[1:-1], quoted=True)
        if kind == "ansi_c_string":
            self.note_code(node)
            return Word(decoded_ansi(raw[2:-1]), quoted=True)
        if depth > MAX_DEPTH:
            self.doubt("it is nested too deeply or too long")
            return Word(UNKNOWN, splits=True)
        if kind in ("string", "translated_string"):
            return self.string(node, depth)
        if kind == "concatenation":
            return self.concatenated(node, depth)
        if kind in ("simple_expansion", "expansion"):
            return self.expansion(node, depth)
        if kind in ("command_substitution", "process_substitution"):
            return self.substitution(node, depth)
        if kind == "arithmetic_expansion":
            self.arithmetic = True
            self.operands(node, depth + 1)
            return Word("1" + UNKNOWN)
        if kind == "brace_expression":
            return Word("1" + UNKNOWN)
        if kind == "array":
            for child in node.named_children:
                self.joined(child, depth + 1)
            return Word(UNKNOWN, splits=True)
        if kind == "subscript":
            self.operands(node, depth + 1)
            return Word(UNKNOWN, splits=True)
        self.doubt(f"it contains {kind.replace('_', ' ')}, which bruno does not read")
        self.operands(node, depth + 1)
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
            piece.text if isinstance(piece, Word) else re.sub(r'\\([$`"\\])', r"\1", piece.replace("\\\n", "")) for piece in pieces
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
        if value is None:
            return Word(UNKNOWN, splits=not quoted)
        if not quoted and re.search(r"[\s*?\[]", value):
            self.doubt("it splits a variable into words")
        return Word(value, glob=not quoted and bool(re.search(r"[*?\[]", value)))

    def substitution(self, node: Node, depth: int) -> Word:
        """`$(...)`, backticks, `<(...)`: the commands inside count; their output is known for `echo` and the like."""
        raw = self.text(node)
        if raw.startswith("`") and "\\" in raw:
            self.doubt("it nests backticks")
        start = len(self.script.commands)
        self.branching += 1
        for child in node.named_children:
            if child.type.endswith("redirect"):
                self.redirect(child, Simple(words=[]), depth)
            else:
                self.walk(child, depth + 1)
        self.branching -= 1
        made = self.script.commands[start:]
        if node.type == "process_substitution":
            return Word("/dev/fd/63", quoted=True)
        quoted = node.parent is not None and node.parent.type == "string"
        said = output_of(made[-1]) if made and node.named_child_count == 1 and node.named_children[0].type in _SAYING else None
        if said is None or UNKNOWN in said:
            return Word(UNKNOWN, splits=not quoted)
        said = said.rstrip("\n")
        if not quoted and re.search(r"\s", said):
            self.doubt("it splits the output of a command into words")
        return Word(said)


# Builtins that evaluate `a[$(command)]` in a variable's name or in arithmetic.
_EVALUATING = frozenset("test [ let read unset printf mapfile readarray getopts wait declare typeset export local readonly eval".split())
_WORDS = frozenset("word string raw_string ansi_c_string concatenation simple_expansion expansion number command_substitution".split())
_RESERVED = frozenset("time coproc select then do done fi else elif esac in if for while until case function { } ! [[ ]]".split())
_SAYING = frozenset({"command", "pipeline", "redirected_statement"})
_STATEMENTS = frozenset(
    "command pipeline list redirected_statement subshell if_statement while_statement for_statement case_statement negated_command "
    "variable_assignment variable_assignments declaration_command unset_command test_command function_definition".split()
)
_RANGE_ONLY = re.compile(r"\{-?\w+\.\.-?\w+(?:\.\.-?\d+)?\}")
