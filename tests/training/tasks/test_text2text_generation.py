"""Text-to-text generation and summarization: an encoder and a decoder that learn, and write as transformers does."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from huggingface_hub import SummarizationOutput, Text2TextGenerationOutput
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cluster.errors import UserError
from tests.training.tasks.desk import ANSWERS, GPT2, T5, Learned, desk_recipe, learn
from training.data.fuse import fuse
from training.encode import encode
from training.recipe import Model
from training.tasks.summarization import Summarization
from training.tasks.text2text_generation import Text2TextGeneration


@pytest.fixture(scope="module")
def writer(place: Path) -> Learned:
    """A small T5 that has learned the desk's answers."""
    recipe = desk_recipe(place, "text2text-generation", T5, train={"learning_rate": 1e-2})
    return learn(recipe, place / "bundle")


def test_the_loss_is_transformers_own(writer: Learned) -> None:
    task, model = writer.encoded.task, writer.trainee.model.eval()
    examples = writer.encoded.split("test").examples(range(5))
    with torch.inference_mode():
        outputs = task.forward(model, task.collate(examples))
    for example, output in zip(examples, outputs, strict=True):
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["target"]["ids"]])
        with torch.inference_mode():
            theirs = model(input_ids=ids, labels=labels).loss
        assert output[1] == labels.shape[1]
        assert (output[0] / output[1]).item() == pytest.approx(theirs.item(), rel=1e-4)


def test_it_learns_to_answer_and_transformers_writes_the_same(writer: Learned) -> None:
    """There is no pipeline for it: its model and its tokenizer are asked directly."""
    assert writer.measured["exact_match"] > 0.8
    assert writer.measured["perplexity"] < 1.3
    questions = ["dear team, where is my parcel, soon", "快递没到", "hello, i want my money back, it is late, bye"]
    answers = writer.predictor.predict(questions)
    assert answers[0] == {"generated_text": ANSWERS["where is my parcel"]}
    assert [writer.predictor.predict([question])[0] for question in questions] == answers, "alone as in a batch"
    assert Text2TextGenerationOutput.parse_obj_as_instance(answers[0]).generated_text == answers[0]["generated_text"]
    folder = writer.predictor.bundle.folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    for question, answer in zip(questions, answers, strict=True):
        ids = model.generate(**tokenizer(question, return_tensors="pt"))
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == answer["generated_text"]


def test_what_is_read_and_what_is_written_have_limits_of_their_own(
    writer: Learned, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_new_tokens": 12}
    model = Model(task="summarization", base="", inputs={"text": ["q"]}, target="a", options=options, max_length=8)
    table = pa.table({"q": ["hello " * 40], "a": ["It is on its way. " * 4]})
    task = Text2TextGeneration.learn(model, writer.encoded.base, {"train": table})
    assert "1 of 1 answers are longer than model.options.max_new_tokens, 12, and are cut" in capsys.readouterr().err
    (row,) = table.to_pylist()
    assert len(task.encode([row])[0]["input_ids"]) == 8
    target = task.encode_target(row)
    assert (len(target["ids"]), target["text"]) == (12, row["a"])
    assert len(task.encode([row])[0]["input_ids"]) == 8, "what is written leaves the reader as it was"


def test_a_summary_is_the_same_by_another_name(writer: Learned, tmp_path: Path) -> None:
    task = writer.encoded.task
    summary = Summarization.load(task.save(tmp_path), tmp_path)
    example = summary.encode([{"question": "hello, where is my parcel, bye"}])
    with torch.inference_mode():
        outputs = summary.keep(summary.infer(writer.trainee.model.eval(), summary.collate(example)), example)
    (answer,) = summary.decode(outputs, example, {})
    assert SummarizationOutput.parse_obj_as_list([answer])[0].summary_text == ANSWERS["where is my parcel"]
    assert summary.signature()["output"]["required"] == ["summary_text"]


def test_a_base_that_only_writes_is_refused(tmp_path: Path, home: Path) -> None:
    recipe = desk_recipe(tmp_path, "text2text-generation", GPT2)
    with pytest.raises(UserError, match=r"model\.base: a gpt2 is no model that reads a text and then writes one"):
        encode(recipe, fuse(recipe))
