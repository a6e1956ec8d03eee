"""The command line as a process: exit codes, what goes to stdout and what to stderr, the whole way on a tiny model."""

import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headrace
from cluster import printing
from cluster.errors import RecipeError, RunError, UserError
from cluster.storage import read_json

TOPICS = {
    "billing": ["invoice", "charged twice", "refund my money"],
    "delivery": ["parcel lost", "late delivery", "where is my parcel"],
    "account": ["password", "login error", "change my account"],
}
FILLERS = ["please help", "i love it", "it was good", "why is it not", "what about", "to you", "today"]

RECIPE = """\
name: topics
data:
  sources:
    sentences: {{read: sentences.csv}}
  split: {{validation: 0.2, test: 0.2, stratify: topic}}
model:
  task: text-classification
  base: {base}
  inputs: {{text: text}}
  target: topic
train: {{epochs: 2, batch_size: 8, learning_rate: 1.0e-3, workers: 1, precision: fp32}}
"""

SEARCH = "tune={trials: 2, search: {train.learning_rate: {choice: [0.001]}}}"


def call(*words: str | Path, cwd: Path | None = None, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs ``headrace WORD…`` to its end."""
    command = [sys.executable, "-m", "headrace", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)


def one_object(stdout: str) -> Any:
    """The JSON object that stdout must hold, and nothing else."""
    assert stdout.endswith("}\n")
    assert stdout.count("\n") == 1
    return json.loads(stdout)


@pytest.fixture
def recipe(tmp_path: Path, home: Path, tiny_base: Path) -> Path:
    """A recipe over a CSV of sentences on three topics, which a tiny BERT learns in seconds."""
    draw = random.Random(3)
    rows = []
    for number in range(150):
        topic = draw.choice(list(TOPICS))
        words = [*draw.choices(FILLERS, k=draw.randint(1, 4)), draw.choice(TOPICS[topic]), str(number)]
        rows.append(f"{' '.join(words)},{topic}")
    (tmp_path / "sentences.csv").write_text("\n".join(["text,topic", *rows]) + "\n", encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(base=tiny_base), encoding="utf-8")
    return file


def test_the_whole_way(recipe: Path, tmp_path: Path) -> None:
    """check, run, run again, evaluate, predict, models: each with one JSON object on stdout, whatever Ray prints."""
    checked = one_object(call("check", recipe, "--json").stdout)
    assert checked["data"]["rows"] == 150
    assert checked["plan"]["weights"] > 0

    done = call("run", recipe, "--json", "train.epochs=3")
    assert done.returncode == 0, done.stderr
    result = one_object(done.stdout)
    assert {"model", "version", "bundle", "report", "metrics", "baselines", "data"} <= result.keys()
    assert (result["model"], result["version"]) == ("topics", 1)
    assert result["metrics"].keys() >= {"test/accuracy", "validation/accuracy"}
    assert result["baselines"].keys() == {"majority", "tfidf", "frozen"}
    assert result["data"].keys() == {
        *("rows", "splits", "fingerprint", "baselines_learned_from", "headline", "direction"),
    }
    assert Path(result["report"]).is_file()

    with tempfile.TemporaryDirectory(dir="/tmp") as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", place)
        again = call("run", recipe, "--json", "train.epochs=3")
        assert not list(Path(place).glob("headrace-*")), "what is done needs no Ray"
    assert one_object(again.stdout) == result
    assert "nothing to do" in again.stderr

    answers = tmp_path / "answers.jsonl"
    told = call("predict", "topics", tmp_path / "sentences.csv", "--output", answers, "--top-k", "1")
    assert told.stdout == f"150 answers in {answers}\n"
    lines = answers.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 150
    given = [one["label"] for line in lines for one in json.loads(line)]

    measured = one_object(call("evaluate", "topics", "--data", tmp_path / "sentences.csv", "--json").stdout)
    assert measured["data"] == {"rows": 150}
    assert measured["metrics"]["data/accuracy"] == pytest.approx(share_right(given, tmp_path / "sentences.csv"))
    assert measured["metrics"]["data/accuracy"] > result["baselines"]["majority"]["test/accuracy"]
    assert measured["baselines"] == result["baselines"]

    listed = one_object(call("models", "--json").stdout)["models"]
    assert [(row["name"], row["version"], row["aliases"]) for row in listed] == [("topics", 1, ["production"])]
    assert call("models", "promote", "topics", "1").returncode == 0
    refused = call("models", "rollback", "topics")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("topics: no other version was in production before")


def share_right(given: list[str], file: Path) -> float:
    """How many of a model's answers are those of the file's last column."""
    topics = [line.rpartition(",")[2] for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return sum(one == topic for one, topic in zip(given, topics, strict=True)) / len(topics)


def test_a_recipe_that_is_tuned_has_one_model(recipe: Path, tmp_path: Path) -> None:
    """evaluate RECIPE measures the model that `run` made, with the values that the sweep chose."""
    searched = "tune={algorithm: grid, scheduler: none, search: {train.epochs: {choice: [1, 2]}}}"
    done = call("run", recipe, searched, "train.epochs=5", "--json")
    assert done.returncode == 0, done.stderr
    result = one_object(done.stdout)
    asked = call("evaluate", recipe, searched, "train.epochs=5", "--data", tmp_path / "sentences.csv", "--json")
    measured = one_object(asked.stdout)
    assert (measured["version"], measured["bundle"]) == (result["version"], result["bundle"])
    assert measured["metrics"].items() >= result["metrics"].items()
    assert "data/accuracy" in measured["metrics"]
    assert len(one_object(call("models", "topics", "--json").stdout)["models"]) == 1

    refused = call("evaluate", "topics", "train.epochs=5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "train.epochs=5: topics is a finished model; only a recipe can be changed\n"

    assert headrace.served([str(recipe), "serve.max_queue=7"])[1].max_queue == 7
    shared = call("serve", "topics", result["bundle"], "--port", "0")
    assert shared.returncode == 2
    assert shared.stderr.startswith("the models share one server, which takes no recipe's `serve` section but ")
    assert '"max_queue": 2048' in shared.stderr
    assert "a model named topics is served already" in shared.stderr


def test_a_recipe_that_is_edited_during_its_sweep_is_carried_out_as_it_was(
    recipe: Path, home: Path, wait_until: Callable[..., None]
) -> None:
    """A sweep may take hours, and what is trained in the end must be what was searched; half a file is worse."""
    command = [sys.executable, "-m", "headrace", "run", str(recipe), SEARCH, "tune.trials=1", "train.epochs=1"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any(home.glob("sweeps/*/sweep.json")) or process.poll() is not None, 180)
        recipe.write_text("name: other\ndata:\n  sour", encoding="utf-8")
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    stored = read_json(Path(one_object(out)["bundle"]) / "bundle.json")["recipe"]
    assert (stored["name"], stored["train"]["epochs"], stored["train"]["batch_size"]) == ("topics", 1, 8)
    assert stored["train"]["learning_rate"] == 0.001


def test_a_missing_base_is_said_before_the_data_is_read(recipe: Path) -> None:
    (recipe.parent / "sentences.csv").unlink()
    done = call("check", recipe, "model.base=./nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "command line model.base: there is no folder ./nowhere\n"


def test_a_wrong_recipe_is_not_sent_to_a_cluster(recipe: Path) -> None:
    nobody = ("--address", "http://127.0.0.1:9")  # a port that nothing listens on: asking it would exit 1
    done = call("submit", *nobody, "train", recipe, "train.epohcs=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "command line train.epohcs: unknown key, did you mean 'epochs'?\n"
    assert call("submit", *nobody, "--dependencies", "some", "train", recipe).returncode == 2
    assert call("submit", *nobody, "--dependencies", "none", "train", recipe).returncode == 1


def test_a_file_that_says_what_is_served_is_sent_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sent: list[list[str]] = []

    def send(address: str | None, command: list[str], **options: Any) -> int:
        sent.append(command)
        return 0

    monkeypatch.setattr("cluster.jobs.submit", send)
    file = tmp_path / "serve.yaml"
    file.write_text("models: [topics@production, other/3]\nserve: {engine: fast}\n", encoding="utf-8")
    served = ("serve", str(file), "serve.max_items=64", "--port", "8001")
    assert main_in_process(monkeypatch, "submit", *served) == 0
    assert sent == [list(served)]
    assert main_in_process(monkeypatch, "submit", "serve", str(file), "serve.max_itms=64") == 2
    assert capfd.readouterr().err == "command line serve.max_itms: unknown key, did you mean 'max_items'?\n"
    assert main_in_process(monkeypatch, "submit", "run", str(file)) == 2  # there is no recipe in it
    assert sent == [list(served)]


def test_a_wrong_recipe_exits_2_with_the_problem_alone(recipe: Path) -> None:
    done = call("train", recipe, "train.epohcs=1", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "command line train.epohcs: unknown key, did you mean 'epochs'?\n"


def test_a_missing_recipe_exits_2(home: Path, tmp_path: Path) -> None:
    done = call("run", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "none.yaml: no such file; `headrace new DIR` writes a recipe to start from\n"


def test_a_wrong_word_exits_2(tmp_path: Path) -> None:
    assert call("trian", "recipe.yaml", cwd=tmp_path).returncode == 2
    assert call("predict", cwd=tmp_path).returncode == 2
    assert call("serve", cwd=tmp_path).returncode == 2


def test_new_writes_a_project_and_says_what_comes_next(tmp_path: Path) -> None:
    done = call("new", tmp_path / "support")
    assert done.returncode == 0
    assert done.stdout.endswith(f"Next: headrace run {tmp_path}/support/recipe.yaml\n")
    assert (tmp_path / "support" / "recipe.yaml").is_file()
    assert call("new", tmp_path / "support").returncode == 2


def test_no_models_yet(home: Path, tmp_path: Path) -> None:
    done = call("models", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "no models yet; `headrace run RECIPE` makes one\n")
    assert not home.exists()


def main_in_process(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headrace", *words])
    with pytest.raises(SystemExit) as end:
        headrace.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("the file is at fault"), 2), (RecipeError(["one", "two"]), 2), (RunError("the disk is full"), 1)],
)
def test_every_kind_of_failure_has_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("cluster.doctor.examine", fail)
    assert main_in_process(monkeypatch, "doctor") == code
    assert capfd.readouterr() == ("", f"{error}\n")


def test_a_secret_is_masked_in_an_error_and_in_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter22")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: ${env:SHOP_PASSWORD} and more\n", encoding="utf-8")
    assert main_in_process(monkeypatch, "check", str(recipe)) == 2
    told = capfd.readouterr().err
    assert "*** and more" in told
    assert "hunter22" not in told
    try:
        raise ValueError("connecting with hunter22 failed")
    except ValueError as error:
        printing.show_defect(ValueError, error, error.__traceback__)
    told = capfd.readouterr().err
    assert "connecting with *** failed" in told
    assert "hunter22" not in told


def test_what_libraries_print_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy() -> list[Any]:
        print("from Python")  # noqa: T201  what a library might do
        subprocess.run(["echo", "from a process below"], check=True)
        return []

    monkeypatch.setattr("cluster.doctor.examine", noisy)
    assert main_in_process(monkeypatch, "doctor", "--json") == 0
    out, err = capfd.readouterr()
    assert out == '{"checks": []}\n'
    assert "from Python" in err
    assert "from a process below" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.task=poetry"], "command line model.task: there is no task 'poetry' in this version; there is "),
        (["model.inputs={txt: text}"], "command line model.inputs.txt: unknown key, did you mean 'text'?"),
        (
            ["train.early_stopping={metric: bleu}"],
            "command line train.early_stopping.metric: ",
        ),
        (
            ["tune={metric: bleu, search: {train.epochs: {choice: [1]}}}"],
            "command line tune.metric: ",
        ),
        (["tune={search: {train.lr: {choice: [1]}}}"], "command line tune.search.train.lr: no field of the recipe"),
    ],
)
def test_what_the_task_does_not_know_is_said_before_anything_runs(
    recipe: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        headrace.load_recipe(recipe, changes)
    assert str(error.value).startswith(message)


CHOSEN = "train.early_stopping={{metric: {}}}"
NONE_TO_WATCH = "data.split={validation: 0, test: 0.2}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [CHOSEN.format("loss"), NONE_TO_WATCH],
            "command line train.early_stopping: there are no validation rows to watch; set data.split.validation\n",
        ),
        (
            [CHOSEN.format("rmse")],
            "command line train.early_stopping.metric: text-classification has no metric 'rmse'; it has accuracy, ",
        ),
        (
            ["tune={metric: rmse, search: {train.epochs: {choice: [1]}}}"],
            "command line tune.metric: text-classification has no metric 'rmse'; it has accuracy, ",
        ),
        (
            ["model.adapt={freeze: nosuch}"],
            "command line model.adapt.freeze: 'nosuch' is found in no weight of the model; they are",
        ),
        (
            ["model.adapt={lora: {targets: nosuch}}"],
            "command line model.adapt.lora.targets: 'nosuch' is found in no linear layer",
        ),
        (
            ["tune={search: {train.seed: {choice: [1, 2]}}}", NONE_TO_WATCH],
            "command line tune: trials are compared on validation rows and there are none; set data.split.validation\n",
        ),
        (
            ["tune={search: {model.base: {choice: [./nowhere]}}}"],
            "recipe.yaml:8 model.base: there is no folder ./nowhere\n",
        ),
        (
            ["model.target=constant", "data.split={}"],
            "command line model.target: 'constant' has 1 label; a classifier needs",
        ),
    ],
)
def test_check_refuses_what_training_or_the_sweep_would(
    recipe: Path, changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fused = "data.fuse=SELECT *, 'one' AS constant FROM sentences"
    assert main_in_process(monkeypatch, "check", str(recipe), fused, *changes) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(message)


def test_what_a_sample_lacks_is_no_fault_of_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows that are sorted by their label: the first of them have only one."""
    head, *rows = (recipe.parent / "sentences.csv").read_text(encoding="utf-8").splitlines()
    rows.sort(key=lambda row: row.rpartition(",")[2])
    (recipe.parent / "sentences.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    changes = ["data.split={}", "train.early_stopping={}", "tune={search: {train.seed: {choice: [1, 2]}}}"]
    assert main_in_process(monkeypatch, "check", str(recipe), *changes, "--rows", "20", "--json") == 0
    plan = json.loads(capfd.readouterr().out)["plan"]
    assert plan["memory of a worker"].startswith("not to be told beforehand: model.target: 'topic' has 1 label")


def test_all_problems_at_once(recipe: Path) -> None:
    changes = ["train.epochs=0", "model.inputs={txt: text}", "serve={replicas: {min: 3, max: 2}}"]
    with pytest.raises(RecipeError) as error:
        headrace.load_recipe(recipe, changes)
    assert len(error.value.problems) == 4  # txt is unknown, and text is missing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "steps"),
    [(["train"], "runs/*/metrics.jsonl"), (["tune", SEARCH], "sweeps/*/trials/*/metrics.jsonl")],
    ids=["train", "tune"],
)
def test_interrupted_work_exits_130_with_a_plain_line(
    recipe: Path, home: Path, words: list[str], steps: str, wait_until: Callable[..., None]
) -> None:
    """Once steps are being taken, so that Ray is in the midst of it."""
    command = [sys.executable, "-m", "headrace", words[0], str(recipe), *words[1:], "train.epochs=1000", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any(home.glob(steps)) or process.poll() is not None, 180)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.endswith("interrupted; the same command continues where it can\n")
