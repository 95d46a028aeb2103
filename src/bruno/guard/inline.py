"""Code inside an argument (SQL, awk, sed, Python): whether it surely only reads. Pure; parses, never runs.

Each reader knows a small harmless part of its language; everything else is a problem, told in words. `embedded_commands`
finds the quoted text of code, since a shell command may stand in it (`os.system("...")`).
"""

from __future__ import annotations

import ast
import re

from bruno.guard.words import names

_SQL_READS = names("select explain show values describe desc")
_SQL_WRITES = re.compile(
    r"\b(insert|update|delete|drop|truncate|alter|create|replace|into|copy|call|do|grant|revoke|attach|detach|vacuum|reindex|"
    r"merge|set|reset|lock|comment|refresh|cluster|import|load|execute|prepare|notify|listen|security|rename|begin|commit|"
    r"rollback|savepoint|release|analyze|checkpoint|discard|for\s+(?:update|share|no|key))\b"
)
_SQL_CALLS = names(
    "count sum avg min max round abs coalesce ifnull nullif length lower upper trim substr substring date time "
    "datetime julianday strftime now total group_concat string_agg json_extract json_each cast typeof printf "
    "format row_number rank over in and or not exists values as on using from where by when then else instr like "
    "glob extract to_char age pg_size_pretty pg_database_size pg_relation_size pg_total_relation_size "
    "current_date current_timestamp version"
)
_PRAGMAS = re.compile(
    r"pragma\s+(?:main\.)?(table_info|table_list|index_list|database_list|page_count|page_size|journal_mode|integrity_check|"
    r"quick_check|user_version|foreign_key_list|compile_options|freelist_count)\s*(?:\([\w\"']*\))?"
)
_DOT_READS = re.compile(
    r"\.(tables|schema|indexes|databases|dbinfo|show|headers on|headers off|mode \w+|fullschema|stats|width [\d ]+)(?: [\w%]+)?"
)
_PSQL_READS = re.compile(r"\\(?:d[a-zA-Z]*\+?|l\+?|conninfo|x|timing|dt\+?|du|dn|df|z|sf)(?: [\w.*\"]+)?")

_AWK_NAMES = names(
    "length substr index split sub gsub match sprintf tolower toupper int log exp sqrt print printf if while for"
)
_SED = re.compile(
    r"(?:(?:\d+|\$|/[^/\n]*/I?)(?:,(?:\+?\d+|\$|~\d+|/[^/\n]*/I?))?!?)?\s*"
    r"(?:[pdqQ=gGhHxnNlD]|s(?P<d>[/|#,:@!])(?:(?!(?P=d))[^\\\n]|\\.)*(?P=d)(?:(?!(?P=d))[^\\\n]|\\.)*(?P=d)[gpiI0-9]*|y/[^/\n]*/[^/\n]*/)?"
)

_PY_MODULES = names(
    "torch sys json platform math os time datetime re collections itertools statistics psutil numpy transformers "
    "accelerate safetensors optuna datasets bitsandbytes sklearn pandas flash_attn vllm peft triton bruno "
    "importlib.metadata socket shutil"
)
_PY_CALLS = re.compile(
    r"(?:print|len|str|int|float|sorted|list|dict|set|tuple|sum|min|max|round|range|repr|type|bool|abs|enumerate|zip|any|all|"
    r"torch\.cuda\.\w*(?:is_available|device_count|get_device_name|get_device_properties|get_device_capability|mem_get_info|"
    r"memory_allocated|memory_reserved|max_memory_allocated|current_device|is_bf16_supported|memory_summary|get_arch_list)|"
    r"torch\.backends\.\w+\.(?:version|is_available)|torch\.version\.\w+|json\.dumps|json\.loads?|platform\.\w+|os\.(?:getcwd|cpu_count|listdir|"
    r"getpid|getenv|uname|getloadavg|path\.\w+)|os\.environ\.get|sys\.(?:getsizeof|getrecursionlimit)|shutil\.(?:disk_usage|which)|"
    r"math\.\w+|time\.time|socket\.gethostname|importlib\.metadata\.version|psutil\.(?:cpu_count|cpu_percent|virtual_memory|disk_usage)|"
    r"datetime\.datetime\.(?:now|utcnow)|statistics\.\w+)"
)
_PY_READABLE = re.compile(
    r"(?!.*(?:secret|passw|credential|\.ssh|\.aws|\.kube|\.docker|auth|(?<!tokenizer_)key|token(?!i[sz]er)))"
    r"[\w./~-]+\.(?:json|jsonl|txt|log|toml|ya?ml|md|csv|py)"
)
_PY_METHODS = names(
    "read readlines readline get keys values items split strip join format upper lower startswith endswith isoformat count index"
)
_PY_KEYWORDS = names("sep end flush indent sort_keys reverse ndigits default_flow_style start")
_PY_NODES = (
    ast.Module, ast.Expr, ast.Import, ast.ImportFrom, ast.alias, ast.Call, ast.Name, ast.Attribute, ast.Constant,
    ast.Load, ast.Store,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.JoinedStr,
    ast.FormattedValue, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Subscript, ast.Slice, ast.keyword, ast.Assign, ast.ListComp,
    ast.GeneratorExp, ast.comprehension, ast.For, ast.If, ast.Starred, ast.Assert,
)  # fmt: skip


