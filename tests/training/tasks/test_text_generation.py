"""Text generation: what is learned of prompts and conversations, what is written, and how near it comes."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

from cluster.errors import UserError
from cluster.settings import read
from tests.training.tasks.desk import ANSWERS, CPU, GPT2, Client, Learned, desk_recipe, learn
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation.baselines import measure
from training.evaluation.evaluate import measure as measure_bundle
from training.evaluation.report import write_report
from training.evaluation.rouge import common_subsequence, rouge_l, words
from training.evaluation.sections import ReportData
from training.inputs.prompts import ChatPrompts, TextPrompts, filled
from training.loop import as_record, make_trainee, predict, train
from training.models.adapt import merge
from training.preflight import task_problems
from training.recipe import Model
from training.tasks.task import Row, task_class
from training.tasks.text_generation import NOT_LEARNED, TextGeneration

CHAT = {"inputs": {"prompt": "messages"}, "target": "messages", "options": {"format": "chat"}}


@pytest.fixture(scope="module")
def writer(place: Path) -> Learned:
    """A small GPT-2 that has learned the desk's answers."""
    return learn(desk_recipe(place, "text-generation", GPT2), place / "bundle")


@pytest.fixture(scope="module")
def tokenizer(writer: Learned) -> PreTrainedTokenizerFast:
    return task_of(writer).tokenizer


def task_of(learned: Learned) -> TextGeneration:
    task = learned.encoded.task
    assert isinstance(task, TextGeneration)
    return task


# --- how near a text comes --------------------------------------------------------------------------------------------


def slow_common_subsequence(left: list[str], right: list[str]) -> int:
    """The textbook's table."""
    table = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1, j + 1] = table[i, j] + 1 if one == other else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_the_common_subsequence_is_the_textbooks() -> None:
    chance = random.Random(3)
    for _ in range(200):
        left, right = ([chance.choice("abcde") for _ in range(chance.randrange(12))] for _ in range(2))
        assert common_subsequence(left, right) == slow_common_subsequence(left, right)


