"""Secrets reach no log, config, card or exception; neutral text is left as it is."""

import json
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from reprise.launch import config
from reprise.launch.provenance import command_line
from reprise.rollout.run.remote import hide_secrets_in_logs, is_secret_name, redact, secrets_in

ROOT = Path(__file__).parents[2]
SHAPED = [
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "sk-proj-abcdefghijklmnopqrstuvwx_yz-0123",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopq",
    "AKIAIOSFODNN7EXAMPLE",
]


@pytest.mark.parametrize("secret", SHAPED)
def test_shapes(secret):
    assert redact(f"with {secret}, and more") == "with ***, and more"
    assert secrets_in({"a": [{"b": f"x {secret}"}]}) == ["a.0.b"]
    assert secrets_in({secret: 1}) == ["***"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pa55word@host/x", "https://***@host/x"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer ***"),
        (
            "PUT https://s3/x?X-Amz-Signature=0a1b2c&X-Amz-Date=1 failed",
            "PUT https://s3/x?X-Amz-Signature=***&X-Amz-Date=1 failed",
        ),
        ("http://127.0.0.1/v1?api_key=abc", "http://127.0.0.1/v1?api_key=***"),
    ],
)
def test_addresses_and_headers(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens=24, eos_token=<eos>, lr 5e-7",
        "the token may not write to me/model",
        "a16e9dcd92c28da2a1079f09bc6ca16223121fed6e5c8f14fbcebd64f3aa9b78",
        "247f8990d920685f762b357a98f4d38403b9b877",
        "https://huggingface.co/me/model/tree/main?recursive=true",
        "task-risk-sk-learn",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_values_of_the_environment_and_of_the_login(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_API_KEY", "0123456789abcdef0123")
    monkeypatch.setenv("SOME_TOKEN", "short")
    (tmp_path / "token").write_text("a-login-without-a-known-shape\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert (
        redact("x 0123456789abcdef0123 y a-login-without-a-known-shape short")
        == "x *** y *** short"
    )


def test_names():
    for name in ("hub_token", "WANDB_API_KEY", "password", "api-key", "openai.api_key", "secret"):
        assert is_secret_name(name), name
    for name in ("max_new_tokens", "api_key_variable", "pad_token", "token_limit", "keys"):
        assert not is_secret_name(name), name


# -- configs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        [f"policy={SHAPED[0]}"],
        ["train.hub_token=abc"],
        [f"data.nmae={SHAPED[1]}", "sede=3"],
        ["policy=https://me:pa55word@host/model"],
    ],
)
def test_a_config_with_a_secret_is_refused_without_repeating_it(overrides):
    with pytest.raises(config.ConfigError) as refused:
        config.load("quickstart/onpolicy_dpo", overrides)
    text = str(refused.value)
    assert "looks like a key or a token" in text and "environment" in text
    assert overrides[0].partition("=")[0] in text
    for value in ("hf_abc", "sk-proj", "abc ", "pa55word"):
        assert value not in text


def test_every_shipped_config_is_free_of_secrets():
    for path in config.shipped().values():
        assert secrets_in(config.read(path)) == [], path


# -- what is said ----------------------------------------------------------------------------------


def test_command_lines():
    given = [
        "/bin/reprise",
        "push",
        "d",
        SHAPED[0],
        "--token",
        "x y",
        "train.hub_token=z",
        "seed=1",
    ]
    shown = ["reprise", "push", "d", "***", "--token", "***", "train.hub_token=***", "seed=1"]
    assert command_line(given) == shown


def test_logs_of_any_library(caplog):
    before = logging.getLogRecordFactory()
    try:
        hide_secrets_in_logs()
        hide_secrets_in_logs()
        with caplog.at_level(logging.WARNING):
            logging.getLogger("some.library").warning("retrying with %s", SHAPED[0])
            try:
                raise RuntimeError(f"refused {SHAPED[1]}")
            except RuntimeError:
                logging.getLogger("other").exception("failed")
    finally:
        logging.setLogRecordFactory(before)
    assert SHAPED[0] not in caplog.text and SHAPED[1] not in caplog.text
    assert "retrying with ***" in caplog.text and "RuntimeError: refused ***" in caplog.text


def test_a_traceback_of_the_command_line():
    code = (
        "import sys\nfrom reprise.launch.cli.ending import exit_status\n"
        f"def work():\n    raise RuntimeError('the server said {SHAPED[0]}')\n"
        "sys.exit(exit_status(work))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_TOKEN": SHAPED[0]},
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "RuntimeError: the server said ***" in done.stderr
    assert SHAPED[0] not in done.stderr + done.stdout


def test_what_a_run_says_and_its_card(tmp_path, capsys, monkeypatch):
    from reprise.launch.hub import cards
    from reprise.rollout.run.run_dir import RunDir

    monkeypatch.setenv("HOME", "/home/someone")
    run = RunDir(tmp_path, experiment="rl.fqi", seed=0)
    run.say(f"pushed with {SHAPED[0]}")
    assert capsys.readouterr().err == "pushed with ***\n"
    (tmp_path / "config.yaml").write_text(
        "experiment: alignment.sft\nmodel: /home/someone/models/x\nreport: {push: me/x}\n"
    )
    (tmp_path / "provenance.json").write_text(json.dumps({"cpu": f"fast {SHAPED[2]}"}))
    text = cards.card(tmp_path, "me/x", "model")
    assert "model: ~/models/x" in text and "fast ***" in text
    assert "someone" not in text and SHAPED[2] not in text and "me/x\n  " not in text


def test_the_cause_of_an_outage_is_not_printed():
    from reprise.rollout.run.remote import OutageError

    def fail():
        try:
            raise RuntimeError(SHAPED[0])
        except RuntimeError as error:
            raise OutageError(redact(str(error))) from None

    with pytest.raises(OutageError) as outage:
        fail()
    assert SHAPED[0] not in "".join(traceback.format_exception(outage.value))