def inline_problem(kind: str, code: str) -> str:
    """Why this code is not surely harmless; empty when it is. An unknown kind is always a problem."""
    reader = _READERS.get(kind)
    if reader is None or len(code) > 2000 or not code.isascii():
        return "it is code that bruno does not read"
    return reader(code)


def embedded_commands(code: str) -> list[str]:
    """Quoted texts in code that may be shell commands, and lists of words joined (`["rm", "-rf", "x"]`)."""
    texts = [match[1] or match[2] for match in re.finditer(r"\"((?:[^\"\\]|\\.)+)\"|'((?:[^'\\]|\\.)+)'", code)]
    lists = re.findall(r"[\[(]((?:\s*(?:\"[^\"]*\"|'[^']*')\s*,?)+)[\])]", code)
    joined = [" ".join(a or b for a, b in re.findall(r"\"([^\"]*)\"|'([^']*)'", one)) for one in lists]
    return [text for text in dict.fromkeys(texts + joined) if len(text) > 1][:16]


def sql_danger(code: str) -> tuple[str, str]:
    """("typed_yes", reason) for statements that lose data for good, ("ask", reason) for other writes, else ("", "").

    Read with and without what looks like a comment, since databases disagree about what one is.
    """
    readings = [_SQL_TOKENS.sub(_token, code)]
    if re.search(r"--|/\*|#|\$\w*\$", code):
        readings += [re.sub(r"--|/\*!?\d*|\*/|#", " ", code)]
    found = [_statement_danger(part.strip().lower()) for text in readings for part in text.split(";")]
    return max(found, key=lambda one: ("", "ask", "typed_yes").index(one[0]), default=("", ""))


def _statement_danger(statement: str) -> tuple[str, str]:
    if re.search(r"(?:^|\n)\s*(?:\\!|\.(?:shell|system)\b)|\\gexec|\bto\s+program\b|\bfrom\s+program\b", statement):
        return "typed_yes", "runs shell commands from inside the database client, or on its server"
    if re.search(r"\b(drop|truncate)\b", statement) or statement.startswith((".restore", ".clone")):
        return "typed_yes", "drops or empties tables; the rows cannot be brought back"
    if re.search(r"\b(delete\s+from|update)\b", statement) and not re.search(
        r"\bwhere\b(?!\s+(?:1\s*=\s*1|true|1)\s*$)", statement
    ):
        return "typed_yes", "changes or deletes every row of the table, since no WHERE limits it; this cannot be undone"
    if re.search(r"\b(delete|pg_terminate_backend|pg_cancel_backend|alter)\b", statement):
        return "typed_yes", "deletes or changes data; this cannot be undone"
    return ("ask", "writes to the database") if _SQL_WRITES.search(statement) else ("", "")


# One pass from left to right, so that a quote in a comment or a comment in a quote hides nothing.
_SQL_TOKENS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)


def _token(match: re.Match[str]) -> str:
    """Literals become '', quoted names lose their quotes, comments become a blank."""
    text = match[0]
    if text[0] == "'":
        return "''"
    return f" {text[1:-1]} " if text[0] in '"`[' else " "


def _sql(code: str) -> str:
    if re.search(r"\$\w*\$|/\*|--|#", re.sub(r"'[^']*'", "", code)) or re.search(r"/\*|--", code):
        return "it holds comments or dollar quotes"
    plain = _SQL_TOKENS.sub(_token, code).lower()
    for statement in (part.strip() for part in plain.split(";")):
        if not statement or _PRAGMAS.fullmatch(statement):
            continue
        head = re.match(r"\w+", statement)
        if not head or (head[0] not in _SQL_READS and head[0] != "with"):
            return "it is not a plain SELECT"
        if _SQL_WRITES.search(statement):
            return "it may write to the database"
        unknown = set(re.findall(r"\b(\w+)\s*\(", statement)) - _SQL_CALLS
        if unknown:
            return f"it calls {sorted(unknown)[0]}, which bruno does not know"
    return ""


