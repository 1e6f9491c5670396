"""The shape of the project: our packages are the ones imported, contracts hold, files and functions stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PACKAGES = ("engine", "kernels", "pipelines", "bench")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and lines, without those of the docstring, of each function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            yield node.name, node.end_lineno - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)


def test_the_packages_imported_are_ours():
    """`kernels` is also an unrelated package on PyPI; from the repository root ours must win."""
    import engine
    import kernels
    import pipelines

    assert [Path(m.__file__).parent.parent for m in (engine, kernels, pipelines)] == [ROOT] * 3
    command = "import kernels; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "__init__.py"


def test_pytest_reads_setup_cfg(pytestconfig):
    assert pytestconfig.inipath == ROOT / "setup.cfg"


ROOMS = (
    "training",
    "evaluation",
    "detection",
    "model",
    "checkpoint",
    "run",
    "jobs",
    "config",
    "visualization",
    "profiling",
)
COMMANDS = ("train", "evaluate", "predict", "folds", "search", "tune", "ensemble", "export", "compare", "report")
SHARED = ("data", "distributed", "cli", "files", "console")


def test_the_top_of_engine_is_commands_rooms_and_few_shared_files():
    found = {
        path.stem for path in (ROOT / "engine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found == {"__init__", *ROOMS, *COMMANDS, *SHARED}


# Modules whose tests stand with another's, because they are parts of it: where to look.
TESTED_IN = {
    "engine/evaluate.py": "tests/engine/evaluation/test_judge.py",
    "engine/config/words.py": "tests/engine/config/test_load.py",
    "engine/ensemble/figure.py": "tests/engine/ensemble/test_main.py",
    "engine/export/program.py": "tests/engine/export/test_outputs.py",
    "engine/export/rapid.py": "tests/engine/export/test_outputs.py",
    "engine/report/judge.py": "tests/engine/report/test_main.py",
    "engine/report/pictures.py": "tests/engine/report/test_main.py",
    "engine/training/run.py": "tests/engine/test_train.py",
    "engine/tune/figure.py": "tests/engine/tune/test_main.py",
    "engine/tune/record.py": "tests/engine/tune/test_main.py",
    "kernels/components/hulls.py": "tests/kernels/components/test_rectangles.py",
    "kernels/components/runs.py": "tests/kernels/components/test_reference.py",
    "kernels/components/table.py": "tests/kernels/components/test_tabulate.py",
    **{
        f"pipelines/annotations/{module}.py": f"tests/pipelines/wild/test_{where}.py"
        for module, where in (
            ("json_lines", "json_sets"),
            ("json_pages", "json_sets"),
            ("json_read", "json_sets"),
            ("json_source", "json_sets"),
            ("json_tools", "json_sets"),
            ("json_values", "json_regions"),
            ("marks", "json_regions"),
            ("names", "text_names"),
            ("text_folders", "text_folders"),
            ("text_layouts", "text_lines"),
            ("text_marks", "text_marks"),
            ("total_text", "text_folders"),
            ("xml_formats", "xml_formats"),
        )
    },
    "pipelines/images/foreign.py": "tests/pipelines/wild/test_pixels.py",
    "pipelines/images/plain.py": "tests/pipelines/wild/test_pixels.py",
    "pipelines/index/pages.py": "tests/pipelines/test_source.py",  # types alone
    "pipelines/worker_signals.py": "tests/faults/test_signals.py",
    "bench/fake_gpu/build.py": "tests/fake_gpu/test_runtime.py",
    "bench/fake_gpu/device.py": "tests/fake_gpu/test_runtime.py",
    "bench/fake_gpu/lowering.py": "tests/fake_gpu/test_step.py",
    "bench/gpu/cases.py": "tests/bench/gpu/test_kernels.py",
    "bench/gpu/pages.py": "tests/bench/gpu/test_step.py",
    "bench/peers/classic_postprocess.py": "tests/engine/detection/test_postprocess.py",
    "bench/peers/clipper_targets.py": "tests/kernels/db_targets/test_reference.py",
    "bench/plain_loop.py": "tests/test_readme.py",
    "bench/rapidocr_receipts.py": "tests/test_readme.py",
    "bench/receipts.py": "tests/engine/detection/test_chain.py",
    "bench/search/methods.py": "bench/bench_search_regret.py",
    "bench/search/problems.py": "bench/bench_search_regret.py",
}


def test_the_tests_of_a_module_are_found_by_its_path():
    """`engine/training/resume.py` has tests/engine/training/test_resume.py; the exceptions stand above, each true."""
    for path in SOURCES:
        module = str(path.relative_to(ROOT))
        tested = path.name.startswith("bench_") or path.name in ("conftest.py", "__init__.py")
        if tested or not any(functions(ast.parse(path.read_text()))):
            continue
        name = "main" if path.stem == "__main__" else path.stem
        own = ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{name}.py"
        assert own.exists() != (module in TESTED_IN), own
    assert all((ROOT / module).exists() and (ROOT / where).exists() for module, where in TESTED_IN.items())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_what_comes_in(room):
    said = ast.get_docstring(ast.parse((ROOT / "engine" / room / "__init__.py").read_text()))
    lines = said.splitlines()
    assert len(lines) <= 4 and lines[1] == "" and "omes in:" in said and "oes out:" in said


def test_most_functions_are_under_40_lines():
    lengths = [length for path in SOURCES for _, length in functions(ast.parse(path.read_text()))]
    assert sum(length > 40 for length in lengths) <= len(lengths) // 100


def test_a_commit_is_checked_as_ci_checks():
    """The hooks are the commands that .ci/run runs before the tests."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"].removesuffix(" --force-exclude") for hook in hooks}
    lines = {line.removesuffix(" .") for line in (ROOT / ".ci" / "run").read_text().splitlines()}
    assert entries == {"ruff check", "ruff format --check", "lint-imports", "mypy"} and entries <= lines


def test_import_contracts():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_documented(path):
    text = path.read_text()
    limit = 350 if path.name == "train.py" else 500
    assert len(text.splitlines()) <= limit
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            assert node.type.id not in ("Exception", "BaseException"), f"line {node.lineno}: too broad"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"
    for name, lines in functions(tree):
        assert lines <= 60, f"{name} has {lines} lines"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            tested = path.name.startswith("bench_") or path.name == "conftest.py"
            assert ast.get_docstring(node) or tested or node.name == "main", f"{node.name} has no docstring"


def test_train_step_itself_calls_nothing_that_waits():
    """`.item()`, `.tolist()`, `.cpu()`, `nonzero` and `float(tensor)` wait for the device; none is in train_step."""
    tree = ast.parse((ROOT / "engine" / "training" / "step.py").read_text())
    step = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train_step")
    waits = {"item", "tolist", "cpu", "numpy", "nonzero", "synchronize"}
    called = {n.func.attr for n in ast.walk(step) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert not called & waits
    names = {n.func.id for n in ast.walk(step) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not names & {"int", "float", "bool"}
