"""Plots the duration of a sweep against the numbers of stored and due credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

NAME: Final = "sweep-growth.svg"
# Readable on light and dark pages.
INK, OURS = "#808080", "#2a8fd8"
STYLE: Final[Any] = {
    "svg.hashsalt": "django-infusionsoft",  # the same figures produce the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the plot, and return its path."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(rc=STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        stored = [
            (row["facts"]["stored"], row["ours"]) for row in rows if "stored" in row["facts"]
        ]
        due = [
            (row["facts"]["due"], row["ours"])
            for row in rows
            if "due" in row["facts"] and "stored" not in row["facts"]
        ]
        swept = next(row["facts"]["due"] for row in rows if "stored" in row["facts"])
        _curve(left, stored, f"credentials stored, {swept:,} of them due")
        left.set_ylim(0, 1.5 * max(seconds for _, seconds in stored))
        _curve(right, due, "credentials due, and no others stored")
        right.set_yscale("log")
        left.set_ylabel("seconds per sweep")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def _curve(axes: Any, points: Sequence[tuple[float, float]], label: str) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=OURS)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(color=INK, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
