"""The shape of the package: who may import whom, what importing does, and the limits of style."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hyenadna

PACKAGE = Path(hyenadna.__file__).parent
ROOT = PACKAGE.parent
LEAVES = {"errors", "files", "progress", "plots", "machine"}
MAY_IMPORT = {
    "data": set(),
    "kernels": set(),
    "model": {"kernels"},
    "inference": {"kernels", "model", "data"},
    "pretrain": {"kernels", "model", "data", "inference"},
    "finetune": {"kernels", "model", "data", "inference", "pretrain"},
    "serve": {"kernels", "model", "data", "inference", "pretrain", "finetune"},
    "cli": {"kernels", "model", "data", "inference", "pretrain", "finetune", "serve"},
}
"""Besides the leaves and itself."""
MODULES = sorted(module.name for module in pkgutil.walk_packages(hyenadna.__path__, "hyenadna."))
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere in it, under `if TYPE_CHECKING` too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "hyenadna"}


def part(name: str) -> str:
    return [*name.split("."), ""][1]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_downwards(path):
    here = relative(path).split("/")[0].removesuffix(".py")
    parts = {part(name) for name in imported(path)} - {"", "__version__"}
    if path == PACKAGE / "__init__.py":
        assert parts <= {"model"}  # for type checkers
    elif here in LEAVES:
        assert parts <= LEAVES
    else:
        # HyenaDNA.generate is a door to what builds on the model, which is loaded when it is called
        doors = {"inference"} if relative(path) == "model/language_model.py" else set()
        assert parts - LEAVES - {here} <= MAY_IMPORT[here] | {"HyenaDNA", "HyenaConfig"} | doors


def test_no_files_import_each_other_in_a_circle():
    sorter = TopologicalSorter[str]()
    for path in FILES:
        name = "hyenadna." + relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if name == "hyenadna.model.language_model":
            continue  # its from_pretrained, save_pretrained and generate are doors to what builds on it
        for found in imported(path):
            module = found if found in MODULES else found.rpartition(".")[0]
            if module in MODULES and module != name:
                sorter.add(name, module)
    sorter.prepare()  # raises CycleError, which names the circle


def test_model_needs_torch_alone():
    """The core imports no package but torch, numpy, safetensors and, for hub ids, huggingface_hub."""
    foreign = set()
    for path in [*(PACKAGE / "model").glob("*.py"), *(PACKAGE / "kernels").glob("*.py")]:
        for node in ast.walk(tree(path)):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            foreign |= {name.split(".")[0] for name in names}
    foreign -= set(sys.stdlib_module_names) | {"hyenadna"}
    assert foreign <= {"torch", "triton", "numpy", "safetensors", "huggingface_hub", "pydantic", "yaml"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_are_absolute(path):
    assert not [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom) and node.level]


ALLOWED_AT_IMPORT = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
)  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_importing_does_nothing_but_define(path):
    """No statement at module level besides definitions, docstrings, and guards around imports."""
    for node in tree(path).body:
        if isinstance(node, ALLOWED_AT_IMPORT):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        guard = isinstance(node, ast.Try) or (
            isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] in ("TYPE_CHECKING",)
        )
        main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert guard or main, f"line {node.lineno}: {ast.unparse(node)[:80]}"


def test_importing_leaves_torch_as_it_is():
    """In one fresh process: every module imports, and neither torch's settings nor the signals change."""
    program = """
import importlib, random, signal, sys, torch
def state():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.cuda.is_initialized(), [signal.getsignal(number) for number in (2, 10, 15)])
torch.set_num_threads(1)
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before, (before, state())
"""
    ran = subprocess.run([sys.executable, "-c", program, *MODULES], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def public(path: Path):
    """Public classes, functions and methods of a file, with the file itself."""
    body = [(path.name, tree(path))]
    while body:
        name, node = body.pop()
        yield name, node
        if isinstance(node, ast.Module | ast.ClassDef):
            body += [
                (child.name, child)
                for child in node.body
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and not child.name.startswith("_")
            ]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_everything_public_has_a_docstring(path):
    assert not [name for name, node in public(path) if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_short_files_and_functions(path):
    if path.parent.name == "kernels":
        return
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            lines = node.end_lineno - first.lineno + 1 - doc
            assert lines < 40, f"{node.name} has {lines} lines"


def test_exports_come_lazily():
    program = (
        "import sys, hyenadna\n"
        "assert 'torch' not in sys.modules and hyenadna.__version__\n"
        "config = hyenadna.HyenaConfig()\n"
        "assert 'torch' not in sys.modules\n"
        "hyenadna.HyenaDNA\n"
        "assert 'torch' in sys.modules\n"
        "try:\n    hyenadna.Hyena\nexcept AttributeError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "module 'hyenadna' has no attribute 'Hyena'\n"
    assert set(hyenadna.__all__) == {"HyenaDNA", "HyenaConfig", "__version__"}
    for name in hyenadna.__all__:
        assert getattr(hyenadna, name)


@pytest.mark.parametrize("module", [name for name in MODULES if ".cli" not in name])
def test_all_names_exist(module):
    loaded = importlib.import_module(module)
    assert [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)] == []


def tracked() -> list[Path]:
    """Files of the checkout that git knows; none in an installed package."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or "pyproject.toml" not in listed.stdout:
        pytest.skip("not a checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_doors_are_links():
    tracked()
    for name in ("data", "kernels", "finetune", "cli"):
        assert (ROOT / name).is_symlink() and (ROOT / name).readlink() == Path("hyenadna") / name
        assert (ROOT / name).resolve() == PACKAGE / name


def test_nothing_committed_names_this_machine():
    # written in two parts, so that this file does not name them
    forbidden = [("/" + folder).encode() for folder in ("work/", "home/", "root/", "Users/", "tmp/bash")]
    for path in tracked():
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20 and path.suffix != ".gz":
            content = path.read_bytes()
            assert not [name for name in forbidden if name in content], path
