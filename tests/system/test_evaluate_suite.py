"""`reprise evaluate`: leaderboard tasks from a local folder, a judge, AlpacaEval's files."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from reprise.alignment.judging.win_rates import Gamed, length_controlled_win_rate
from reprise.launch import strict_yaml
from reprise.launch.cli.main import main
from reprise.launch.run import execute
from reprise.rollout.store import RoundStore
from tests.system.judge_server import judge_server
from tests.system.leaderboard_tasks import write_tasks

KEY = "sk-another-key-that-must-not-be-seen"


@pytest.fixture(scope="module")
def run(llama_lab, tmp_path_factory):
    """A finished run of two rounds."""
    folder = tmp_path_factory.mktemp("suites") / "run"
    file = folder.with_suffix(".yaml")
    changes = {"evaluation__prompts": 12, "sampling__max_new_tokens": 12}
    file.write_text(strict_yaml.write(llama_lab.config(rounds=2, **changes)))
    execute(file, out=folder)
    return folder


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server() as running:
        yield running


def reprise(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def with_judge(server):
    return [
        "judge.model=longer",
        f"judge.base_url={server.url}",
        "judge.price_input=1",
        "judge.price_output=2",
        "judge.budget=1",
    ]


# -- a judge -----------------------------------------------------------------------------------


def texts_of(run, index):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoints" / "final")
    data = RoundStore(run / "evaluations").read(index).data
    return [
        tokenizer.decode(row[0], skip_special_tokens=True).strip() for row in data.completion_ids
    ]


def test_a_judge_of_stored_samples(run, server, capsys):
    arguments = [run, "--suite", "judge", *with_judge(server), "--format", "json"]
    code, output, errors = reprise(capsys, *arguments, "--dry-run")
    assert code == 0 and server.requests == [] and "about" in errors
    [estimate] = json.loads(output)
    assert estimate["result"]["requests"] == 24 and estimate["result"]["usd"] > 0
    assert not (run / "suites").exists()

    code, output, _ = reprise(capsys, *arguments)
    assert code == 0
    [record] = json.loads(output)
    result = record["result"]
    ours, initial = texts_of(run, 2), texts_of(run, 0)
    p = np.array([0.5 + 0.5 * np.sign(len(a) - len(b)) for a, b in zip(ours, initial, strict=True)])
    assert result["win_rate"] == pytest.approx(100 * p.mean()) and 0 < p.mean() < 1
    assert result["win_rate_ci95"][0] <= result["win_rate"] <= result["win_rate_ci95"][1]
    assert result["characters"] == pytest.approx(np.mean([len(text) for text in ours]))
    assert result["judged"] == 12 and result["contradictory"] == result["unparsed"] == 0
    assert json.loads((run / "suites/judge/round-00002.json").read_text()) == record

    asked = len(server.requests)
    assert reprise(capsys, *arguments)[0] == 0
    assert len(server.requests) == asked, "a result that is there is left alone"
    code, _, errors = reprise(capsys, *arguments, "judge.temperature=1.0")
    assert code == 2 and "holds the result of other settings" in errors
    # Another round asks only what is new; the initial policy ties with itself.
    code, output, _ = reprise(capsys, *arguments, "--round", 0)
    assert json.loads(output)[0]["result"]["win_rate"] == 50.0
    kept = "".join(file.read_text() for file in (run / "suites").rglob("*") if file.is_file())
    assert KEY not in kept


def test_a_judge_against_what_people_wrote(run, server, capsys, tmp_path):
    arguments = [run, "--suite", "judge", *with_judge(server), "against=references"]
    code, _, errors = reprise(capsys, *arguments, "--out", tmp_path, "prompts=4")
    assert code == 0, errors
    record = json.loads((tmp_path / "suites/judge/round-00002.json").read_text())
    assert record["result"]["judged"] == 4
    question = server.requests[0]["messages"][0]["content"]
    assert question.count(".") >= 1  # the lab's references end in a period


def test_an_outage_is_a_sentence_and_a_rerun_continues(run, server, capsys, tmp_path):
    arguments = [run, "--suite", "judge", *with_judge(server), "--out", tmp_path]
    arguments += ["judge.retries=1", "judge.backoff=0.01", "judge.concurrency=1"]
    server.faults = [None] * 5 + [500] * 99
    code, _, errors = reprise(capsys, *arguments)
    assert code == 1 and "error: the judge at" in errors and "Traceback" not in errors
    assert KEY not in errors
    server.faults, asked = [], len(server.requests)
    assert reprise(capsys, *arguments)[0] == 0
    distinct = {json.dumps(request) for request in server.requests}
    assert len(server.requests) - asked == len(distinct) - 5


def test_completions_of_each_round_are_shown_as_a_table(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tables = events.Tensors("completions/text_summary")
    assert [table.step for table in tables] == [0, 1, 2]
    text = tables[2].tensor_proto.string_val[0].decode()
    assert text.startswith("| prompt | completion | written by people | reward | ended |")
    assert len(text.splitlines()) == 2 + 8  # report.samples


# -- AlpacaEval ----------------------------------------------------------------------------------


def test_alpaca_eval_files(run, server, capsys, tmp_path):
    rows = [
        {
            "instruction": f"get the {'name ' * (i % 4)}:",
            "output": "x" * (3 * i),
            "generator": "gpt",
        }
        for i in range(12)
    ]
    (tmp_path / "baseline.json").write_text(json.dumps(rows))
    generator = np.random.default_rng(0)
    gamed = [
        [i, x, d, 1 / (1 + np.exp(x))]
        for i, x, d in zip(range(12), generator.normal(size=12), np.arange(12) / 6, strict=True)
    ]
    lines = ["index,std_delta_len,instruction_difficulty,preference"]
    lines += [",".join(map(str, row)) for row in gamed]
    (tmp_path / "gamed.csv").write_text("\n".join(lines) + "\n")
    arguments = [run, "--suite", "alpaca", *with_judge(server), "--out", tmp_path]
    arguments += [f"instructions={tmp_path}/baseline.json", f"gamed={tmp_path}/gamed.csv"]
    arguments += ["generator=ours", "sampling.max_new_tokens=8", "sampling.temperature=0"]
    arguments += ["sampling.samples_per_prompt=1"]
    assert reprise(capsys, *arguments)[0] == 0
    folder = tmp_path / "suites/alpaca/round-00002"
    outputs = json.loads((folder / "model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in rows]
    annotations = json.loads((folder / "annotations.json").read_text())
    for annotation, row, output in zip(annotations, rows, outputs, strict=True):
        assert annotation["output_1"] == row["output"] and annotation["generator_1"] == "gpt"
        assert annotation["output_2"] == output["output"] and annotation["generator_2"] == "ours"
        difference = len(output["output"]) - len(row["output"])
        assert annotation["preference"] == 1.5 + 0.5 * np.sign(difference)
        assert annotation["annotator"] == "longer"
    [header, row] = csv.reader((folder / "leaderboard.csv").read_text().splitlines())
    board = dict(zip(header, row, strict=True))
    p = np.array([annotation["preference"] - 1 for annotation in annotations])
    assert board[""] == "ours" and float(board["win_rate"]) == pytest.approx(100 * p.mean())
    wins = [int(board[name]) for name in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert wins == [(p == 1).sum(), (p == 0).sum(), (p == 0.5).sum(), 12]
    table = np.array(gamed)
    expected = length_controlled_win_rate(
        p,
        np.array([len(output["output"]) for output in outputs]),
        np.array([len(row["output"]) for row in rows]),
        table[:, 2],
        Gamed(table[:, 3], -table[:, 1], table[:, 2]),
    )
    controlled = float(board["length_controlled_winrate"])
    assert controlled == pytest.approx(expected["length_controlled_winrate"])


# -- the leaderboard -----------------------------------------------------------------------------


def likeliest(run, question, choices):
    """The choice with the largest ln pi(" " + choice | question), by the model itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run / "checkpoints" / "final"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    scores = []
    for choice in choices:
        given, whole = (tokenizer(t).input_ids for t in (question, f"{question} {choice}"))
        with torch.no_grad():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(given), len(whole))
        scores.append(sum(logprobs[place - 1, whole[place]].item() for place in places))
    return int(np.argmax(scores))


