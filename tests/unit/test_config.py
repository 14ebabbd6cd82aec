"""Configs: every shipped one parses; every mistake is named, all at once, with the key as typed."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from reprise.launch import config, strict_yaml
from reprise.launch.config import ConfigError

TINY = """\
# A small on-policy run.
experiment: alignment.on_policy
policy: nowhere/policy
data: {name: docstrings}
reward: {model: nowhere/reward}
sampling: {max_new_tokens: 8}
objective: {name: rdrc, gamma: 5e-7, reference: previous, gamma_c: 1e-6}
rounds: 2
batch_size: 8
"""


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


def problems(file, *overrides):
    with pytest.raises(ConfigError) as caught:
        config.load(file, overrides)
    head, *listed = str(caught.value).splitlines()
    assert head == f"{file}: {len(listed)} problem" + "s" * (len(listed) > 1)
    return [line.removeprefix("  - ") for line in listed]


# -- YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-6", 1e-6),
        ("5E7", 5e7),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        (".5e1", 5.0),
        ("3.", 3.0),
        ("010", 10),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("1e-6x", "1e-6x"),
        ("[1e-6, 1e-4]", [1e-6, 1e-4]),
        ("'1e-6'", "1e-6"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text, value):
    found = strict_yaml.read(text)
    assert found == value
    assert type(found) is type(value)


def test_what_is_written_is_read_back_by_both_versions_of_yaml():
    import yaml

    words = ["1e-6", "010", "1:30", "no", "on", "true", "null", "~", "", "a: b", "#", "7", "é\n"]
    value = {"words": words, "numbers": [1e-6, 5e-7, 1e300, 0.1, 3, -2], "none": None, "yes": True}
    text = strict_yaml.write(value)
    assert strict_yaml.read(text) == value
    older = yaml.safe_load(text)
    assert older["words"] == words
    assert older["numbers"] == value["numbers"]


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text(TINY + "rounds: 3\n")
    with pytest.raises(ConfigError, match=r"line 10, column 1: the key 'rounds' is given twice"):
        config.load(file)


def test_malformed_yaml_names_file_and_line(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("experiment: alignment.on_policy\ndata: {name: docstrings\nrounds: 2\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not a YAML file: line 3"):
        config.load(file)


@pytest.mark.parametrize("text", ["", "- a\n", "word\n"])
def test_a_config_is_a_mapping(tmp_path, text):
    file = tmp_path / "other.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="a config is a mapping"):
        config.load(file)


# -- values and overrides ------------------------------------------------------------------------


def test_defaults_are_resolved_and_survive_a_trip_through_yaml(tiny, tmp_path):
    settings = config.load(tiny)
    assert settings.objective.gamma == 5e-7
    assert settings.sampling.temperature == 1.0
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(settings))
    assert config.load(again) == settings
    assert config.config_sha256(config.load(again)) == config.config_sha256(settings)
    assert "temperature: 1.0" in again.read_text()


def test_the_hash_is_that_of_the_canonical_json_and_sees_every_setting(tiny):
    settings = config.load(tiny)
    values = settings.model_dump(mode="json")
    del values["report"]  # where a run is shown changes nothing that it computes
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert config.config_sha256(settings) == hashlib.sha256(text.encode()).hexdigest()
    changed = config.load(tiny, ["sampling.top_k=1"])
    assert config.config_sha256(changed) != config.config_sha256(settings)
    shown = config.load(tiny, ["report.trackers=[wandb]", "report.push=me/x"])
    assert config.config_sha256(shown) == config.config_sha256(settings)


def test_overrides_reach_nested_keys_lists_and_absent_sections(tiny):
    settings = config.load(
        tiny,
        [
            "seed=7",
            "objective.gamma=[1e-6, 1e-4]",
            "evaluation.prompts=12",
            "train.learning_rate=3e-7",
            "reward.missing_eos_penalty=",
            "prompts_per_round=[3,4]",
        ],
    )
    assert settings.seed == 7
    assert settings.objective.gamma == [1e-6, 1e-4]
    assert settings.evaluation.prompts == 12
    assert settings.train["learning_rate"] == 3e-7
    assert settings.reward.missing_eos_penalty is None
    assert [settings.prompts_in_round(k) for k in range(2)] == [3, 4]


def test_a_section_can_be_replaced_whole(tiny):
    settings = config.load(tiny, ["objective={name: rebel, gamma: 0.1, reference: previous}"])
    assert type(settings.objective).__name__ == "REBEL"


def test_later_overrides_win(tiny):
    assert config.load(tiny, ["seed=1", "seed=2"]).seed == 2


# -- mistakes ------------------------------------------------------------------------------------


def test_all_problems_at_once_each_with_key_value_rule_and_nearest_key(tiny):
    found = problems(
        tiny,
        "objective.gama=0.1",
        "objective.gamma=-1",
        "sampling.temperature=hot",
        "evaluation.promts=3",
        "learning_rate=3e-7",
        "rounds='4'",
        "seed=true",
        "nonsense",
        "rounds.x=1",
        "data={name: a",
        "train.learning_rat=1",
    )
    expected = [
        ["objective.gama = 0.1", "unknown key", "did you mean 'objective.gamma'?"],
        ["objective.gamma = -1", "greater than 0", "list"],
        ["sampling.temperature = 'hot'", "valid number", "softmax temperature"],
        ["evaluation.promts = 3", "did you mean 'evaluation.prompts'?"],
        ["learning_rate = 3e-07", "did you mean 'train.learning_rate'?"],
        ["rounds = '4'", "valid integer"],
        ["seed = True", "valid integer"],
        ["override 'nonsense'", "key.path=value"],
        ["rounds.x = 1", "'rounds' is '4', not a section"],
        ["data = '{name: a'", "not YAML"],
        ["train", "'learning_rat'", "did you mean 'learning_rate'?"],
    ]
    assert len(found) == len(expected)
    for words in expected:
        assert any(all(word in line for word in words) for line in found), (words, found)


def test_a_bad_entry_of_a_list_is_named_by_its_place(tiny):
    [line] = problems(tiny, "objective.gamma=[1, -2]")
    assert line.startswith("objective.gamma.1 = -2: should be greater than 0")


def test_required_keys_are_named_with_their_meaning(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text(TINY.replace("rounds: 2\n", "").replace("{name: docstrings}", "{}"))
    assert problems(file) == [
        "data.name: required, but not given ('docstrings', a Hub name, or a path of the same "
        "schema)",
        "rounds: required, but not given (K, number of policy updates)",
    ]


def test_rules_across_keys(tiny):
    [line] = problems(tiny, "objective.gamma=[1,2,3]")
    assert line.startswith("objective.gamma lists 3 values for rounds=2")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(tiny, value):
    [line] = problems(tiny, f"objective.gamma_c={value}")
    assert line.startswith("objective.gamma_c = ")


@pytest.mark.parametrize(
    "override, words",
    [
        ("objective.name=dop", ["objective", "'dop'", "did you mean 'dpo'?"]),
        ("objective=3", ["objective = 3", "section of keys"]),
        ("objective={gamma: 1}", ["objective", "'name'", "missing"]),
        ("experiment=alignment.onpolicy", ["did you mean 'alignment.on_policy'?"]),
        ("experiment=", ["experiment", "alignment.sft"]),
        ("selection=frist_two", ["selection = 'frist_two'", "'first_two' or 'best_worst'"]),
        ("train.seed=1", ["train", "use the top-level `seed`"]),
        ("train.hub_token=hf_secret", ["train.hub_token", "hf auth login"]),
        ("train.per_device_train_batch_size=0", ["train", "is 0", "at least 1"]),
        ("train.learning_rate=-1e-3", ["train", "is -0.001", "at least 0"]),
    ],
)
def test_each_kind_of_mistake_says_what_would_be_right(tiny, override, words):
    [line] = problems(tiny, override)
    assert all(word in line for word in words), line


def test_missing_experiment(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("seed: 1\n")
    [line] = problems(file)
    assert line.startswith("experiment: required, but not given (one of alignment.sft")


def test_differences_name_keys_and_both_values():
    ours = {"a": 1, "b": {"c": [1], "d": 2}, "new": 3}
    theirs = {"a": 1, "b": {"c": [2], "d": 2}, "old": 4}
    assert config.differences(ours, theirs) == [
        "b.c: [1] here, [2] there",
        "new: 3 here, (absent) there",
        "old: (absent) here, 4 there",
    ]


# -- shipped configs -----------------------------------------------------------------------------

SHIPPED = 81
CONFIGS = Path(__file__).parents[2] / "configs"
ON_DISK = sorted(set(CONFIGS.rglob("*.y*ml")) - set(CONFIGS.glob("tables/*")))  # those: test_tables


def test_every_shipped_config_is_found_and_their_number_is_known():
    assert sorted(config.shipped().values()) == ON_DISK
    assert len(ON_DISK) == SHIPPED


@pytest.mark.parametrize("name", config.shipped())
def test_every_shipped_config_parses_and_says_what_it_is(name):
    file = config.find(name)
    settings = config.load(name)
    assert settings.experiment in config.EXPERIMENTS
    assert config.description(file), f"{file}: start with a comment line that says what it is"


def test_shipped_configs_differ_from_each_other():
    hashes = {name: config.config_sha256(config.load(name)) for name in config.shipped()}
    same = [
        pair for pair in itertools.combinations(hashes, 2) if hashes[pair[0]] == hashes[pair[1]]
    ]
    assert same == []


def test_a_shipped_config_is_found_by_any_of_its_names():
    name, file = next(iter(config.shipped().items()))
    for typed in (name, f"{name}.yaml", f"configs/{name}", f"configs/{name}.yaml", file):
        assert config.find(typed).resolve() == file.resolve()


@pytest.mark.parametrize("typed", ["quickstart/stf", "sft", "configs/quickstart/sft.yml"])
def test_a_missing_config_names_the_nearest(typed):
    with pytest.raises(ConfigError, match="did you mean 'quickstart/sft'"):
        config.find(typed)


def test_every_experiment_has_its_config_type_and_run_function():
    for name, experiment in config.EXPERIMENTS.items():
        assert name in str(experiment.config_type().model_fields["experiment"].annotation)
        assert callable(experiment.run_function())