def test_rouge_l_is_that_of_its_paper() -> None:
    """The three sentences of Lin (2004), section 3.1: 3/4 and 2/4."""
    wanted = "police killed the gunman"
    assert rouge_l(wanted, "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_l(wanted, "the gunman kill police") == pytest.approx(2 / 4)
    assert rouge_l(wanted, "police killed") == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert rouge_l(wanted, "") == rouge_l("", "") == 0
    assert rouge_l("Don't, please!", "don t PLEASE") == 1
    assert words("明天送到 by DHL_2") == ["明", "天", "送", "到", "by", "dhl", "2"]
    assert rouge_l("明天送到。", "明天到") == pytest.approx(2 * 3 / 7)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_once() -> None:
    cells = {"question": "is {answer} it?", "answer": "no"}
    assert filled("Q: {question}\nA{x}: {answer}{", cells) == "Q: is {answer} it?\nA{x}: no{"


def test_the_answer_alone_is_learned_and_its_end_with_it(writer: Learned) -> None:
    task = task_of(writer)
    row = {"question": "hello", "answer": "It is on its way."}
    (example,) = task.encode([row])
    example["target"] = task.encode_target(row)
    batch = task.collate([example])
    labels = batch["labels"][0]
    learned = labels[labels != NOT_LEARNED].tolist()
    assert task.tokenizer.decode(learned) == "It is on its way." + str(task.tokenizer.eos_token)
    first = int((labels != NOT_LEARNED).nonzero()[0])
    assert first == len(example["input_ids"]) - 1, "the last token of the prompt says the first of the answer"
    assert batch["input_ids"][0, first + 1] == labels[first]
    assert task.length(example) == batch["input_ids"].shape[1]


def test_long_prompts_lose_their_beginning_and_answers_are_counted(
    writer: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(
        task="text-generation",
        base="",
        inputs={"prompt": ["p"]},
        target="t",
        options={"max_new_tokens": 4},
        max_length=16,
    )
    table = pa.table({"p": ["where is my parcel " * 9 + "today", "hello"], "t": ["It is on its way. " * 5, "no"]})
    task = TextGeneration.learn(model, writer.encoded.base, {"train": table})
    said = capsys.readouterr().err
    assert "1 of 2 answers are longer than model.options.max_new_tokens, 4, and are cut" in said
    assert "1 of 2 prompts have more than 12 tokens; their beginning is cut" in said
    (long, short) = task.encode(table.to_pylist())
    assert len(long["input_ids"]) == 12
    assert task.tokenizer.decode(long["input_ids"]).endswith("parcel today")
    assert task.tokenizer.decode(short["input_ids"]) == "hello"
    target = task.encode_target(table.to_pylist()[0])
    assert len(target["ids"]) == 4
    assert target["text"] == "It is on its way. " * 5, "what it is measured by is what was wanted"


def test_what_opens_every_text_stays_where_a_prompt_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = TextPrompts(["p"], tokenizer, 8, 4, "none", [tokenizer.eos_token_id])
    start = tokenizer.bos_token_id
    assert prompts.cut([start, 10, 11, 12, 13], [start, 10, 11, 12, 13]) == [start, 11, 12, 13]
    assert prompts.cut([9, 10, 11, 12, 13], [9, 10, 11, 12, 13]) == [10, 11, 12, 13]
    assert prompts.read([{"p": ""}]) == [[start]]


CONVERSATION = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "Tell me."},
    {"role": "user", "content": "where is my parcel"},
    {"role": "assistant", "content": "It is on its way."},
]
IM = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, IM])
def test_in_a_conversation_the_turns_of_the_assistant_are_learned(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    tokenizer.chat_template = template
    prompts = ChatPrompts(["messages"], tokenizer, 200, 32, "none", [tokenizer.eos_token_id])
    end = str(tokenizer.eos_token)
    row = {"messages": CONVERSATION}
    (prompt,) = prompts.prompts([row])
    target = prompts.target(row, row["messages"])
    assert tokenizer.decode(prompt) == tokenizer.apply_chat_template(
        CONVERSATION[:3], tokenize=False, add_generation_prompt=True
    )
    assert target["text"] == "It is on its way."
    assert tokenizer.decode(target["ids"]) == "It is on its way." + end
    assert len(target["also"]) == len(prompt)
    earlier = [token for token, learned in zip(prompt, target["also"], strict=True) if learned]
    assert tokenizer.decode(earlier) == "Tell me." + end
    assert prompts.prompts([{"messages": CONVERSATION[:3]}]) == [prompt], "the answer is no part of the question"
    assert prompts.prompts([{"messages": json.dumps(CONVERSATION)}]) == [prompt], "as a CSV file holds it"
    assert prompts.target({"messages": CONVERSATION[:3]}, "It is on its way.") == target, "a target column of its own"
    assert prompts.prompts([{"messages": "hi"}]) == prompts.prompts([{"messages": [{"role": "user", "content": "hi"}]}])
    tokenizer.chat_template = None


def test_wrong_conversations_are_named_by_place_and_never_quoted(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate: secret') }}"
    prompts = ChatPrompts(["messages"], tokenizer, 96, 32, "none", [tokenizer.eos_token_id])
    wrong: list[tuple[Any, str]] = [
        (3, r"inputs\[1\]: a string, a list of messages or an object with 'messages' is needed"),
        ([{"role": "user"}, 4], r"inputs\[1\]\.messages: a list of messages"),
        ([{"content": "secret"}], r"inputs\[1\]\.messages\[0\]: a 'role' and a 'content', both strings, are needed"),
        ([], r"inputs\[1\]\.messages: a list of messages with 'role' and 'content' is needed, at least one"),
        (CONVERSATION, r"inputs\[1\]\.messages\[3\]: the last message is the assistant's"),
        ([{"role": "tool", "content": "a", "tool_call_id": "secret"}], r"messages\[0\]\.tool_call_id: this model does"),
        (
            [{"role": "user", "content": "a", "secret": 1}],
            r"messages\[0\]: only role and content may stand in a message",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\]\.content\[0\]: a part of the type"),
        ("secret", r"inputs\[1\]\.messages: the model's chat template takes no such order of roles$"),
    ]
    for value, message in wrong:
        with pytest.raises(UserError, match=message) as raised:
            prompts.row(1, value)
        assert "secret" not in str(raised.value)
    tokenizer.chat_template = None


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own(writer: Learned) -> None:
    """Which computes the logits of the whole vocabulary everywhere, from labels that mask the prompt."""
    task, rows = task_of(writer), writer.encoded.split("test")
    model = writer.trainee.model.eval()
    examples = rows.examples(range(5))
    with torch.inference_mode():
        outputs = task.forward(model, task.collate(examples))
    for example, output, loss in zip(examples, outputs, task.loss(outputs, {}), strict=True):
        prompt, ids = example["input_ids"], example["target"]["ids"]
        labels = torch.tensor([[NOT_LEARNED] * len(prompt) + ids])
        with torch.inference_mode():
            theirs = model(input_ids=torch.tensor([prompt + ids]), labels=labels).loss
        assert output[1] == len(ids)
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_it_learns_to_answer_and_transformers_writes_the_same(writer: Learned) -> None:
    task, measured = task_of(writer), writer.measured
    assert measured.keys() == task.metrics_known.keys() | task.metrics_of_answers.keys()
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert measured["perplexity"] < 1.3
    assert measured["exact_match"] > 0.8
    assert measured["rouge_l"] >= measured["exact_match"]

    questions = ["dear team, where is my parcel, soon", "快递没到", "hello, i want my money back, it is late, bye", "x"]
    answers = writer.predictor.predict(questions)
    assert answers[0] == {"generated_text": ANSWERS["where is my parcel"]}
    assert [writer.predictor.predict([question])[0] for question in questions] == answers, "alone as in a batch"
    theirs = pipeline("text-generation", str(writer.predictor.bundle.folder))(questions, return_full_text=False)
    assert answers == [one for (one,) in theirs]


def test_a_request_may_stop_it_early(writer: Learned) -> None:
    ask, question = writer.predictor.predict, "hello, where is my parcel, soon"
    assert ask([question], {"stop": ["its", "is"]}) == [{"generated_text": "It "}]
    whole = ask([question])[0]["generated_text"]
    short = ask([question], {"max_new_tokens": 2, "do_sample": False, "return_full_text": False})[0]["generated_text"]
    assert whole.startswith(short)
    assert 0 < len(short) < len(whole)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"max_new_tokens": 10_000}, "max_new_tokens: a whole number from 1 to"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"stop": "its"}, "stop: a list"),
        ({"stop": [""]}, "stop: a list"),
        ({"temperature": 0.5}, "temperature: unknown; this model takes max_new_tokens, stop"),
        ({"do_sample": True}, "do_sample: only false"),
    ]
    for parameters, message in wrong:
        with pytest.raises(UserError, match=rf"parameters\.{message}"):
            ask([question], parameters)


