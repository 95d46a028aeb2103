"""A shell line, read into simple commands without running anything. Pure; fails closed.

tree-sitter-bash gives the tree; only node types on a short list are believed. Whatever is not surely understood becomes a
*doubt*: the caller then treats the whole line as one that cannot be analysed. Constants are followed (`X=rm; $X file`,
`$(echo rm)`, a literal piped into a shell), so that hiding a word does not hide it from the rules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bruno.guard.expansions import MAX_DEPTH, WordReader
from bruno.guard.outputs import output_of
from bruno.guard.parse import parsed
from bruno.guard.script import Redirect, Script, Simple
from bruno.guard.words import STEERING, UNKNOWN, Word, names

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_BYTES = 4096
MAX_COMMANDS = 200

# Nodes whose children are walked one after the other, and what may stand between them.
_GROUPS = names(
    "program list compound_statement subshell do_group else_clause elif_clause negated_command if_statement while_statement"
)
_JOINTS = names("; & && || | |& ( ) { } (( )) ! if then fi else elif while until do done in") | {"\n"}
_NO_COMMAND = names("test_command compound_statement")
_ARITHMETIC = names(
    "test_command binary_expression unary_expression postfix_expression ternary_expression parenthesized_expression number "
    "variable_name word simple_expansion expansion string string_content raw_string concatenation test_operator regex "
    "extglob_pattern command_substitution arithmetic_expansion subscript special_variable_name ansi_c_string brace_expression"
)
_WORDS = names(
    "word string raw_string ansi_c_string concatenation simple_expansion expansion number command_substitution"
)
_BODIES = names(
    "do_group case_item compound_statement command pipeline list redirected_statement subshell if_statement while_statement "
    "for_statement case_statement negated_command variable_assignment variable_assignments declaration_command unset_command "
    "test_command function_definition"
)
# Builtins that evaluate `a[$(command)]` in a variable's name or in arithmetic, and those that may set a variable of any name.
_EVALUATING = names(
    "test [ let read unset printf mapfile readarray getopts wait declare typeset export local readonly eval"
)
_SETTING = _EVALUATING - names("test [ wait") | names("source . for select trap coproc")
_RESERVED = names("time coproc select then do done fi else elif esac in if for while until case function { } ! [[ ]]")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_CUT_REDIRECT = re.compile(r"[<>][|&]?[ \t]*(?:\n|$)")
_SINGLE = re.compile(r"\[(?!\[)")
_QUIET = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"|\$\([^()]*\)|`[^`]*`|\\.", re.DOTALL)
_MENTION = re.compile(r"(?<![\w$}{])[A-Za-z_]\w*")
_LONE_ESCAPE = re.compile(r"(?:^|[\s;&|(){}<>])\\[ \t\n]")


def read_script(text: str) -> Script:
    """Read `text` as bash would. Never raises for what it says; see `Script.doubts`."""
    script = Script(doubts=list(_doubts_of_text(text)))
    source = text.encode("utf-8", "surrogatepass")[:MAX_BYTES]
    source, root, script.cut = parsed(source)
    if script.cut:
        script.doubts.append("it is too tangled to be read to its end")
    if root.has_error:
        script.doubts.append("it is not complete shell syntax")
    reader = _Reader(source, script)
    reader.walk(root, 0)
    reader.finish(root)
    return script


def _doubts_of_text(text: str) -> Iterator[str]:
    """What makes a text unfit for analysis before it is parsed."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        yield f"it is longer than {MAX_BYTES} bytes"
    if not text.isascii():
        yield "it contains characters that are not ASCII"
    if _CONTROL.search(text):
        yield "it contains control characters"
    if "\\\n" in text:
        yield "it continues a line with a backslash"
    if _CUT_REDIRECT.search(text):
        yield "a redirection is cut off by the end of a line"
    if _LONE_ESCAPE.search(text):
        yield "it escapes a blank between words"


