"""tree-sitter-bash with a bound on its work: no line of shell, however it is built, takes it long to read. Pure.

The parser is quick on shell and quadratic on what is none: 4 KB of `x)` cost it a quarter of a second in search of a way on.
So a long text is read from its beginning in growing parts, and one that is mostly errors is not read to its end. What was left
out is never believed: the caller is told, and the line counts as one that cannot be analysed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Point, Tree

_PARTS = (768, 1536)
_SHORT = 512
_MOST_ERRORS = 12
_MOST = {b"`": 64, b"$(": 64, b"|": 256}
_CHUNK = 128


@lru_cache(maxsize=1)
def _parser() -> Parser:
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))


def parsed(source: bytes) -> tuple[bytes, Node, bool]:
    """What was read of `source`, its tree, and whether something was left out."""
    crowded = any(source.count(sign) > most for sign, most in _MOST.items())
    whole, source = source, source[:_SHORT] if crowded else source
    for size in _PARTS:
        if len(source) > size:
            tree, _ = _bounded(source[:size])
            # What is still open after so long began as an error, or is a text too long to be told from one.
            long_open = size == _PARTS[-1] and _first_error(tree.root_node) < _PARTS[0]
            if long_open or _errors(tree.root_node) > _MOST_ERRORS:
                return source[:size], tree.root_node, True
    tree, ended = _bounded(source)
    return source, tree.root_node, ended or len(source) < len(whole)


def _bounded(source: bytes) -> tuple[Tree, bool]:
    """The tree; a text over which the parser goes back again and again ends for it where it then is."""
    left = 40 * (len(source) // _CHUNK) + 200

    def read(offset: int, point: Point) -> bytes:
        nonlocal left
        del point
        left -= 1
        return source[offset : offset + _CHUNK] if left > 0 else b""

    tree = _parser().parse(read)
    return tree, left <= 0


def _first_error(root: Node) -> int:
    """The byte at which the first error begins; past everything when there is none."""
    node = root
    while node.has_error and not node.is_error:
        inner = next((child for child in node.children if child.has_error or child.is_missing), None)
        if inner is None:
            break
        node = inner
    return node.start_byte if node.has_error or node.is_missing else 1 << 30


def _errors(root: Node) -> int:
    """How many places of the tree are errors, counted as far as it matters."""
    if not root.has_error:
        return 0
    found, waiting = 0, [root]
    while waiting and found <= _MOST_ERRORS:
        node = waiting.pop()
        found += node.is_error or node.is_missing
        waiting.extend(child for child in node.children if child.has_error or child.is_missing)
    return found
