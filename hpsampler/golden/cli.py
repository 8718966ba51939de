"""``python -m hpsampler.npnet``: convert NPNet's published weights to safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from .npnet import PUBLISHED, GoldenNoiseError
from .weights import convert

__all__ = ["main"]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; 0 when the file was converted, 1 with a sentence on why not."""
    parser = argparse.ArgumentParser("python -m hpsampler.npnet", description="NPNet's weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert", help="turn a published .pth into safetensors; nothing in it is run")
    one.add_argument("source", metavar="in.pth")
    one.add_argument("target", metavar="out.safetensors")
    one.add_argument("--model", choices=[each.model for each in PUBLISHED], help="where shapes cannot tell")
    given = parser.parse_args(arguments)
    try:
        model = convert(given.source, given.target, given.model)
    except GoldenNoiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.target}: NPNet for {model or 'a model that is not known here'}")
    return 0
