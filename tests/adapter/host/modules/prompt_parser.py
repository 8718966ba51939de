"""Conditions of several prompts; here a tensor with one row a picture."""

from __future__ import annotations

from typing import Any


def reconstruct_multicond_batch(c: Any, current_step: int) -> tuple[list[list[tuple[int, float]]], Any]:
    return [[(row, 1.0)] for row in range(len(c))], c