def test_hugging_faces_client_asks_it(writer: Learned) -> None:
    client, question = Client(writer.predictor), "hello, where is my parcel, soon"
    assert client.text_generation(question) == ANSWERS["where is my parcel"]
    assert client.text_generation(question, stop=[" on"], max_new_tokens=9).startswith("It is")
    with pytest.raises(UserError, match=r"parameters\.temperature: unknown"):
        client.text_generation(question, temperature=0.7)


def test_a_finished_model_is_measured_on_other_rows(writer: Learned) -> None:
    rows: list[Row] = [{"question": f"hello, {asked}, soon", "answer": answer} for asked, answer in ANSWERS.items()]
    measured = measure_bundle(writer.predictor.bundle, rows)
    assert measured["exact_match"] > 0.7
    assert measured["perplexity"] < 1.5


def test_it_beats_its_baselines(writer: Learned, place: Path) -> None:
    recipe = desk_recipe(place, "text-generation", GPT2)
    tables = fuse(recipe).tables()
    few = {"train": tables["train"], "test": tables["test"].slice(0, 8)}
    measured = measure(writer.encoded.task, writer.encoded.base, few)
    untouched, nearest = measured["untouched"], measured["nearest"]
    assert untouched["test/perplexity"] > 50
    assert untouched["test/rouge_l"] < 0.2
    assert nearest["test/rouge_l"] > 0.5
    assert nearest.keys() == {"test/rouge_l", "test/exact_match"}
    write_report(place / "report.html", _report(writer, untouched, nearest), writer.encoded.task.report_sections)
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "What it writes" in page
    assert "ROUGE-L 100.0%" in page
    assert "Answer of the nearest training row" in page
    assert "ROUGE-L of 100.0% on 21 test rows" in page


