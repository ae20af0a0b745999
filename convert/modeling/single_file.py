"""The one file of code that goes with a checkpoint: a family's module with the modules of ours that it imports in it.

It needs torch and transformers only, so that `trust_remote_code=True` loads the checkpoint where gqa is not installed.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from gqa.convert.modeling import OWN, classes

_OURS = "gqa."


def file_name(model_type: str) -> str:
    """What the file is called beside the weights."""
    return f"modeling_{model_type}.py"


def source(model_type: str) -> str:
    """The file's text, the same whenever it is made."""
    parts = [Path(_origin(module)).read_text(encoding="utf-8") for module in _with_imports(OWN[model_type])]
    trees = [ast.parse(part) for part in parts]
    doc = ast.get_docstring(trees[-1])
    assert doc, "house rule: a module says what it owns"
    imports = sorted({ast.unparse(node) for tree in trees for node in _imports(tree) if not _module(node)})
    plain = [line for line in imports if line.startswith("import ")]
    named = [line for line in imports if line.startswith("from ")]
    bodies = [_body(part, tree) for part, tree in zip(parts, trees, strict=True)]
    opening = (
        f'"""{doc}\n\nWritten by gqa, whose modules it joins in one file; it needs torch and transformers only.\n"""'
    )
    return "\n\n\n".join(["\n".join([opening, "", *plain, *named]), *bodies]) + "\n"


def settings(model_type: str, architectures: Sequence[str] = ()) -> dict[str, object]:
    """What config.json says of it: which of its classes the Auto classes are to take.

    Args:
        model_type: of ours.
        architectures: the classes that were said to be meant; if they are none of ours, the one that generates is.
    """
    found = {name: kind.__name__ for name, kind in classes(model_type).items()}
    file = file_name(model_type).removesuffix(".py")
    ours = [name for name in architectures if name in found.values()]
    return {
        "architectures": ours or [next(kind for name, kind in found.items() if name.startswith("AutoModelFor"))],
        "auto_map": {name: f"{file}.{kind}" for name, kind in found.items()},
    }


def _with_imports(module: str) -> list[str]:
    """The modules of ours that a module imports, those that they import before them, and itself at the end."""
    tree = ast.parse(Path(_origin(module)).read_text(encoding="utf-8"))
    needed = [name for node in _imports(tree) if (name := _module(node)) is not None]
    return list(dict.fromkeys([*(other for name in needed for other in _with_imports(name)), module]))


def _imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    yield from (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


def _module(node: ast.Import | ast.ImportFrom) -> str | None:
    """The module of ours that a statement imports from, if it does."""
    if isinstance(node, ast.ImportFrom):
        return node.module if node.module and node.module.startswith(_OURS) else None
    assert not any(alias.name.startswith(_OURS) for alias in node.names), "modules of ours are imported from"
    return None


def _body(text: str, tree: ast.Module) -> str:
    """What stands behind the imports, comments and all."""
    last = max((node.end_lineno or 0 for node in _imports(tree)), default=0)
    return "\n".join(text.splitlines()[last:]).strip("\n")


def _origin(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin
