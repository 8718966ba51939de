"""Every command line's --help: each option has a meaning and, where it may be left out, what it is then."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = (
    "hpsampler.calibrate", "hpsampler.measure", "hpsampler.evaluate", "hpsampler.npnet", "bench", "bench.gpu",
    "bench.perf", "bench.calibrated", "demo.draw", "demo.ui", "demo.controls", "demo.result", "tiny_model.checkpoint",
    "tiny_model.train",
)  # fmt: skip


class Stopped(Exception):
    """Carries a parser that was about to read a command line."""


def parsers_of(command: str, monkeypatch) -> dict[str, argparse.ArgumentParser]:
    """A command's parser, and those of the commands it has itself, by what one types."""

    def stop(self, *args, **kwargs):
        raise Stopped(self)

    is_package = importlib.util.find_spec(command).submodule_search_locations is not None
    module = importlib.import_module(f"{command}.__main__" if is_package else command)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Stopped) as stopped:
        module.main([])
    found = {command: stopped.value.args[0]}
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {each}": parser for each, parser in action.choices.items()}
    return found


def said(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument's help as it is shown, on one line."""
    if not action.help:
        return ""
    formatter = parser._get_formatter()
    return " ".join(formatter._expand_help(action).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_meaning_and_default(command, monkeypatch):
    for name, parser in parsers_of(command, monkeypatch).items():
        assert parser.description or name != command, name
        for action in parser._actions:
            if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            told, what = said(parser, action), f"{name}: {'/'.join(action.option_strings) or action.dest}"
            assert len(told.split()) >= 2, f"{what} says nothing of what it means"
            # a flag is off, and what must be given has no default
            if action.option_strings and action.nargs != 0 and not action.required:
                assert "default" in told, f"{what} does not say what it is by default: {told!r}"
                assert "default: None" not in told, f"{what} says None, which is no word: {told!r}"


def test_no_command_line_is_left_out():
    """Those of the documents and of the Makefile."""
    texts = [
        path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile")
    ]
    named = {
        each for text in texts for each in re.findall(r"-m ((?:hpsampler|bench|demo|tiny_model)[a-z_.]*[a-z])", text)
    }
    assert named and named <= set(COMMANDS), named - set(COMMANDS)
