"""Fill-mask: what is hidden, that a continued run hides the same, what is answered, and the bundle as a base."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, pipeline

from cluster.errors import UserError
from tests.training.tasks.desk import CPU, OPENINGS, Client, Learned, desk_recipe, learn
from training import checkpoint
from training.data.fuse import fuse
from training.encode import encode
from training.evaluation.baselines import measure
from training.job import Job
from training.loop import make_trainee, train, validate
from training.models.base import resolve_base
from training.recipe import Recipe
from training.registry import register
from training.tasks.fill_mask import FillMask

TEXT = {"inputs": {"text": "question"}, "target": None}


def mask_recipe(folder: Path, base: Any, **sections: Any) -> Recipe:
    sections["model"] = TEXT | sections.get("model", {})
    return desk_recipe(folder, "fill-mask", base, **sections)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("guessing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def guesser(place: Path, tiny_base: Path) -> Learned:
    """A tiny BERT that has read the desk's questions."""
    recipe = mask_recipe(place, str(tiny_base), train={"epochs": 20, "learning_rate": 1e-2})
    return learn(recipe, place / "bundle")


def task_of(learned: Learned) -> FillMask:
    task = learned.encoded.task
    assert isinstance(task, FillMask)
    return task


def test_of_the_tokens_chosen_most_are_masked_and_none_is_special(guesser: Learned) -> None:
    task = task_of(guesser)
    examples = guesser.encoded.split("train").examples(range(60)) * 20
    batch = task.collate(examples)
    ids, held = batch["input_ids"], batch["attention_mask"].bool()
    torch.manual_seed(3)
    seen, chosen = task.hide(ids, held, torch.rand(3, *ids.shape))
    special = torch.isin(ids, torch.tensor(task.tokenizer.all_special_ids)) | ~held
    assert not (chosen & special).any()
    assert (chosen.sum(dim=1) >= 1).all()
    assert torch.equal(seen[~chosen], ids[~chosen])
    share = chosen.sum() / (~special).sum()
    assert 0.14 < share < 0.19, "a little more than asked: of a short text one is always chosen"
    masked, left = seen[chosen] == task.mask, seen[chosen] == ids[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.03)
    assert left.float().mean() == pytest.approx(0.1, abs=0.03)


def test_what_is_measured_is_hidden_the_same_way_in_any_batch(guesser: Learned) -> None:
    task, rows = task_of(guesser), guesser.encoded.split("test")
    model = guesser.trainee.model.eval()
    with torch.inference_mode():
        together = task.forward(model, task.collate(rows.examples(range(12))))
        alone = torch.cat([task.forward(model, task.collate(rows.examples([row]))) for row in range(12)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert validate(guesser.trainee, rows) == validate(guesser.trainee, rows)


def test_the_loss_is_transformers_own(guesser: Learned) -> None:
    """Which computes the logits of the whole vocabulary everywhere."""
    task, rows = task_of(guesser), guesser.encoded.split("test")
    model = guesser.trainee.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    batch = task.collate(rows.examples(range(6)))
    torch.manual_seed(5)
    with torch.no_grad():
        outputs = task.forward(model, batch)
    torch.manual_seed(5)
    ids, held = batch["input_ids"], batch["attention_mask"]
    seen, chosen = task.hide(ids, held.bool(), torch.rand(3, *ids.shape))
    with torch.no_grad():
        theirs = model(input_ids=seen, attention_mask=held, labels=ids.masked_fill(~chosen, -100)).loss
    assert (outputs[:, 0].sum() / outputs[:, 1].sum()).item() == pytest.approx(theirs.item(), rel=1e-4)


def test_it_learns_and_is_better_than_its_base(guesser: Learned, place: Path) -> None:
    measured = guesser.measured
    assert measured.keys() == task_of(guesser).metrics_known.keys()
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    tables = fuse(mask_recipe(place, str(guesser.encoded.base))).tables()
    before = measure(guesser.encoded.task, guesser.encoded.base, tables)["untouched"]
    assert before["test/perplexity"] > 100
    assert measured["perplexity"] < before["test/perplexity"] / 5


def test_a_continued_run_hides_the_same_words(place: Path, tiny_base: Path) -> None:
    recipe = mask_recipe(place, str(tiny_base), train={"epochs": 2})
    encoded = encode(recipe, fuse(recipe))
    whole = make_trainee(encoded, recipe.train, "full", CPU)
    losses = [moment.loss for moment in train(whole, encoded)]
    interrupted = make_trainee(encoded, recipe.train, "full", CPU)
    for moment in train(interrupted, encoded):
        if moment.step == 3:
            (place / "kept").mkdir()
            checkpoint.save(place / "kept", interrupted)
            break
    torch.manual_seed(99)
    continued = make_trainee(encoded, recipe.train, "full", CPU)
    checkpoint.load(place / "kept", continued)
    assert [moment.loss for moment in train(continued, encoded)] == losses[3:]
    weights = continued.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.model.state_dict().items())


def test_answers_are_those_of_transformers(guesser: Learned) -> None:
    ask, folder = guesser.predictor.predict, str(guesser.predictor.bundle.folder)
    theirs = pipeline("fill-mask", folder)
    texts = ["please help, where is my [MASK], thanks", "what [MASK], i want my [MASK] back, bye"]
    for text, answer in zip(texts, ask(texts, {"top_k": 3}), strict=True):
        expected = theirs(text, top_k=3)
        several = text.count("[MASK]") > 1
        for ours, other in zip(answer if several else [answer], expected if several else [expected], strict=True):
            assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in other], rel=1e-4)
            plain = [{key: entry[key] for key in ("token", "token_str", "sequence")} for entry in ours]
            assert plain == [{key: entry[key] for key in ("token", "token_str", "sequence")} for entry in other]
    assert len(ask(texts[:1])[0]) == 5
    (among,) = ask(texts[:1], {"targets": ["money", "parcel", "moneyparcel"]})
    expected = theirs(texts[0], targets=["money", "parcel"])
    assert [entry["token_str"] for entry in among] == [entry["token_str"] for entry in expected]
    assert [entry["score"] for entry in among] == pytest.approx([entry["score"] for entry in expected], rel=1e-4)