def test_leaderboard_tasks_from_a_folder(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = []
    for number, question in enumerate(("get the", "set a", "read the", "write to")):
        choices = ["name", "list of", "value"]
        best = likeliest(run, question, choices)
        answer = best if number else (best + 1) % 3  # right in three of four
        rows.append({"question": question, "choices": choices, "answer": answer})
    tasks = write_tasks(tmp_path / "tasks", rows, "words", "more_words")
    arguments = [run, f"include={tasks}", "tasks={words: 0, more_words: 2}", "bootstrap=10"]
    code, output, errors = reprise(capsys, *arguments, "--out", tmp_path, "--format", "json")
    assert code == 0, errors
    [record] = json.loads(output)
    assert record["result"]["words"] == 75.0
    assert record["result"]["words_stderr"] == pytest.approx(25.0)
    both = record["result"]["words"] + record["result"]["more_words"]
    assert record["result"]["average"] == both / 2
    stored = json.loads((tmp_path / "suites/openllm/round-00002/words.json").read_text())
    assert stored["shots"] == 0 and stored["metrics"]["acc,none"] == 0.75
    # What is done is not done again, also where only some of it is.
    (tmp_path / "suites/openllm/round-00002.json").unlink()
    (tmp_path / "suites/openllm/round-00002/more_words.json").unlink()
    _, _, errors = reprise(capsys, *arguments, "--out", tmp_path)
    assert "more_words, 2-shot" in errors and "\nwords, 0-shot" not in errors


def test_the_papers_shots():
    import lm_eval

    from reprise.alignment.judging.leaderboard import READ, SHOTS

    # 2601.08421, Table 1.
    assert list(SHOTS.values()) == [5, 5, 25, 5, 0, 10] and SHOTS.keys() == READ.keys()
    # The harness has them, with these metrics; its own index of ten thousand tasks takes a minute.
    texts = [
        file.read_text(encoding="utf-8")
        for name in ("arc", "gsm8k", "hellaswag", "mmlu/default", "truthfulqa", "winogrande")
        for file in (Path(lm_eval.__file__).parent / "tasks" / name).glob("*.yaml")
    ]
    for task, read in READ.items():
        metric, _, kind = read.partition(",")
        [definition] = [t for t in texts if re.search(rf"^(task|group): {task}$", t, re.M)]
        inherited = "".join(texts) if "include:" in definition else definition
        assert f"metric: {metric}\n" in inherited or f"- metric: {metric}" in inherited
        assert kind == "none" or f'name: "{kind}"' in definition


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--suite", "judge"], "judge: required, but not given"),
        (["--suite", "judge", "judge.modle=x"], "did you mean 'judge.model'?"),
        (["--suite", "judge", "judge.model=x", "judge.key=sk-abcdefghijklmnopqrst"], "judge.key"),
        (["tasks={nothing: 0}", "include=/nowhere"], "not a folder of task YAMLs"),
        (["--round", "7"], "has saved no policy of that round"),
        (["--suite", "judge", "judge.model=x", "--round", "7"], "has evaluated [0, 1, 2]"),
    ],
)
def test_bad_input(run, capsys, tmp_path, arguments, problem):
    code, _, errors = reprise(capsys, run, "--out", tmp_path, *arguments)
    assert code == 2 and problem in errors and "Traceback" not in errors
    assert "sk-abc" not in errors


def test_a_model_needs_a_place_for_its_results(run, capsys):
    code, _, errors = reprise(capsys, run / "checkpoints" / "final")
    assert code == 2 and "is not a run" in errors and "--out" in errors
