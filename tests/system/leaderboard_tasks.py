"""Multiple-choice tasks of lm-evaluation-harness in a folder, so that it needs no network."""

import json

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}}}}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def write_tasks(folder, rows, *names):
    """Tasks with the same rows of question, choices and answer; returns the new folder."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in names:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / "rows.jsonl"))
    return folder
