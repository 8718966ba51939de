"""The repository itself: who imports whom, what the host finds, what CI runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hpsampler
import install
from tests.check_python import complaint

if sys.version_info >= (3, 11):
    import tomllib
else:
    # pytest brings it along there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted((ROOT / "hpsampler").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = (
    "checks", "files", "devices", "noise", "schedule", "freeu", "solvers", "guidance", "recipes", "store", "client",
    "golden", "job_config", "unfinished", "jobs", "statistics", "calibration", "fields", "settings", "presets",
    "effects", "notes", "plan", "panel", "evaluation", "webui",
)  # fmt: skip
"""The way imports run: a room of hpsampler/ knows those before it, and the version in hpsampler itself."""


def imports(file: Path) -> list[tuple[int, str]]:
    """(level, module) of every import in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def name_of(file: Path) -> str:
    """``calibration.fit`` for hpsampler/calibration/fit.py."""
    return ".".join(file.relative_to(ROOT / "hpsampler").with_suffix("").parts)


def is_adapter(file: Path) -> bool:
    return "webui" in file.relative_to(ROOT).parts


@pytest.mark.parametrize("file", [file for file in CODE if not is_adapter(file)], ids=name_of)
def test_the_core_knows_torch_and_numpy_only(file):
    outside = {module.partition(".")[0] for level, module in imports(file) if level == 0}
    own = {
        "calibration.least_squares": {"scipy"},
        "statistics.files": {"safetensors"},
        "golden.weights": {"safetensors"},
    }
    allowed = {"torch", "numpy", *own.get(name_of(file), ())}
    assert outside <= {*allowed, *sys.stdlib_module_names}, file


def known_to(file: Path) -> set[str]:
    """The modules of hpsampler that a file imports, as ``room.module``; those of the package itself left out."""
    package = ["hpsampler", *name_of(file).split(".")][:-1]
    if file.name == "__init__.py":
        package = ["hpsampler", *file.relative_to(ROOT / "hpsampler").parts[:-1]]
    known = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part][1:]
            targets = [[*base, alias.name] for alias in node.names] if not base or not node.module else [base]
            known |= {".".join(target) for target in targets}
    return known


def test_imports_run_one_way():
    doors = {"calibrate", "measure", "evaluate", "npnet", "__init__"}
    assert {name_of(file).partition(".")[0] for file in CODE} == {*ROOMS, *doors}, "every room has its place"
    for file in CODE:
        room = name_of(file).partition(".")[0]
        if room in doors:
            continue
        rooms = {name.partition(".")[0] for name in known_to(file)} - {"__version__", room}
        later = {each for each in rooms if ROOMS.index(each) > ROOMS.index(room)}
        assert not later, f"{name_of(file)} imports {later}"


def test_no_room_imports_in_circles():
    modules = {name_of(file).removesuffix(".__init__"): known_to(file) for file in CODE}
    done: set[str] = set()
    while True:
        ready = {name for name, known in modules.items() if name not in done and not (known & modules.keys()) - done}
        if not ready:
            break
        done |= ready
    assert done == modules.keys(), f"in circles: {sorted(modules.keys() - done)}"


@pytest.mark.parametrize("file", [*CODE, ROOT / "install.py", *(ROOT / "scripts").glob("*.py")], ids=lambda f: f.stem)
def test_python_3_10_and_nothing_dangerous(file):
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "pickle", "__import__"}
    assert not any(isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree))
    assert not any(
        isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "BaseException"
        for node in ast.walk(tree)
    ), "an interrupt is a BaseException and must pass"


def test_no_mutable_state_at_module_level():
    for file in CODE:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(
                node.value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp)
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
                allowed = all(name == "__all__" or name.isupper() or name.startswith("_") for name in names)
                assert allowed, f"{file.name}: {names}"


