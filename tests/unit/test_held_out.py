"""Held-out observations: preprocessing equal to training's, and refusals."""

import itertools

import ale_py
import numpy as np
import pytest
from ale_py import ALEInterface, roms

from reprise.rollout.environments.base import make
from reprise.rollout.minari_atari import evenly, find, grayscale, held_out, minari_folder, stacks
from reprise.rollout.minari_record import existing, new_data_set, specification
from reprise.rollout.run.settings import EnvironmentSettings

PLAIN = EnvironmentSettings(noop_max=0, fire_reset=False, life_loss="ignore", frame_skip=1)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize("game", ["breakout", "ms_pacman", "seaquest"])
def test_grayscale_is_ales(game):
    ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    emulator = ALEInterface()
    emulator.loadROM(roms.get_rom_path(game))
    random = np.random.default_rng(0)
    actions = emulator.getMinimalActionSet()
    for _ in range(60):
        emulator.act(actions[random.integers(len(actions))])
        np.testing.assert_array_equal(
            grayscale(emulator.getScreenRGB()), emulator.getScreenGrayscale()
        )


def test_stacks_of_raw_frames_equal_the_environments_where_nothing_was_pooled():
    # With frame skip 1 there is no maximum over frames: raw frames give the observations exactly.
    environments = make("ms_pacman", 1, PLAIN)
    observations = [environments.reset(3)[0]]
    frames = [environments.render(0)]
    random = np.random.default_rng(1)
    for _ in range(60):
        step = environments.step(random.integers(0, environments.actions, 1))
        assert not step.episodes
        observations.append(step.observations[0])
        frames.append(environments.render(0))
    rows = np.array([0, 1, 2, 3, 10, 11, 40, 60])
    np.testing.assert_array_equal(
        stacks(np.stack(frames), rows), np.stack(observations)[rows], strict=True
    )


def test_observations_are_spread_evenly_and_always_the_same():
    assert evenly(5, None).tolist() == evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly(100, 4).tolist() == [12, 37, 62, 87]
    for total, count in itertools.product((7, 50, 1001), (1, 3, 7)):
        chosen = evenly(total, count)
        assert len(set(chosen.tolist())) == count and 0 <= chosen.min() <= chosen.max() < total
        assert count == 1 or np.ptp(np.diff(chosen)) <= 1


def write(dataset_id, games, environment="breakout", settings=None, data_format="parquet"):
    """A data set whose frame t of game g is the number 10 g + t everywhere; 4 actions."""
    settings = settings or EnvironmentSettings()
    shape = (210, 160, 3)
    first = np.zeros(shape, np.uint8)
    with new_data_set(dataset_id, environment, settings, first, 4, data_format, {}) as writer:
        for number, steps in enumerate(games):
            frames = [np.full(shape, 10 * number + t, np.uint8) for t in range(steps + 1)]
            actions = [t % 4 for t in range(steps)]
            writer.add(frames, actions, [0.0] * steps, terminated=True)


@pytest.mark.parametrize("data_format", ["parquet", "hdf5", "arrow"])
def test_stacks_never_cross_games_and_the_last_screen_is_not_acted_on(data_format):
    write("breakout/made-v0", [3, 5], data_format=data_format)
    data = held_out("breakout/made-v0", "breakout", 4, 4, None)
    assert data.observations.shape == (8, 4, 84, 84) and data.steps == 8 and not data.lossy
    expected = [
        *([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2]),
        *([10, 10, 10, 10], [10, 10, 10, 11], [10, 10, 11, 12], [10, 11, 12, 13], [11, 12, 13, 14]),
    ]
    assert data.observations[:, :, 5, 7].tolist() == expected
    assert data.taken.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    some = held_out("breakout/made-v0", "breakout", 4, 4, 3)
    assert some.observations[:, :, 5, 7].tolist() == [expected[row] for row in (1, 4, 6)]
    # Actions of another set are not compared with.
    assert held_out("breakout/made-v0", "breakout", 18, 4, 3).taken is None


def test_a_set_is_found_by_id_and_by_folder(datasets):
    write("breakout/made-v0", [2])
    folder = datasets / "breakout" / "made-v0"
    assert minari_folder("breakout/made-v0") == folder
    for source in ("breakout/made-v0", "minari:breakout/made-v0", str(folder), f"{folder}/data"):
        assert find(source) == folder / "data"
        assert len(held_out(source, "breakout", 4, 4, None).observations) == 2
    assert find("dqn-replay") is None
    assert existing("breakout/made-v0")["total_steps"] == 2 and existing("breakout/x-v0") is None
    import minari

    assert list(minari.list_local_datasets()) == ["breakout/made-v0"]
    assert minari.load_dataset("breakout/made-v0").spec.env_spec.id == "ALE/Breakout-v5"


def test_a_killed_recording_leaves_no_set(datasets):
    first = np.zeros((210, 160, 3), np.uint8)
    with (
        pytest.raises(KeyboardInterrupt),
        new_data_set(
            "breakout/made-v0", "breakout", EnvironmentSettings(), first, 4, "parquet", {}
        ) as writer,
    ):
        writer.add([first, first], [0], [0.0], terminated=False)
        raise KeyboardInterrupt
    assert existing("breakout/made-v0") is None
    with pytest.raises(ValueError, match=r"minari download breakout/made-v0.*reprise collect"):
        find("breakout/made-v0")


def test_the_specification_says_how_it_was_played():
    settings = EnvironmentSettings(frame_skip=3, sticky_actions=0.25, max_episode_frames=900)
    spec = specification("ms_pacman", settings)
    assert spec.id == "ALE/MsPacman-v5" and spec.kwargs["frameskip"] == 3
    assert spec.kwargs["repeat_action_probability"] == 0.25
    assert spec.kwargs["max_num_frames_per_episode"] == 900
    assert specification("ms_pacman", EnvironmentSettings()).kwargs["frameskip"] == 4
    assert specification("CartPole-v1", EnvironmentSettings()).id == "CartPole-v1"


def test_data_of_something_else_are_refused():
    write("breakout/made-v0", [2])
    for arguments, told in [
        (("ms_pacman", 9, 4), r"data set of breakout \(ALE/Breakout-v5\).*runs play ms_pacman"),
        (("breakout", 4, 2), "frame skip 4, the runs play with 2"),
        (("CartPole-v1", 2, 4), "of breakout"),
    ]:
        with pytest.raises(ValueError, match=told):
            held_out("breakout/made-v0", *arguments, None)
    with pytest.raises(ValueError, match=r"neither by id nor as a folder.*reprise collect"):
        held_out("dqn-replay", "breakout", 4, 4, None)
    with pytest.raises(ValueError, match=r"atari/breakout/expert-v0.*MINARI_DATASETS_PATH"):
        held_out("atari/breakout/expert-v0", "breakout", 4, 4, None)


def test_what_is_in_the_way_of_a_data_set_is_named(datasets):
    (datasets / "breakout" / "made-v0").mkdir(parents=True)
    with pytest.raises(ValueError, match="is there and is no data set"):
        existing("breakout/made-v0")
