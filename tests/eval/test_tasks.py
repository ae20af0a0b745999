"""A task of one's own through lm-evaluation-harness, without a network; its accuracy is counted by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.tasks import check_tasks

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
QUESTIONS = [
    {"question": "The quick brown", "choices": [" fox", " dog", " deer"], "answer": 0},
    {"question": "the lazy", "choices": [" fox", " dog"], "answer": 1},
    {"question": "def area(", "choices": ["radius)", "x)"], "answer": 0},
    {"question": "A short", "choices": [" one.", " two.", " xyz"], "answer": 2},
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.fixture
def task_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_choice.yaml").write_text(TASK.replace("DATA", str(data)))
    return folder


def test_a_local_task_runs_offline(checkpoint, data, task_path: Path):
    options = EvalOptions(
        data=str(data), window=16, dtype="float32", device="cpu", tasks=("tiny_choice",), task_path=str(task_path)
    )
    (row,) = evaluate([checkpoint], options).rows
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    right = [best(model, tokenizer, each) == each["answer"] for each in QUESTIONS]
    found = row.result.tasks["tiny_choice"]["acc"]
    assert found["value"] == sum(right) / len(right)
    assert found["standard_error"] is not None


def best(model, tokenizer, question: dict) -> int:
    scores = []
    for choice in question["choices"]:
        before = tokenizer(question["question"])["input_ids"]
        whole = tokenizer(question["question"] + choice)["input_ids"]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(log_p[at - 1, whole[at]]) for at in range(len(before), len(whole))))
    return scores.index(max(scores))


def test_a_field_that_is_not_there_is_one_sentence(checkpoint, data, task_path: Path, tmp_path: Path):
    path = task_path / "tiny_choice.yaml"
    path.write_text(path.read_text().replace("{{question}}", "{{ nope.deep.er }}"))
    command = [sys.executable, "-m", "gqa.eval", checkpoint, "--data", data, "--window", "16", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--tasks", "tiny_choice", "--task-path", task_path],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: tasks tiny_choice can't be run: 'nope' is undefined\n"


def test_nothing_of_git_is_said_where_there_is_no_repository(checkpoint, data, task_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(task_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(task_path.parent))
    options = EvalOptions(
        data=str(data), window=16, dtype="float32", device="cpu", tasks=("tiny_choice",), task_path=str(task_path)
    )
    evaluate([checkpoint], options)
    assert "git" not in capfd.readouterr().err


def test_a_limit_takes_so_many_examples_and_names_are_checked_first(task_path: Path, monkeypatch):
    with pytest.raises(UserError, match=r"has no task 'tiny_choise' \(did you mean 'tiny_choice'\?\)"):
        check_tasks(EvalOptions(data="x", tasks=("tiny_choise",), task_path=str(task_path)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"install it with: pip install 'gqa\[lm-eval\]'"):
        check_tasks(EvalOptions(data="x", tasks=("tiny_choice",)))
