"""The documentation is true: what it names exists, its tables are the code's, its examples run, and no link is dead."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import hpsampler
from demo import controls
from hpsampler.recipes import PRESETS, SOLVER_LABELS
from hpsampler.settings import ENABLED, FIELDS, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
README, CONTROLS, API = (
    path.read_text(encoding="utf-8") for path in (ROOT / "README.md", DOCS / "controls.md", DOCS / "api.md")
)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""Those that are promised."""

by_stem = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def links(page: Path) -> list[str]:
    """Targets of links and images that are files of ours."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8")))
    return [each for each in found if not re.match(r"[a-z]+:", each)]


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {each.strip().replace(" ", "-") for each in kept}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def section(text: str, heading: str) -> str:
    """What stands below a heading of any level, up to the next one."""
    return re.split(r"^#+ ", text.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def table(text: str) -> list[list[str]]:
    """The rows of the one table in a text, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# ---- every page ----


@by_stem
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@by_stem
def test_every_command_and_file_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for command in re.findall(r"`make ([a-z-]+)`", text):
        assert command in targets, f"{page.name}: make {command}"
    for module in re.findall(r"python -m ((?:hpsampler|bench|demo|tiny_model)[a-z_.]*[a-z])", text):
        assert importlib.util.find_spec(module), f"{page.name}: python -m {module}"
    rooms = r"(?:\.github|hpsampler|bench|demo|tiny_model|javascript|scripts|docs|tests)"
    for name in re.findall(rf"`({rooms}/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


# ---- README ----


def test_the_readme_is_short_and_begins_with_a_result():
    assert len(README.splitlines()) < 120
    first, *_ = re.findall(r"!\[.*\]\((.*)\)", README)
    assert first == "docs/images/result.webp" and README.index(first) < README.index("## Install")


@pytest.mark.parametrize("example", blocks(README, "python"))
def test_the_readme_s_examples_run_as_pasted(example, tmp_path):
    """In a Python of their own, with no more than README says: torch and numpy."""
    told = (
        "import sys\n"
        "assert latent.shape == (1, 4, 64, 64) and latent.isfinite().all() and 0.8 < latent.std() < 1.1\n"
        "assert not {'scipy', 'safetensors'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{example}\n{told}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_an_example():
    assert len(blocks(README, "python")) == 1 and "pip install ." in README


# ---- controls ----


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_control_is_explained(field):
    parts = re.split(r"^### ", CONTROLS, flags=re.M)[1:]
    part = next((each for each in parts if each.splitlines()[0] == field.label), None)
    assert part is not None, f"docs/controls.md has no heading {field.label!r}"
    text = re.split(r"^#|^!\[", part.partition("\n")[2], flags=re.M)[0]
    assert len(re.findall(r"[.:](?:\s|$)", text)) >= 2, f"{field.label} has two sentences at least"


def test_the_table_has_every_control_and_what_is_allowed():
    rows = {row[1].strip("`"): row for row in table(section(CONTROLS, "All controls"))}
    assert set(rows) == {ENABLED.name, *(field.name for field in FIELDS)}
    for field in FIELDS:
        label, _, allowed, does = rows[field.name]
        assert label == field.label and does, field.name
        if field.name in ("recipe", "hires_recipe"):
            words = [choice for choice in field.choices if choice not in PRESETS]
            assert allowed == ", ".join([*words, "or a preset of the paper"]), field.name
        elif field.choices:
            assert allowed == ", ".join(field.choices), field.name
        elif field.words:
            other = f"or {field.low:g} to {field.high:g}" if field.ranged else "or a name"
            assert allowed == ", ".join([*field.words, other]), field.name
        else:
            assert allowed.startswith(f"{field.low:g} to {field.high:g}"), field.name
            assert allowed.endswith(", or 0") == (field.neutral == 0 and field.low > 0), field.name


def test_the_table_of_presets_has_the_recipes_numbers():
    rows = {row[0]: row[1:] for row in table(section(CONTROLS, "The paper's presets"))}
    assert list(rows) == list(PRESETS)
    for name, recipe in PRESETS.items():
        cut, solver, freeu = rows[name]
        assert cut == f"{recipe.base_steps}, {recipe.rho:g}, {recipe.truncation_index}", name
        label = SOLVER_LABELS[recipe.solver].removeprefix("DPM++ ")
        if recipe.solver == "unipc":
            label += f"-{recipe.order}, {recipe.prediction}, {recipe.variant}"
        if recipe.analytical_first_step:
            label += ", analytical first step"
        assert solver == label, name
        assert (freeu == "off") == (not recipe.freeu), name
        for plan, told in zip(recipe.freeu, freeu.split("; ")):
            assert told.endswith(f"({plan.b1:g}, {plan.b2:g}, {plan.s1:g}, {plan.s2:g})"), name
            calls = told.partition(" (")[0]
            first, last = plan.first + 1, plan.last if plan.last is None else plan.last + 1
            if last is None:
                assert calls == ("all calls" if first == 1 else f"from call {first}"), name
            else:
                assert calls == (f"call {first}" if first == last else f"calls {first}-{last}"), name
        assert recipe.ending == "keep", "the page says that all of them keep the noise"


# ---- the developers' guide ----


def test_the_tree_names_every_room_and_nothing_that_is_gone():
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", (DOCS / "development.md").read_text(encoding="utf-8"), re.S)
    told = {name for line in tree.splitlines() for name in re.findall(r"\w+(?:\.py|/)", line)}
    modules = {path.name for path in (ROOT / "hpsampler").glob("*.py")} - {"__init__.py"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "hpsampler").glob("*/__init__.py")}
    assert modules | packages <= told
    for name in told - modules - packages:
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    made = {"out", "build", "hpsampler.egg-info"}
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - made
    assert {f"{name}/" for name in rooms} <= told


# ---- the API ----


def test_the_api_s_requests_are_valid():
    """Those that a running WebUI answers are in tests/webui/test_documented.py."""
    requests = [json.loads(block) for block in blocks(API, "json")]
    scripts = [each["alwayson_scripts"]["HP Sampler"]["args"] for each in requests if "alwayson_scripts" in each]
    assert len(scripts) == 2 and all(Settings.of(args).enabled for args in scripts)
    (preset,) = [each["args"][0]["preset"] for each in requests if set(each) == {"args"}]
    assert preset in PRESETS
    assert all(each["sampler_name"].startswith("HP ") for each in requests if "sampler_name" in each)


def test_the_api_s_list_of_values_is_in_the_order_of_the_fields():
    (names,) = re.findall(r"`(enabled, recipe, [^`]*)`", API)
    assert re.split(r",\s+", names) == [ENABLED.name, *(field.name for field in FIELDS)]


# ---- versions, and the public host ----


def test_the_version_is_told_everywhere():
    version = hpsampler.__version__
    assert json.loads(blocks(API, "json")[1])["info"]["extra_generation_params"]["HP version"] == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)", changes, re.M)
    assert headings[0] == "Unreleased" and headings[1] == version
    numbers = [tuple(map(int, each.split("."))) for each in headings[1:]]
    assert numbers == sorted(numbers, reverse=True)


