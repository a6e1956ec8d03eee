"""A help desk for the tests of models that write or guess: small, regular, and learned in seconds."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import InferenceClient

from serving.predictor import Predictor
from serving.protocols import huggingface
from training.bundle import write_bundle
from training.data.fuse import fuse
from training.encode import Encoded, encode
from training.loop import Moment, Trainee, make_trainee, predict, train, validate
from training.recipe import Recipe

CPU = torch.device("cpu")
OPENINGS = ["please help", "hello", "good day", "i am waiting", "what now", "dear team", "once more"]
ANSWERS = {
    "where is my parcel": "It is on its way.",
    "i want my money back": "We pay it back today!",
    "how do i change my password": "Open the page, then choose a new one.",
    "快递没到": "明天送到。",
}
CLOSINGS = ["thanks", "soon", "bye", "it is late", "you know me"]

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 160, **NO_DROPOUT}
T5 = {"type": "t5", "d_model": 48, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}


def rows() -> list[dict[str, Any]]:
    """A row for each way to ask: ``question``, ``answer`` and the same as ``messages``."""
    made = []
    for opening in OPENINGS:
        for asked, answer in ANSWERS.items():
            for closing in CLOSINGS:
                question = f"{opening}, {asked}, {closing}"
                messages = [
                    {"role": "user", "content": opening},
                    {"role": "assistant", "content": "Tell me."},
                    {"role": "user", "content": f"{asked}, {closing}"},
                    {"role": "assistant", "content": answer},
                ]
                made.append({"question": question, "answer": answer, "messages": messages})
    return made


def desk_recipe(folder: Path, task: str, new: dict[str, Any] | str, **sections: Any) -> Recipe:
    """A recipe over the desk's rows, which are written into ``folder``."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows()]
    (folder / "desk.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    base = new if isinstance(new, str) else {"new": new, "tokenizer": "train", "vocabulary": 420}
    role = "prompt" if task == "text-generation" else "text"
    model = {"task": task, "base": base, "inputs": {role: "question"}, "target": "answer"}
    steps = {"epochs": 25, "batch_size": 16, "learning_rate": 5e-3, "workers": 1, "precision": "fp32"}
    tree = {
        "name": "desk",
        "data": {"sources": {"desk": {"read": "desk.jsonl"}}, "split": {"validation": 0.15, "test": 0.15}},
        "model": model | sections.get("model", {}),
        "train": steps | sections.get("train", {}),
    }
    return Recipe.model_validate(tree, context={"folder": folder})


class Client(InferenceClient):
    """Hugging Face's own client, whose requests a model answers in this process as the edge would."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(model="http://desk/models/desk")
        self.predictor = predictor

    def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        served: Any = SimpleNamespace(predictor=self.predictor)
        call = huggingface.call(request_parameters.json, served)
        answers = self.predictor.predict(call.inputs, call.parameters)
        return json.dumps(call.write(answers, [0] * len(answers))).encode()


@dataclass
class Learned:
    """A model that has learned the desk, and what it says."""

    encoded: Encoded
    trainee: Trainee
    moments: list[Moment]
    measured: dict[str, float]
    predictor: Predictor


def learn(recipe: Recipe, folder: Path) -> Learned:
    """Trains a recipe in this process and keeps its bundle in ``folder``, which does not exist."""
    encoded = encode(recipe, fuse(recipe))
    trainee = make_trainee(encoded, recipe.train, recipe.model.adapt, CPU)
    moments = list(train(trainee, encoded))
    rows = encoded.split("test")
    measured = encoded.task.metrics(predict(trainee, rows, final=True), rows.targets)
    assert validate(trainee, rows).keys() == encoded.task.metrics_known.keys()
    folder.mkdir()
    bundle = write_bundle(
        folder, model=trainee.model, task=encoded.task, name="desk", recipe={}, metrics={}, baselines={}, data={}
    )
    return Learned(encoded, trainee, moments, measured, Predictor(bundle, "cpu"))
