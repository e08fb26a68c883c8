"""Imports run one way, from the equations up to the command line."""

import ast

import pytest

from tests.conftest import ROOT

# Each floor may import itself and the floors before it.
FLOORS = [
    {"zoo", "zoo.errors", "zoo.arguments", "zoo.evaluating", "zoo.files", "zoo.noise", "zoo.provenance", "zoo.batches"},
    {"zoo.functional"},
    {"zoo.kernels"},
    {"zoo.regularisers"},
    {"zoo.layers"},
    {
        "zoo.heads",
        "zoo.initialisation",
        "zoo.optim",
        "zoo.tokenizer",
        "zoo.metrics",
        "zoo.report",
        "zoo.score",
        "zoo.generate",
        "zoo.card",
    },
    {"zoo.tasks"},
    {"zoo.models", "zoo.callbacks"},
    {"zoo.bundle"},
    {"zoo.hub", "zoo.transfer"},
    {"zoo.evaluation", "zoo.runs"},
    {"zoo.lightning_cli", "zoo.finetuning"},
    {"zoo.demo", "zoo.cli"},
]
MAY_IMPORT_DATA = {"zoo.runs", "zoo.finetuning", "zoo.lightning_cli", "zoo.demo"}
DATA_MAY_IMPORT = {"zoo.errors", "zoo.arguments", "zoo.tokenizer", "zoo.batches"}
DATA = "zoo.datamodules"
FILES = sorted(ROOT.glob("zoo/**/*.py"))


def floor(module):
    for level, modules in enumerate(FLOORS):
        if module in modules or any(module.startswith(f"{m}.") for m in modules if m != "zoo"):
            return level
    raise AssertionError(f"{module} stands on no floor")


def imports(file):
    """The project's modules that a file imports, those for type checking alone left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            if node.module in ("zoo", DATA):
                folder = ROOT / node.module.replace(".", "/")
                names = {alias.name for alias in node.names}
                yield from (f"{node.module}.{name}" if (folder / f"{name}.py").exists() or (folder / name).is_dir()
                            else node.module for name in names)  # fmt: skip
            else:
                yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for imported in imports(file):
        if imported.split(".")[0] != "zoo":
            continue
        if module.startswith(DATA):
            assert imported.startswith(DATA) or imported in DATA_MAY_IMPORT, f"{module} imports {imported}"
        elif imported.startswith(DATA):
            assert module in MAY_IMPORT_DATA, f"{module} imports {imported}"
        else:
            assert floor(imported) <= floor(module), f"{module} imports {imported}"
