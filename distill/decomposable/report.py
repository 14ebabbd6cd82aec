"""Table and figure of the decomposable study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reprise.distill.supervised.report import FLOOR
from reprise.rollout.files import write_text
from reprise.rollout.run.figures import COLOURS, MARKERS, finish, start
from reprise.rollout.run.markdown import markdown_table


def write_table(summary: dict[str, Any], path: Path) -> None:
    """Errors of every cell as a line of Markdown, and the constraint's feasibility below."""
    labels = list(dict.fromkeys(one["label"] for cell in summary["cells"] for one in cell["at"]))
    lines = []
    for cell in summary["cells"]:
        errors = {one["label"]: one["held_out_relative_error"] for one in cell["at"]}
        reported = ["" if errors[label] is None else f"{errors[label]:.1g}" for label in labels]
        index = [cell["features"], str(cell["dimension"]), cell["arm"], str(cell["threshold"])]
        lines.append([*index, str(cell["k_needed"] or "none"), *reported])
    head = ["features", "d", "arm", "t = q(q+1)/2", "k needed", *(f"k = {one}" for one in labels)]
    hull = [
        (
            *(one["features"], str(one["dimension"]), str(one["equations"]), str(one["points"])),
            *(f"{one['share']:.2f}", f"{one['share_symmetric']:.2f}"),
        )
        for one in summary["hull"]
    ]
    write_text(
        path,
        f"{summary['environment']}, {summary['trials']} trials: mean relative error of the Bellman "
        "loss on predictors never used; k needed: every trial matched.\n\n"
        + markdown_table(head, lines)
        + "\nShare of random candidate sets that can meet the moment constraint.\n\n"
        + markdown_table(
            ("features", "d", "equations", "points", "share", "symmetric points"), hull
        ),
    )


def draw(summary: dict[str, Any], path: Path) -> None:
    """Held-out error against k / t, a panel for each feature map, at its largest dimension."""
    kinds = list(dict.fromkeys(cell["features"] for cell in summary["cells"]))
    figure, panels = start(max(2, len(kinds)))
    for panel, kind in zip(panels, kinds, strict=False):
        found = [cell for cell in summary["cells"] if cell["features"] == kind]
        largest = max(cell["dimension"] for cell in found)
        for index, cell in enumerate(one for one in found if one["dimension"] == largest):
            known = [one for one in cell["at"] if one["held_out_relative_error"] is not None]
            panel.plot(
                [one["k"] / cell["threshold"] for one in known],
                [max(one["held_out_relative_error"], FLOOR) for one in known],
                color=COLOURS[index],
                marker=MARKERS[index],
                markersize=4,
                lw=1,
                label=cell["arm"],
            )
        panel.axvline(1, color="grey", lw=1)
        panel.set_yscale("log")
        panel.set_title(f"{kind}, d = {largest}", fontsize=9)
        panel.set_xlabel("predictors k / t")
    panels[0].set_ylabel("held-out error of the loss")
    panels[0].legend(frameon=False, fontsize=7)
    caption = f"{summary['environment']}, {summary['trials']} trials; t = q(q+1)/2"
    finish(figure, path, caption)