def test_the_script_door_forgets_the_package_of_an_earlier_load():
    door = str(ROOT / "scripts" / "hpsampler_webui.py")
    code = (
        "import runpy, sys, types\n"
        "old = types.ModuleType('hpsampler'); old.stale = True; sys.modules['hpsampler'] = old\n"
        "sys.modules['hpsampler.noise'] = types.ModuleType('hpsampler.noise')\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'adapter' / 'host')!r}]\n"
        f"found = runpy.run_path({door!r})\n"
        "assert not hasattr(sys.modules['hpsampler'], 'stale') and found['HPSamplerScript']\nprint('fresh')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip().endswith("fresh"), done.stderr


class TestInstall:
    def test_it_is_silent_and_succeeds_here(self):
        done = subprocess.run([sys.executable, ROOT / "install.py"], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0 and not done.stderr

    def test_what_is_missing_or_too_old_is_named(self):
        (missing,) = install.complaints({"no-such-package": (1, 0)})
        assert "no-such-package 1.0" in missing
        (old,) = install.complaints({"torch": (99, 0)})
        assert "torch 99.0" in old and "found" in old
        assert install.complaints({"torch": (2, 0)}) == []

    @pytest.mark.parametrize(
        ("text", "version"), [("2.1.2+cu121", (2, 1)), ("1.26.4", (1, 26)), ("2", (2,)), ("2.0a0", (2, 0))]
    )
    def test_versions_are_read(self, text, version):
        assert install.version_of(text) == version


def test_a_wheel_holds_the_core_with_its_prompts_and_not_the_adapter(tmp_path):
    with (ROOT / "pyproject.toml").open("rb") as file:
        found = tomllib.load(file)["tool"]["setuptools"]
    rooms = {f"hpsampler.{path.parent.name}" for path in (ROOT / "hpsampler").glob("*/__init__.py")}
    assert set(found["packages"]) == {"hpsampler", *rooms} - {"hpsampler.webui"}
    data = {path.name for path in (ROOT / "hpsampler").iterdir() if path.is_file() and path.suffix != ".py"}
    assert set(found["package-data"]["hpsampler"]) == data == {"prompts.txt"}


def test_git_ignores_what_builds_and_tools_leave():
    left = ["build/lib/a.py", "dist/a.whl", "hpsampler.egg-info/PKG-INFO", "hpsampler/__pycache__/a.pyc", "out/a.png"]
    left += [".venv/bin/python", ".mypy_cache/a", ".ruff_cache/a", ".pytest_cache/a", ".hypothesis/a", ".coverage"]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *left]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == left


@pytest.mark.parametrize(
    ("version", "words"), [((3, 9, 1), "and this is 3.9"), ((3, 14), "and this is 3.14"), ((2, 7), "this is 2.7")]
)
def test_another_python_is_told_in_words(version, words):
    told = complaint(version)
    assert words in told and "need Python 3.10 to 3.13" in told
    assert not any(complaint((3, minor)) for minor in (10, 11, 12, 13))
    ast.parse((ROOT / "tests" / "check_python.py").read_text(encoding="utf-8"), feature_version=(3, 4))


def test_every_python_has_one_pin_of_each_package():
    """Of those that have no wheels for all: exactly one line holds for each Python."""
    lines = (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [Requirement(line) for line in lines if line and not line.startswith("#")]
    bare = (ROOT / "tests" / "requirements-no-deps.txt").read_text(encoding="utf-8").splitlines()
    lines += [Requirement(line) for line in bare if line and not line.startswith("#")]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        held = [each.name for each in lines if each.marker is None or each.marker.evaluate({"python_version": python})]
        assert len(held) == len(set(held)) and {"torch", "numpy", "scipy", "pillow", "gradio"} <= set(held), python


def test_a_skipped_test_says_why():
    environment = {name: value for name, value in os.environ.items() if name != "HPS_WEBUI"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/webui/test_timing.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "1 skipped: set HPS_WEBUI to a WebUI's folder" in done.stdout


def test_ci_runs_what_the_readme_says():
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("exec make test")


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", hpsampler.__version__)
