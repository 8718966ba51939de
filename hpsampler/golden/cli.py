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
    """Run the command line; returns 0 when the file was converted, else 1, with the reason on standard error."""
    parser = argparse.ArgumentParser("python -m hpsampler.npnet", description="Convert NPNet's weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    parser_convert = commands.add_parser(
        "convert", help="convert a published .pth file to safetensors; no code in it is executed"
    )
    parser_convert.add_argument("source", metavar="in.pth", help="the published file")
    parser_convert.add_argument("target", metavar="out.safetensors", help="the file to write")
    parser_convert.add_argument(
        "--model", choices=[network.model for network in PUBLISHED],
        help="the model it belongs to (default: by the width of the embedding and the file's name)",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        model = convert(args.source, args.target, args.model)
    except GoldenNoiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: NPNet for {model or 'an unknown model'}")
    return 0