def _sqlite(code: str) -> str:
    lines = [line.strip() for line in code.strip().split("\n")]
    if all(_DOT_READS.fullmatch(line) for line in lines if line):
        return ""
    return _sql(code) if not code.lstrip().startswith(".") else "it is a command that bruno does not know"


def _psql(code: str) -> str:
    if _PSQL_READS.fullmatch(code.strip()):
        return ""
    return _sql(code) if "\\" not in code else "it is a command that bruno does not know"


def _awk(code: str) -> str:
    # Read without parting strings, expressions and divisions: a clever quote would part them elsewhere than awk does.
    if re.search(r"\b(?:system|getline|close|fflush|ARGV|ENVIRON|PROCINFO|function|func|load|include)\b|@", code):
        return "its program may run commands or read other files"
    if "|" in code.replace("||", ""):
        return "its program opens a pipe"
    if re.search(r">(?!=)", code.partition("print")[2]):
        return "its program may write to a file"
    strange = set(re.findall(r"\b([A-Za-z_]\w*)\s*\(", code)) - _AWK_NAMES
    return f"its program calls {sorted(strange)[0]}" if strange else ""


def _sed(code: str) -> str:
    if re.search(r"\[[^\]]*[/|#,:@!;\n]", code):  # a delimiter in brackets: sed would part the script elsewhere
        return "its script is not a plain print or substitution"
    for part in re.split(r"[;\n]", code):
        if not _SED.fullmatch(part.strip()):
            return "its script is not a plain print or substitution"
    return ""


def _python(code: str) -> str:
    try:
        tree = ast.parse(code.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is not Python that can be parsed"
    imported: dict[str, str] = {}
    nodes = list(ast.walk(tree))
    for node in nodes:
        problem = (
            _import_problem(node, imported) if isinstance(node, ast.Import | ast.ImportFrom) else _node_problem(node)
        )
        if problem:
            return problem
    for node in nodes:
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
            and (node.id in imported or _PY_CALLS.fullmatch(node.id))
        ):
            return f"it gives {node.id} another meaning"
        if isinstance(node, ast.Call) and not _known_call(node, imported):
            return f"it calls {ast.unparse(node.func)[:60]}"
    return ""


def _import_problem(node: ast.Import | ast.ImportFrom, imported: dict[str, str]) -> str:
    """Only modules on the list, by name; what they are called here goes into `imported`."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            if (node.module or "") not in _PY_MODULES or alias.name == "*":
                return f"it imports from {node.module}"
            imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        else:
            top = alias.name.split(".")[0]
            if alias.name not in _PY_MODULES and top not in _PY_MODULES:
                return f"it imports {alias.name}"
            imported[alias.asname or top] = alias.name if alias.asname else top
    return ""


def _node_problem(node: ast.AST) -> str:
    """What is wrong with a node by itself: its kind, a reach into private parts, an argument that may be called back."""
    if not isinstance(node, _PY_NODES):
        return f"it uses {type(node).__name__}, which bruno does not read"
    if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__version__":
        return f"it reaches into {node.attr}"
    if isinstance(node, ast.Name) and node.id.startswith("__"):
        return f"it uses {node.id}"
    if isinstance(node, ast.keyword) and node.arg not in _PY_KEYWORDS:
        return f"it passes {node.arg}"
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        return "it assigns to something that is not its own"
    return ""


def _known_call(node: ast.Call, names: dict[str, str]) -> bool:
    dotted = _dotted(node.func, names)
    if dotted == "open":  # with a mode it may write
        path = node.args[0] if len(node.args) == 1 and not node.keywords else None
        return isinstance(path, ast.Constant) and bool(_PY_READABLE.fullmatch(str(path.value)))
    if dotted and _PY_CALLS.fullmatch(dotted):
        return True
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in _PY_METHODS
        and dotted.split(".")[0] not in _PY_MODULES
    )


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


_READERS = {"sql": _sql, "sqlite": _sqlite, "psql": _psql, "awk": _awk, "sed": _sed, "python": _python}
