"""Rows of the bench's CSV files, and how their figures are written in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Row", "distinct", "error_text", "frechet_text", "method_of", "share_text", "table", "tiny_figures"]

Row = Mapping[str, str]


def distinct(rows: Iterable[Row], column: str) -> list[str]:
    """The distinct numbers in a column, sorted."""
    return sorted({row[column] for row in rows}, key=float)


def tiny_figures(row: Row) -> list[str]:
    """Fréchet distance, caption accuracy and distance of a cell on the tiny model, as text."""
    return [frechet_text(float(row["frechet"])), share_text(float(row["accuracy"])), share_text(float(row["distance"]))]


def method_of(row: Row) -> tuple[str, str, str, str]:
    """Sampler, schedule, ending and Free-U."""
    return row["sampler"], row["schedule"], row["ending"], row.get("freeu", "")


def frechet_text(value: float) -> str:
    """A Fréchet distance."""
    return f"{value:.3g}"


def share_text(value: float) -> str:
    """A share, or a distance on the tiny model."""
    return f"{value:.3f}".lstrip("0") if value < 1 else f"{value:.2f}"


def error_text(value: float) -> str:
    """An error on the exact problems."""
    return f"{value:.3f}".lstrip("0") if value < 0.9995 else f"{value:.3g}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])
