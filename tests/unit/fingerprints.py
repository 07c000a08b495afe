"""The source of every function that cached results come from, as a hash: `python tests/unit/fingerprints.py` writes it.

It refuses a function whose source changed while its number in `anita_utils/cache.py` did not. Raise the number where
results change; where they do not (a name, a message), give the function's name as an argument, and say in the commit
how you know.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import json
import sys
import textwrap
import tokenize
from pathlib import Path

from anita_utils.cache import FUNCTIONS

FILE = Path(__file__).with_name("fingerprints.json")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def numbers() -> dict[str, int]:
    """Each function's number."""
    return {name: number for functions in FUNCTIONS.values() for name, number in functions.items()}


def fingerprint(name: str) -> str:
    """The hash of the source of a function, class or module, without comments, docstrings and layout."""
    found = importlib.import_module("anita_utils")
    for part in name.split("."):
        package = hasattr(found, "__path__")
        found = importlib.import_module(f"{found.__name__}.{part}") if package else inspect.getattr_static(found, part)
    for wrapper in ("__func__", "func", "__wrapped__"):  # a class method, a cached property, a context manager
        found = getattr(found, wrapper, found)
    source = textwrap.dedent(inspect.getsource(found))
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for number in range(docstring.lineno - 1, docstring.end_lineno):
                lines[number] = "\n"
    tokens = tokenize.generate_tokens(io.StringIO("".join(lines)).readline)
    code = "".join("".join(token.string for token in tokens if token.type not in NO_CODE).split())
    return hashlib.sha256(code.replace("{{", "{").replace("}}", "}").encode()).hexdigest()[:12]


def main(unchanged: list[str]) -> int:
    known = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    found = {name: [number, fingerprint(name)] for name, number in sorted(numbers().items())}
    for name, (number, code) in found.items():
        before = known.get(name, [number, code])
        if before[0] == number and before[1] != code and name not in unchanged:
            print(f"{name}: its source changed, its number ({number}) did not: raise it in anita_utils/cache.py")
            return 1
    rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
