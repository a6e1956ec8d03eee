"""What `headrace serve` is asked for: models by name, a serve.yaml, changes on the command line, aliases."""

import shutil
from pathlib import Path

import pytest

import headrace
from cluster.errors import RecipeError, UserError
from cluster.storage import read_json
from serving.recipe import Serve
from serving.wanted import Wanted, hosting
from tests.serving.conftest import MakeBundle, entry
from training import registry
from training.bundle import Bundle


def test_one_model_is_hosted_as_its_recipe_said_with_what_is_changed(bundle: Bundle, pair_bundle: Bundle) -> None:
    alone = hosting([str(bundle.folder)], ["serve.engine=fast", "serve.replicas.max=2"])
    assert [model.name for model in alone.models] == [str(bundle.folder)]
    assert (alone.serve.engine, alone.serve.replicas.max, alone.serve.max_items) == ("fast", 2, Serve().max_items)
    several = hosting([str(bundle.folder), str(pair_bundle.folder)], [])
    assert several.serve == Serve()


def test_a_file_says_what_shares_an_address(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("models: [intent@production, pair/3]\nserve: {max_items: 16}\n", encoding="utf-8")
    models, options = headrace.served([str(file), "serve.engine=torch-bf16"])
    assert [model.name for model in models] == ["intent@production", "pair/3"]
    assert (options.max_items, options.engine) == (16, "torch-bf16")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("models: [a]\nserve: {engin: fast}\n", [], r"serve.yaml:2 serve.engin: unknown key, did you mean 'engine'\?"),
        ("models: []\n", [], "serve.yaml:1 models: "),
        ("models: [a]\n", ["serve.engine=slow"], "command line serve.engine: .*'slow'"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        hosting([str(file)], overrides)


def test_files_do_not_stand_beside_models(tmp_path: Path) -> None:
    for subjects in ([], ["a", "recipe.yaml"], ["one.yaml", "other.yml"]):
        with pytest.raises(UserError, match=r"serve takes one recipe, one serve\.yaml, or models by name"):
            hosting(subjects, [])


def test_aliases_are_followed_and_pins_are_not(home: Path, make_bundle: MakeBundle) -> None:
    made = [make_bundle(home / "models" / "intent" / f"v{seed}", seed=seed) for seed in (1, 2)]
    for one in made:
        registry.register(one, None)
    following, pinned = Wanted(["intent"]), Wanted(["intent/1"])
    for wanted in (following, pinned):
        wanted.write(home / "serving" / f"{id(wanted)}.json")
    registry.promote("intent", 2)
    for wanted in (following, pinned):
        wanted.follow()
    assert read_json(following.path) == {"intent": entry(made[1], 2, before=1)}
    assert read_json(pinned.path) == {"intent": entry(made[0], 1)}
    shutil.move(home / "mlflow.db", home / "away.db")
    following.follow()  # a store that is away changes nothing
    assert read_json(following.path)["intent"]["routes"][0]["version"] == 2