class _Reader(WordReader):
    """Walks one tree, statement by statement."""

    def walk(self, node: Node, depth: int) -> None:
        kind = node.type
        if depth > MAX_DEPTH or len(self.script.commands) > MAX_COMMANDS:
            self.doubt("it is nested too deeply or too long")
            return
        if kind in _GROUPS:
            self.group(node, depth)
        elif kind in _ARITHMETIC:
            if (
                kind == "test_command"
                and _SINGLE.match(text := self.text(node))
                and re.search(r"[<>]", _QUIET.sub("", text))
            ):
                self.doubt(
                    "a comparison in [ ] redirects: it may empty a file"
                )  # the grammar takes `[ a > b ]` for one
            self.arithmetic = True
            self.operands(node, depth)
        elif kind in _STATEMENTS:
            _STATEMENTS[kind](self, node, depth)
        elif kind != "comment":
            self.doubt(f"it contains {kind.replace('_', ' ')}, which bruno does not read")
            for child in node.named_children:
                self.walk(child, depth + 1)

    def finish(self, root: Node) -> None:
        """Doubts that can only be told once everything was read."""
        commands = self.script.commands
        if self.arithmetic and self.code_in_quotes:
            self.doubt("quoted text with code in it may be evaluated as arithmetic")
        if self.followed and any(
            one.words and (one.words[0].text in _SETTING or not one.words[0].known) for one in commands
        ):
            self.doubt("a variable may be set again where it cannot be seen")
        parts = [child for child in root.named_children if child.type != "comment"]
        if not commands and not all(child.type in _NO_COMMAND and child.named_children for child in parts):
            self.doubt("no command can be found in it")

    def group(self, node: Node, depth: int) -> None:
        """Statements in a row. Whether a later part of a list or branch runs is not known: nothing set there is a constant."""
        if node.type == "compound_statement" and not node.named_children:
            self.doubt("it runs a command that is named {}")
        branches = node.type not in ("program", "compound_statement")
        self.branching += branches
        self.looping += node.type == "while_statement"
        for child in node.children:
            if child.type == "&" and self.looping:
                self.doubt("it starts programs in the background for as long as a loop runs")
            if child.is_named:
                self.walk(child, depth + 1)
            elif child.type not in _JOINTS:
                self.doubt(f"it contains {child.type!r} where bruno does not expect it")
        self.branching -= branches
        self.looping -= node.type == "while_statement"

    def command(self, node: Node, depth: int) -> None:
        simple = Simple(words=[], source=self.text(node))
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
        evaluates = bool(simple.words) and simple.words[0].text in _EVALUATING
        if evaluates and any("$(" in word.text or "`" in word.text for word in simple.words[1:]):
            self.doubt("a builtin may evaluate code in its arguments")
        if evaluates and any(not word.known for word in simple.words) and _by_name(simple.words):
            self.arithmetic = True  # a[$(command)] in a variable's name is evaluated too
        if simple.words and simple.words[0].text == "coproc" and any(word.text in ("{", "(") for word in simple.words):
            self.doubt("it names a coprocess")
        self.script.commands.append(simple)

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
            if "`" in text and self.text(start)[:1] not in "'\"\\":
                self.doubt("it holds backticks in a here-document")  # the grammar does not read them there
                for inner in re.findall(r"`([^`]*)`?", text)[:8]:
                    self.script.commands.append(Simple([Word("sh"), Word("-c"), Word(inner)], source=inner))
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

    def assignment(self, node: Node, depth: int, simple: Simple | None = None) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        said = Word("") if value is None else self.joined(value, depth)
        target = self.text(name) if name is not None else "?"
        if simple is not None:
            simple.assigns.append((target, said))
            return
        self.script.commands.append(Simple(words=[], assigns=[(target, said)], source=self.text(node)))
        self.learn(target, said)

    def row(self, node: Node, depth: int) -> None:
        """`a=1 b=2`: assignments side by side."""
        for child in node.named_children:
            self.walk(child, depth + 1)

    def learn(self, name: str, value: Word) -> None:
        """Remember a variable that has one value from here to the end; any second mention by name may change it."""
        if self.mentions is None:
            self.mentions = Counter(_MENTION.findall(self.source.decode("utf-8", "replace")))
        once = self.mentions[name] == 1 and not self.branching and value.known and not value.glob
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
        if any(not word.known for word in simple.words):
            self.arithmetic = True  # unset "$x" evaluates a[$(command)] in the name
        self.script.commands.append(simple)

    def words_and_bodies(self, node: Node, depth: int) -> None:
        self.branching += 1
        values: list[Word] = []
        variable = None
        for child in node.named_children:
            if child.type == "variable_name":
                variable = self.text(child)
                if STEERING.fullmatch(variable):
                    assigned = Simple(words=[], assigns=[(variable, Word(UNKNOWN))], source=f"for {variable}")
                    self.script.commands.append(assigned)
            elif child.type in _BODIES:
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


def _by_name(words: list[Word]) -> bool:
    """Whether a builtin takes its unknown argument for a variable's name."""
    return words[0].text not in ("test", "[", "printf") or any(word.text == "-v" for word in words)


_STATEMENTS = {
    "command": _Reader.command,
    "pipeline": _Reader.pipeline,
    "redirected_statement": _Reader.redirected,
    "variable_assignment": _Reader.assignment,
    "variable_assignments": _Reader.row,
    "declaration_command": _Reader.declaration,
    "unset_command": _Reader.declaration,
    "for_statement": _Reader.words_and_bodies,
    "case_statement": _Reader.words_and_bodies,
    "case_item": _Reader.words_and_bodies,
    "function_definition": _Reader.function,
}
