"""AlpacaEval 2.0: the model's answers, a judge's annotations, and the leaderboard's row.

Three files, in the formats that `alpaca_eval`'s own tools read and write:

    model_outputs.json   {instruction, output, generator, dataset} for each instruction
    annotations.json     {instruction, output_1, generator_1, output_2, generator_2, annotator,
                          preference} with the baseline as output_1, the model as output_2 and
                          preference 1 + p: 1 the baseline, 2 the model, 1.5 a tie
    leaderboard.csv      win_rate, standard_error, n_wins, n_wins_base, n_draws, n_total,
                          discrete_win_rate, mode, avg_length, length_controlled_winrate,
                          lc_standard_error

Published numbers are GPT-4 Turbo's, asked once with its own question and read by its
log-probabilities. With another judge, question or both orders, the files have the same form and
the numbers another meaning; `annotator` says which judge it was.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reprise.alignment.judging.config import AlpacaSuite
from reprise.alignment.judging.win_rates import (
    GAMED_WEIGHT,
    Gamed,
    length_controlled_win_rate,
    win_rate,
)
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_json, write_text

Row = dict[str, Any]


def instructions(settings: AlpacaSuite) -> list[Row]:
    """The baseline's outputs: a list of {instruction, output, generator}.

    Raises:
        BadInput: not to be had, or without these keys.
    """
    file = _file(settings.instructions, "instructions", "alpaca_eval_gpt4_baseline.json")
    rows = json.loads(file.read_text(encoding="utf-8"))
    needed = {"instruction", "output", "generator"}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and needed <= row.keys() for row in rows
    ):
        raise BadInput(
            f"instructions={settings.instructions!r}: should be a JSON list of objects with "
            f"{', '.join(sorted(needed))}"
        )
    return rows[: settings.limit]


def gamed_baseline(settings: AlpacaSuite, count: int) -> tuple[np.ndarray, Gamed] | None:
    """Difficulty of each of the first `count` instructions, and what regularizes the fit.

    ``df_gamed.csv`` has a row for each instruction and gamed version of the baseline, with the
    instruction's number, its difficulty, a length difference (baseline less version) that is
    already standardized, and a preference in [0, 1].

    Raises:
        BadInput: it is not to be had, or knows fewer instructions.
    """
    if settings.gamed is None:
        return None
    with open(_file(settings.gamed, "gamed", "df_gamed.csv"), encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    difficulty = {int(row["index"]): float(row["instruction_difficulty"]) for row in rows}
    missing = [index for index in range(count) if index not in difficulty]
    if missing:
        raise BadInput(
            f"gamed={settings.gamed!r} knows {len(difficulty)} instructions, not number "
            f"{missing[0]}; it belongs to AlpacaEval's own set. Set gamed=null for another one"
        )
    theirs = Gamed(
        preference=np.array([float(row["preference"]) for row in rows]),
        length=-np.array([float(row["std_delta_len"]) for row in rows]),
        difficulty=np.array([float(row["instruction_difficulty"]) for row in rows]),
    )
    return np.array([difficulty[index] for index in range(count)]), theirs


def model_outputs(rows: Sequence[Row], answers: Sequence[str], generator: str) -> list[Row]:
    """What goes into ``model_outputs.json``."""
    return [
        {
            "instruction": row["instruction"],
            "output": answer,
            "generator": generator,
            "dataset": row.get("dataset", "alpaca_eval"),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]


def write_results(
    folder: Path,
    rows: Sequence[Row],
    answers: Sequence[str],
    preferences: np.ndarray,
    generator: str,
    annotator: str,
    gamed: tuple[np.ndarray, Gamed] | None,
) -> dict[str, Any]:
    """Write the annotations and the leaderboard's row into `folder`; returns the row.

    Args:
        folder: where to.
        rows: the baseline's.
        answers: the model's.
        preferences: p that the model's answer is better; NaN where the judge gave no verdict.
        generator: the model's name.
        annotator: the judge's.
        gamed: from `gamed_baseline`.
    """
    annotations = [
        {
            "instruction": row["instruction"],
            "output_1": row["output"],
            "generator_1": row["generator"],
            "output_2": answer,
            "generator_2": generator,
            "dataset": row.get("dataset", "alpaca_eval"),
            "annotator": annotator,
            "preference": None if np.isnan(p) else 1 + float(p),
        }
        for row, answer, p in zip(rows, answers, preferences, strict=True)
    ]
    write_json(folder / "annotations.json", annotations)
    judged = ~np.isnan(preferences)
    p = preferences[judged]
    lengths, baseline = (
        np.array([len(text) for text in texts])[judged]
        for texts in (answers, [row["output"] for row in rows])
    )
    rate, error = win_rate(p)
    easier = (None, None) if gamed is None else (gamed[0][judged], gamed[1])
    controlled = length_controlled_win_rate(p, lengths, baseline, *easier)
    result: dict[str, Any] = {
        "win_rate": rate,
        "standard_error": error,
        "n_wins": int((p > 0.5).sum()),
        "n_wins_base": int((p < 0.5).sum()),
        "n_draws": int((p == 0.5).sum()),
        "n_total": len(p),
        "discrete_win_rate": win_rate(0.5 + 0.5 * np.sign(p - 0.5))[0],
        "mode": "community",
        "avg_length": int(lengths.mean()),
        "length_controlled_winrate": controlled["length_controlled_winrate"],
        "lc_standard_error": controlled.get("lc_standard_error"),
    }
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["", *result])
    table.writerow([generator, *result.values()])
    write_text(folder / "leaderboard.csv", out.getvalue())
    weight = None if gamed is None else GAMED_WEIGHT
    return {**result, **{k: v for k, v in controlled.items() if k not in result}, "gamed": weight}


def _file(name: str, key: str, in_data_set: str) -> Path:
    """A local file, or `in_data_set` of a Hub data set.

    Raises:
        BadInput: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    start = f"{key}={name!r} is neither a file nor "
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise BadInput(f"{start}the name of a Hub data set (owner/name)")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, in_data_set, repo_type="dataset"))
    except Exception as error:  # the HTTP library's own classes change from version to version
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise BadInput(
            f"{start}to be had from the Hub ({reason}); download {in_data_set} and give its path"
        ) from error