def _report(writer: Learned, untouched: dict[str, float], nearest: dict[str, float]) -> ReportData:
    task, rows = task_of(writer), writer.encoded.split("test")
    return ReportData(
        name="desk",
        task=task.name,
        metrics={f"test/{name}": value for name, value in writer.measured.items()},
        baselines={"untouched": untouched, "nearest": nearest},
        headline=task.final_headline,
        direction=task.metrics_of_answers[task.final_headline],
        titles={name: baseline.title for name, baseline in task.baselines.items()},
        outputs=predict(writer.trainee, rows, final=True),
        targets=rows.targets,
        texts=[f"question {number}" for number in range(len(rows))],
        history=[as_record(moment) | {"validation": moment.validation} for moment in writer.moments],
    )


def test_a_conversation_is_learned_and_continued(place: Path) -> None:
    (place / "chat").mkdir()
    recipe = desk_recipe(place / "chat", "text-generation", GPT2, model=CHAT)
    learned = learn(recipe, place / "chat" / "bundle")
    assert learned.measured["exact_match"] > 0.8
    folder = learned.predictor.bundle.folder
    assert (folder / "chat_template.jinja").is_file()
    question = [*CONVERSATION[:2], {"role": "user", "content": "i want my money back, soon"}]
    (answer,) = learned.predictor.predict([{"messages": question}])
    assert answer == {"generated_text": ANSWERS["i want my money back"]}
    (theirs,) = pipeline("text-generation", str(folder))(question)
    assert theirs["generated_text"][-1] == {"role": "assistant", "content": answer["generated_text"]}


def test_low_rank_matrices_leave_the_tied_output_layer_alone(place: Path) -> None:
    """Merged into it, they would change the input's embeddings too."""
    adapt = {"lora": {"r": 4}}
    recipe = desk_recipe(place, "text-generation", GPT2, model={"adapt": adapt}, train={"epochs": 1})
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
    list(train(trainee, encoded))
    before = np.stack([one[:2] for one in predict(trainee, encoded.split("test"))])
    merge(trainee.model)
    after = np.stack([one[:2] for one in predict(trainee, encoded.split("test"))])
    np.testing.assert_allclose(before, after, rtol=1e-4)


# --- what does not go together ----------------------------------------------------------------------------------------


def test_a_base_that_reads_whole_texts_is_refused(tiny_base: Path, home: Path, tmp_path: Path) -> None:
    recipe = desk_recipe(tmp_path, "text-generation", str(tiny_base))
    with pytest.raises(UserError, match=r"model\.base: a bert is no model that writes on from a prompt"):
        encode(recipe, fuse(recipe))


def test_a_recipe_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: a\ndata: {sources: {d: {read: d.csv}}}\nmodel:\n  task: text-generation\n  base: b\n"
        "  inputs: {prompt: q}\n  target: a\n  adapt: head\n  options: {format: song}\n"
        "train: {early_stopping: {metric: rouge_l}}\n",
        encoding="utf-8",
    )
    problems = "\n".join(task_problems(read(tmp_path / "recipe.yaml")))
    assert "recipe.yaml:8 model.adapt: text-generation puts no new weights on its base" in problems
    assert "model.options.format" in problems
    assert "text-generation has no metric 'rouge_l'; it has perplexity, loss" in problems


@pytest.mark.parametrize("name", ["text-generation", "text2text-generation", "summarization", "fill-mask"])
def test_its_metrics_do_not_overlap(name: str) -> None:
    task = task_class(name)
    assert not task.metrics_known.keys() & task.metrics_of_answers.keys()
    assert not task.final_headline or task.final_headline in task.metrics_of_answers


def test_its_tied_weights_are_kept_once(writer: Learned) -> None:
    folder = writer.predictor.bundle.folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
