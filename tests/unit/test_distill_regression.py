"""The regression experiment: its data, its bad inputs, its summary, and a run that lost its end."""

import functools
import importlib.util
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from reprise.distill.config import DistillRegression, RegressionData, SyntheticData
from reprise.distill.supervised import data as regression_data
from reprise.distill.supervised import domains
from reprise.distill.supervised.baselines import least_squares, mean_squared_error, random_subset
from reprise.distill.supervised.data import load, read_csv
from reprise.distill.supervised.regression import (
    BelowThreshold,
    distill,
    draw_regressors,
    size_bound,
)
from reprise.distill.supervised.study import Trials
from reprise.launch.config import ConfigError
from reprise.launch.run import execute

WINE = '"acidity";"pH";"quality"\n7.4;3.51;5\n7.8;3.2;6\n11.2;3.16;6\n7.9;3.3;7\n6.1;3.4;4\n'


@pytest.fixture
def draw():
    return np.random.default_rng(5)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No cache, and a network on which nobody answers."""
    monkeypatch.setenv("REPRISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPRISE_DATA", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def config(**changes):
    given = {
        "experiment": "distill.regression",
        "data": {"name": "synthetic"},
        "sizes": [20],
        "regressors": [73],
        **changes,
    }
    return DistillRegression.model_validate(given)


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_by_any_of_its_separators(separator, tmp_path, draw):
    path = tmp_path / "wine.csv"
    path.write_text(WINE.replace(";", separator))
    table = load(RegressionData(name=str(path), target="pH"), draw)
    assert table.target.tolist() == [3.51, 3.2, 3.16, 3.3, 3.4]
    assert table.features[:2].tolist() == [[7.4, 5], [7.8, 6]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("7.8", "nan"), "row 1 has nan as its feature 0 .*drop or fill"),
        ((";6\n", ";inf\n"), "row 1 has inf as its target"),
        (("7.8", "many"), "row 1 has 'many' as 'acidity', which is no number"),
        (("7.8", ""), "row 1 has '' as 'acidity'"),
        (("7.8;", ""), "row 1 has 2 cells, the header 3"),
        (('"quality"', '"score"'), "no such column; it has acidity, pH, score"),
        (("7.9;3.3;7\n6.1;3.4;4\n", ""), "3 rows are too few"),
    ],
)
def test_a_bad_file_is_refused_by_row_and_column(change, said, tmp_path):
    path = tmp_path / "wine.csv"
    path.write_text(WINE.replace(*change))
    with pytest.raises(ValueError, match=said):
        read_csv(path, "quality")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "wine-rose"}, "should be one of synthetic, diabetes, .* path of a .csv file"),
        ({"name": "wine.csv"}, "a CSV file needs a target"),
        ({"name": "diabetes", "target": "bmi"}, "the other data sets have theirs"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_read(data, said):
    with pytest.raises(ValueError, match=said):
        RegressionData.model_validate(data)


def test_unreachable_data_sets_say_where_to_get_them(offline, draw, monkeypatch):
    with pytest.raises(ValueError, match=r"data\.name='/none\.csv': no such file"):
        load(RegressionData(name="/none.csv", target="y"), draw)
    with pytest.raises(
        ValueError, match=r"winequality-red\.csv cannot be downloaded .*REPRISE_DATA"
    ):
        load(RegressionData(name="wine-red"), draw)
    with pytest.raises(ValueError, match=r"california.*cannot be downloaded.*copy that folder"):
        load(RegressionData(name="california"), draw)
    monkeypatch.setitem(__import__("sys").modules, "mlxtend", None)  # as if not installed
    with pytest.raises(ValueError, match="pip install mlxtend"):
        load(RegressionData(name="boston"), draw)


def test_wine_from_a_folder_from_a_server_and_from_the_cache(offline, draw, monkeypatch):
    (offline / "data").mkdir()
    (offline / "data" / "winequality-white.csv").write_text(WINE)
    monkeypatch.setenv("REPRISE_DATA", str(offline / "data"))
    wine = RegressionData(name="wine-white")
    assert load(wine, draw).target.tolist() == [5, 6, 6, 7, 4]
    monkeypatch.delenv("REPRISE_DATA")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(offline / "data"))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(regression_data, "UCI", f"http://127.0.0.1:{server.server_port}/")
        assert load(wine, draw).target.tolist() == [5, 6, 6, 7, 4]
        with pytest.raises(ValueError, match=r"wine-red.*404"):
            load(RegressionData(name="wine-red"), draw)
        server.shutdown()
    assert load(wine, draw).target.tolist() == [5, 6, 6, 7, 4]  # now from the cache


def test_data_sets_that_ship_with_packages(draw):
    assert load(RegressionData(name="diabetes"), draw).features.shape == (442, 10)
    if importlib.util.find_spec("mlxtend"):
        boston = load(RegressionData(name="boston"), draw)
        assert boston.features.shape == (506, 13) and boston.target[:3].tolist() == [24, 21.6, 34.7]


def test_synthetic_data_have_the_condition_asked_for(draw):
    settings = SyntheticData(dimension=4, points=200_000, condition=100.0, noise=0.5)
    table = load(RegressionData(name="synthetic", synthetic=settings), draw)
    values = np.linalg.eigvalsh(np.cov(table.features.T))
    assert values == pytest.approx(np.geomspace(0.01, 1, 4), rel=0.03)
    fitted = np.linalg.lstsq(table.features, table.target, rcond=None)[0]
    assert np.std(table.features @ fitted - table.target) == pytest.approx(0.5, rel=0.02)
    # Scaling the columns does not undo it.
    assert np.linalg.cond(np.corrcoef(table.features.T)) > 5


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the wine data are not here")
@pytest.mark.parametrize(("name", "rows", "full"), [("red", 1599, 0.443), ("white", 4898, 0.574)])
def test_wine_is_distilled_to_twenty_points(name, rows, full, monkeypatch):
    monkeypatch.setenv("REPRISE_DATA", str(SHARED))
    trials = Trials(config(data={"name": f"wine-{name}"}, routes=["sampled"], regressors=[86]))
    assert trials.table.features.shape == (rows, 11) and trials.threshold == 78
    values = [trials.run(trial) for trial in range(2)]
    for found in values:
        assert float(found["sampled/20/86/relative"]) < 1e-8
        assert float(found["sampled/20/86/mse"]) == pytest.approx(
            float(found["full/mse"]), rel=1e-6
        )
        assert float(found["random/20/mse"]) > 1.1 * float(found["full/mse"])
    mean = np.mean([float(found["full/mse"]) for found in values])
    assert mean == pytest.approx(full, rel=0.15)  # of other splits


# -- bad input -------------------------------------------------------------------------------------


def test_too_few_points_or_regressors_are_named(draw):
    training = draw.standard_normal((60, 4))
    regressors = draw_regressors(10, 4, draw)
    assert size_bound(training) == 4 and size_bound(training[:, [0, 0, 1]]) == 2
    with pytest.raises(ValueError, match=r"size=3 is below the size bound: .* rank 4"):
        distill("moments", training, training[:3], regressors, draw=draw)
    with pytest.warns(
        BelowThreshold, match=r"regressors=9 is below the threshold q\(q\+1\)/2 = 10"
    ):
        distill("sampled", training, training[:4], regressors[:9], draw=draw)
    distill("sampled", training, training[:4], regressors, draw=draw)
    broken = training.copy()
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="training: row 7 has a value that is not finite"):
        distill("closed_form", broken, training[:4], regressors, draw=draw)
    with pytest.raises(ValueError, match="start: row 7"):
        distill("sampled", training, broken[:9], regressors, draw=draw)
    with pytest.raises(ValueError, match="61 is more than the 60 training points"):
        random_subset(training, 61, draw)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": [50, 10]}, "sizes: 10 is below the size bound: .* rank 11, .*study=lower_bound"),
        ({"sizes": [10], "intercept": True}, "below the size bound: .* rank 12"),
        ({"sizes": [2000]}, "sizes: 2000 is more than the 1000 training points of synthetic"),
    ],
)
def test_impossible_sizes_are_refused_before_any_work(changes, said):
    with pytest.raises(ValueError, match=said):
        Trials(config(**changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("routes=[adam]", "routes"),
        ("sizes=[]", "sizes"),
        ("domain.margin=1.0", "domain.margin = 1.0"),
        ("regressors=[0]", "regressors.0 = 0"),
        ("data.synthetic.condition=0.5", "data.synthetic.condition = 0.5"),
        ("data.path=x", "data.path = 'x': unknown key"),
    ],
)
def test_a_wrong_config_is_refused(change, said, tmp_path):
    with pytest.raises(ConfigError) as error:
        execute("quickstart/distill_regression", [change], tmp_path)
    assert said in str(error.value)


def test_the_lower_bound_needs_a_route_that_sees_only_losses():
    with pytest.raises(ValueError, match="the first has to be sampled"):
        config(study="lower_bound", routes=["moments"])
    with pytest.raises(ValueError, match="intercept=true"):
        config(study="lower_bound", intercept=True)


# -- the experiment --------------------------------------------------------------------------------


def test_bounded_domains_hold_and_are_left_by_no_route(draw):
    # From the 8 farthest points, all near the edge, which they have to leave.
    training = draw.standard_normal((500, 3))
    start = training[np.argsort(-np.abs(training[:, 0]))[:8]]
    regressors = draw_regressors(20, 3, draw)
    for shape in ("ball", "box"):
        domain = domains.around(training, shape, 1.01)
        for route in ("sampled", "sampled_gauss_newton", "moments"):
            found = distill(route, training, start, regressors, draw=draw, domain=domain)
            assert domain.contains(found.points) and found.objective < 1e-20
    beyond = distill("moments", 3 * training, start, regressors, draw=draw, domain=domain)
    assert domain.contains(beyond.points) and beyond.objective > 1e-6  # out of reach: it says so


def test_an_intercept_is_matched_as_well(tmp_path):
    changes = ["intercept=true", "standardize=false", "regressors=[58, 85]", "sizes=[24]"]
    changes += ["trials=2", "routes=[sampled_gauss_newton, closed_form]"]
    execute("quickstart/distill_regression", changes, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["threshold"] == 12 * 13 // 2 - 1 and summary["size_bound"] == 12
    below, above, closed = summary["cells"]
    assert below["held_out_relative_error"] > 1e-2
    for cell in (above, closed):
        assert cell["held_out_relative_error"] < 1e-10
        assert cell["test_mse"] == pytest.approx(cell["test_mse_full"], rel=1e-8)


SMALL = ["trials=3", "sizes=[20, 30]", "regressors=[49, 73]", "held_out=200"]


def test_the_experiment_and_a_run_that_lost_its_end(tmp_path):
    execute("quickstart/distill_regression", SMALL, tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["dimension"], summary["threshold"], summary["size_bound"]) == (10, 66, 11)
    places = [(c["route"], c["k"], c["size"]) for c in summary["cells"]]
    assert places == [
        (route, k, size)
        for route, counts in (
            ("sampled", (49, 73)),
            ("sampled_gauss_newton", (49, 73)),
            ("moments", (66,)),
            ("closed_form", (66,)),
        )
        for k in counts
        for size in (20, 30)
    ]
    for cell in summary["cells"]:
        assert cell["test_mse_full"] < cell["test_mse_random"] and cell["inside_domain"]
        assert cell["test_mse_full"] < cell["test_mse_leverage"]
        if cell["k"] == 49:  # three quarters of the threshold
            assert cell["held_out_relative_error"] > 1e-2
            assert cell["test_mse"] > 1.01 * cell["test_mse_full"]
        else:
            assert cell["held_out_relative_error"] < cell["worst_relative_error"] < 1e-5
            assert cell["test_mse"] == pytest.approx(cell["test_mse_full"], rel=1e-4)
    assert (tmp_path / "a" / "figure.png").stat().st_size > 10_000
    assert "| closed_form | 66 | 30 |" in (tmp_path / "a" / "table.md").read_text()
    # The distilled points themselves, in the data's units: least squares on them is the full fit.
    with np.load(tmp_path / "a" / "checkpoints" / "final" / "weights.npz") as file:
        points = file["trial-1/weights/sampled/20/73"]
        same = file["trial-1/weights/closed_form/20/66"]
    trials = Trials(config())
    training, test, mean, scale = trials.split(1)
    made = (points - mean) / scale
    assert points.shape == (20, 11)
    assert least_squares(made) == pytest.approx(least_squares(training), abs=1e-8)
    assert least_squares((same - mean) / scale) == pytest.approx(least_squares(made), abs=1e-8)
    assert mean_squared_error(least_squares(made), test) > 0
    # Cells and summary lost: made again, to the last bit.
    (tmp_path / "a" / "summary.json").unlink()
    for name in ("trial-2", "final"):
        folder = tmp_path / "a" / "checkpoints" / name
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    execute("quickstart/distill_regression", SMALL, tmp_path / "a")
    again = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert again["weights_sha256"] == summary["weights_sha256"]
    assert again["cells"] == summary["cells"]


def test_replicas_share_regressors_but_not_data():
    one, other = Trials(config(seed=0)), Trials(config(seed=1))
    assert np.array_equal(one.regressors(0)[0], other.regressors(0)[0])
    assert not np.array_equal(one.regressors(0)[0], one.regressors(1)[0])
    assert not np.array_equal(one.split(0)[0], other.split(0)[0])
    assert not np.array_equal(one.split(0)[0], one.split(1)[0])
    training, test, *_ = one.split(0)
    assert training.shape == (1000, 11) and test.shape == (250, 11)
    assert np.abs(training.mean(0)).max() < 1e-12 and training.std(0) == pytest.approx(1)


def test_the_lower_bounds_hold_and_are_reached(tmp_path):
    changes = ["trials=2", "sizes=[2, 5, 6, 7]", "regressors=[10, 20, 21, 25]"]
    execute("paper/distill_lower_bound", changes, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for entry in summary["too_few_points"]:
        assert entry["bound"] == (entry["size"] < 6)
        assert entry["absolute"] >= entry["eigenvalue"] * (1 - 1e-9)
        if entry["bound"]:
            assert entry["worst_min"] >= 1 - 1e-9
        else:
            assert entry["worst_max"] < 1e-8
        if entry["route"] == "closed_form" and entry["bound"]:
            assert entry["absolute"] == pytest.approx(entry["eigenvalue"], rel=1e-9)
    for entry in summary["too_few_regressors"]:
        assert entry["seen_apart"] < 1e-11 and entry["answers_apart"] < 1e-6
        assert (entry["worst_min"] >= 0.9 - 1e-9) if entry["k"] < 21 else entry["worst_max"] < 1e-6
        assert entry["bound"] == (0.9 if entry["k"] < 21 else 0)
    assert (tmp_path / "run" / "figure.svg").exists()
