"""The documentation: every control is explained, every link leads somewhere, every strip is shown and can be drawn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo import controls
from hpsampler.settings import FIELDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CONTROLS = (DOCS / "controls.md").read_text(encoding="utf-8")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def links(page: Path) -> list[str]:
    """Targets of links and images that are files of ours."""
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8")))
    return [each for each in found if not re.match(r"[a-z]+:", each)]


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {each.strip().replace(" ", "-") for each in kept}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_control_is_explained(field):
    parts = re.split(r"^### ", CONTROLS, flags=re.M)[1:]
    part = next((each for each in parts if each.splitlines()[0] == field.label), None)
    assert part is not None, f"docs/controls.md has no heading {field.label!r}"
    text = re.split(r"^#|^!\[", part.partition("\n")[2], flags=re.M)[0]
    assert len(re.findall(r"[.:](?:\s|$)", text)) >= 2, f"{field.label} has two sentences at least"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_strip_is_shown_and_no_other():
    files = {path.name for path in (DOCS / "images").glob("control_*.png")}
    shown = {Path(link).name for link in links(DOCS / "controls.md") if "control_" in link}
    assert files == shown == {f"control_{strip.name}.png" for strip in controls.STRIPS}


@pytest.mark.parametrize("strip", controls.STRIPS, ids=lambda strip: strip.name)
def test_a_strip_can_be_seen_and_is_small(strip):
    path = DOCS / "images" / f"control_{strip.name}.png"
    with Image.open(path) as image:
        cells = len(strip.columns) + strip.lead
        assert image.width > cells * (controls.CELL + controls.GAP) and np.asarray(image.convert("L")).std() > 10
    assert path.stat().st_size < 130_000


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
    assert [path.name for (path,) in files] == ["control_ending.png"] * 2
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    with pytest.raises(SystemExit, match="no strip 'endng'"):
        controls.main(["endng", "--out", str(tmp_path)])
