"""Regression data sets as arrays: synthetic, built in, downloaded, or any CSV file.

| name | where it comes from |
|---|---|
| synthetic | drawn here |
| diabetes | ships with scikit-learn |
| boston | ships with the optional package mlxtend |
| california | scikit-learn downloads it |
| wine-red, wine-white | `$REPRISE_DATA/winequality-red.csv` (-white), else the cache, else UCI |
| PATH.csv | a file with a header; separated by comma, semicolon or tab |
"""

from __future__ import annotations

import csv
import importlib.util
import os
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reprise.distill.config import RegressionData, SyntheticData
from reprise.rollout.cartpole import cache_folder
from reprise.rollout.errors import BadInput
from reprise.rollout.files import write_bytes

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/wine-quality/"


@dataclass(frozen=True)
class Table:
    """Features [n, d] and target [n], float64, all finite."""

    features: np.ndarray
    target: np.ndarray


def load(data: RegressionData, draw: np.random.Generator) -> Table:
    """The data set of a config; `draw` makes the synthetic one.

    Raises:
        BadInput: it cannot be had (with the remedy), or a value is missing or no number.
    """
    if data.name == "synthetic":
        return synthetic(data.synthetic, draw)
    if data.name == "diabetes":
        from sklearn.datasets import load_diabetes

        return _checked(data.name, *load_diabetes(return_X_y=True))
    if data.name == "boston":
        return _boston()
    if data.name == "california":
        return _california()
    if data.name.startswith("wine-"):
        return read_csv(_wine(data.name), "quality")
    assert data.target is not None
    return read_csv(Path(data.name).expanduser(), data.target)


def synthetic(settings: SyntheticData, draw: np.random.Generator) -> Table:
    """y = w . x + noise, w ~ N(0, I/d), x ~ N(0, R diag(s^2) R^T).

    s^2 goes from 1 down to 1/condition, and R is a random rotation: without it, scaling the columns
    would undo s.
    """
    scales = np.geomspace(1.0, settings.condition**-0.5, settings.dimension)
    features = draw.standard_normal((settings.points, settings.dimension)) * scales
    turn = np.linalg.qr(draw.standard_normal((settings.dimension, settings.dimension)))[0]
    features = features @ turn.T
    weights = draw.standard_normal(settings.dimension) / np.sqrt(settings.dimension)
    noise = settings.noise * draw.standard_normal(settings.points)
    return Table(features, features @ weights + noise)


def read_csv(path: Path, target: str) -> Table:
    """All columns of a CSV file as numbers, `target` apart.

    Raises:
        BadInput: no such file or column, or a cell that is no finite number, by row and column.
    """
    if not path.is_file():
        raise BadInput(f"data.name='{path}': no such file; check the path")
    with open(path, newline="", encoding="utf-8") as file:
        first = file.readline()
        file.seek(0)
        separator = max(",;\t", key=first.count)
        header, *rows = list(csv.reader(file, delimiter=separator))
    if target not in header:
        raise BadInput(
            f"data.target='{target}': {path} has no such column; it has {', '.join(header)}"
        )
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise BadInput(
                f"data.name='{path}': row {number} has {len(row)} cells, the header {len(header)}"
            )
        for name, cell in zip(header, row, strict=True):
            if not _is_number(cell):
                raise BadInput(
                    f"data.name='{path}': row {number} has {cell!r} as '{name}', which is no "
                    "number; code or drop the column, or drop the row"
                )
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    index = header.index(target)
    return _checked(str(path), np.delete(values, index, axis=1), values[:, index], header)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _checked(
    name: str, features: np.ndarray, target: np.ndarray, header: list[str] | None = None
) -> Table:
    values = np.column_stack([features, target]).astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = map(int, bad[0])
        where = "target" if column == features.shape[1] else f"feature {column}"
        raise BadInput(
            f"data.name='{name}': row {row} has {values[row, column]} as its {where} "
            f"({len(bad)} such cells); drop or fill these rows"
        )
    if len(values) < 4:
        raise BadInput(f"data.name='{name}': {len(values)} rows are too few to split")
    return Table(values[:, :-1], values[:, -1])


# -- data sets by name -----------------------------------------------------------------------------


def _boston() -> Table:
    if importlib.util.find_spec("mlxtend") is None:
        raise BadInput(
            "data.name='boston': it ships with the package mlxtend, which is not installed; "
            "pip install mlxtend, or set data: {name: PATH.csv, target: COLUMN}"
        )
    from mlxtend.data import boston_housing_data

    return _checked("boston", *boston_housing_data())


def _california() -> Table:
    from sklearn.datasets import fetch_california_housing

    folder = cache_folder() / "scikit-learn"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Retry downloading")
            found = fetch_california_housing(
                data_home=folder, return_X_y=True, n_retries=1, delay=0.5
            )
    except OSError as error:
        raise BadInput(
            f"data.name='california': it is not in {folder}, and cannot be downloaded ({error}); "
            "fetch it with sklearn.datasets.fetch_california_housing on a machine with a network "
            "and copy that folder, or set data: {name: PATH.csv, target: COLUMN}"
        ) from error
    return _checked("california", *found)


def _wine(name: str) -> Path:
    """The file of red or white wine quality (Cortez et al. 2009)."""
    file = f"winequality-{name.removeprefix('wine-')}.csv"
    folder = os.environ.get("REPRISE_DATA")
    if folder and (Path(folder) / file).is_file():
        return Path(folder) / file
    cached = cache_folder() / file
    if not cached.is_file():
        looked = f"{Path(folder) / file} and {cached}" if folder else str(cached)
        try:
            with urllib.request.urlopen(UCI + file, timeout=30) as answer:
                content = answer.read()
        except OSError as error:
            raise BadInput(
                f"data.name='{name}': there is no {looked}, and {UCI + file} cannot be downloaded "
                f"({error}); put the file into a folder and name that in REPRISE_DATA, or set "
                "data: {name: PATH.csv, target: quality}"
            ) from error
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(cached, content)
    return cached