def test_the_workflow_runs_make_test_on_every_python_that_is_promised():
    found = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    (job,) = found["jobs"].values()
    assert tuple(job["strategy"]["matrix"]["python-version"]) == PYTHONS
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    assert f'requires-python = ">={PYTHONS[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "file", sorted(set((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), key=str), ids=lambda file: file.stem
)
def test_an_issue_template_is_whole(file):
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem == "config":
        assert found == {"blank_issues_enabled": True}
        return
    assert found["name"] and found["description"]
    asked = [each for each in found["body"] if each["type"] != "markdown"]
    assert len({each["id"] for each in asked}) == len(asked) and all(each["attributes"]["label"] for each in asked)
    told = " ".join(each["attributes"]["value"] for each in found["body"] if each["type"] == "markdown")
    for page in re.findall(r"docs/[\w-]+\.md", told):
        assert (ROOT / page).exists(), page


# ---- the strips ----


def test_every_strip_is_shown_and_no_other():
    files = {path.name for path in (DOCS / "images").glob("control_*.webp")}
    shown = {Path(link).name for link in links(DOCS / "controls.md") if "control_" in link}
    assert files == shown == {f"control_{strip.name}.webp" for strip in controls.STRIPS}


@pytest.mark.parametrize("strip", controls.STRIPS, ids=lambda strip: strip.name)
def test_a_strip_can_be_seen_and_is_small(strip):
    path = DOCS / "images" / f"control_{strip.name}.webp"
    with Image.open(path) as image:
        cells = len(strip.columns) + strip.lead
        assert image.width > cells * (controls.CELL + controls.GAP) and np.asarray(image.convert("L")).std() > 10
    assert path.stat().st_size < 60_000


def test_the_strips_are_of_every_control_that_can_be_drawn():
    drawn = {strip.title for strip in controls.STRIPS}
    left_out = {"Calibration", "Hires recipe", "Statistics"}
    assert drawn | left_out == {field.label for field in FIELDS} and not drawn & left_out


def test_blue_is_what_auto_does():
    of = {strip.name: strip for strip in controls.STRIPS}
    expected = {"base_steps": ["8"], "rho": ["5"], "truncation_index": ["6"], "time_rho": ["1.2"], "b1": ["off"]}
    for name, labels in expected.items():
        assert [each.label for each in of[name].columns if controls.is_default(each.request)] == labels


def test_a_strip_is_drawn_again_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "IMAGES", max(controls.ROWS) + 1)
    threads = torch.get_num_threads()
    try:
        files = [controls.main(["ending", "--out", str(tmp_path / each)]) for each in ("one", "two")]
    finally:
        torch.set_num_threads(threads)
    assert [path.name for (path,) in files] == ["control_ending.webp"] * 2
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    with pytest.raises(SystemExit, match="no strip 'endng'"):
        controls.main(["endng", "--out", str(tmp_path)])