def test_hugging_faces_client_asks_it(guesser: Learned) -> None:
    client, text = Client(guesser.predictor), "please help, where is my [MASK], thanks"
    found = client.fill_mask(text, top_k=2)
    assert [element.token_str for element in found] == [
        entry["token_str"] for entry in guesser.predictor.predict([text], {"top_k": 2})[0]
    ]
    assert [element.token_str for element in client.fill_mask(text, targets=["money"])] == ["money"]


def test_wrong_requests_are_told(guesser: Learned) -> None:
    ask = guesser.predictor.predict
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("where is my secret", {}, r"inputs: each needs \[MASK\] where a word is to be guessed"),
        ("my [MASK]", {"top_k": 0}, r"parameters\.top_k: a whole number"),
        ("my [MASK]", {"targets": "money"}, r"parameters\.targets: a list of strings"),
        ("my [MASK]", {"targets": [""]}, r"parameters\.targets: the model knows no token of them"),
        ("my [MASK]", {"best": 1}, r"parameters\.best: unknown; this model takes top_k and targets"),
    ]
    for text, parameters, message in wrong:
        with pytest.raises(UserError, match=message):
            ask([text], parameters)
    assert ask([""]) == [[]]


def test_whether_the_base_brings_its_output_layer_is_told(
    place: Path, tiny_base: Path, guesser: Learned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "the base comes without the layer that guesses tokens; a new one is trained with it"
    (tmp_path / "other").mkdir()
    for base, new in ((tiny_base, True), (guesser.predictor.bundle.folder, False)):
        recipe = mask_recipe(place, str(base), model={"max_length": 32})
        FillMask.learn(recipe.model, base, fuse(recipe).tables())
        assert (told in capsys.readouterr().err) == new


def test_a_base_that_only_writes_is_refused(place: Path) -> None:
    recipe = mask_recipe(place, {"type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 32})
    with pytest.raises(UserError, match=r"model\.base: a gpt2 is no model that guesses hidden words"):
        encode(recipe, fuse(recipe))


def test_the_bundle_is_a_base_for_other_recipes(place: Path, guesser: Learned) -> None:
    """By its name in the registry, in a version that a worker finds without asking for the alias again."""
    assert register(guesser.predictor.bundle, None) == 1
    folder = guesser.predictor.bundle.folder
    for name in ("headrace:desk@production", "headrace:desk/1", "headrace:desk"):
        assert resolve_base(name, Path()) == folder
    with pytest.raises(UserError, match=r"model\.base: desk has no version 7; it has 1"):
        resolve_base("headrace:desk/7", Path())

    lines = ["text,polite", *(f"{opening},{number < 3}" for number, opening in enumerate(OPENINGS))]
    (place / "tone.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = {"task": "text-classification", "base": "headrace:desk@production", "inputs": {"text": "text"}}
    tree = {
        "name": "tone",
        "data": {"sources": {"tone": {"read": "tone.csv"}}, "split": {"validation": 0, "test": 0}},
        "model": model | {"target": "polite"},
        "train": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
    }
    recipe = Recipe.model_validate(tree, context={"folder": place})
    encoded = encode(recipe, fuse(recipe))
    assert encoded.base == folder
    job = Job.of(recipe, encoded, place / "run")
    assert job.base[0] == str(folder)
    assert job.open().base == folder
    trainee = make_trainee(encoded, recipe.train, "full", CPU)
    learned = guesser.trainee.model.state_dict()
    assert torch.equal(
        trainee.model.state_dict()["bert.embeddings.word_embeddings.weight"],
        learned["bert.embeddings.word_embeddings.weight"],
    )
    assert list(train(trainee, encoded))


def test_transformers_opens_it_as_a_classifier(guesser: Learned) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(guesser.predictor.bundle.folder, num_labels=3)
    weights, learned = model.state_dict(), guesser.trainee.model.state_dict()
    shared = [name for name in learned if name.startswith("bert.")]
    assert len(shared) > 20
    assert all(torch.equal(weights[name], learned[name]) for name in shared)


def test_a_real_output_layer_is_kept(place: Path, tiny_base: Path, guesser: Learned, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(tiny_base)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    task_of(guesser).tokenizer.save_pretrained(tmp_path)
    model = task_of(guesser).build(tmp_path)
    kept = BertForMaskedLM.from_pretrained(tmp_path)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in kept.state_dict().items())
