"""The front door: one command line from business data to an answering endpoint.

Every command loads its recipe, calls one function of a room (training, tuning, serving, cluster) and prints what came
back. Nothing heavy is imported before a command needs it.

    stdout      results only; with --json exactly one JSON object
    stderr      progress, logs, errors
    exit code   0 done; 2 the recipe, the data or the arguments are at fault; 1 anything else; 130 interrupted
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cluster.errors import RecipeError, UserError
from cluster.printing import answer, carry_out, measured, outline, table, working

if TYPE_CHECKING:
    from cluster.settings import Document
    from serving.recipe import Hosted, Serve
    from training.bundle import Bundle
    from training.fit import Run
    from training.recipe import Recipe
    from tuning.recipe import Tune
    from tuning.sweep import Sweep

    class WholeRecipe(Recipe):
        """What :func:`recipe_model` makes."""

        tune: Tune | None
        serve: Serve


app = typer.Typer(
    name="headrace",
    help="One recipe takes business data to a fine-tuned model that answers over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: three times as quick, and the same in the docs
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe fields to change, as in train.epochs=1.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Labelled = Annotated[Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Labelled rows.")]
Encoding = Annotated[str | None, typer.Option(help="FILE's text encoding, as in gb18030; UTF-8 if left out.")]
Delimiter = Annotated[str | None, typer.Option(help="What separates FILE's columns; a comma if left out.")]
Dependencies = Annotated[Literal["missing", "all", "none"], typer.Option(help="Packages to install for the job.")]
Url = Annotated[str, typer.Option(help="The address of the server.")]
Address = Annotated[str | None, typer.Option(help="The cluster's job server, as in http://127.0.0.1:8265.")]


# --- data to model ----------------------------------------------------------------------------------------------------


@app.command(epilog="Example: headrace new support && headrace run support/recipe.yaml")
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    task: Annotated[str, typer.Option(help="What the model is to do.")] = "text-classification",
    as_json: Json = False,
) -> None:
    """Write a recipe and sample data that run.

    The recipe has comments; the data is small, made up, and as untidy as real data.
    """
    with working():
        from training.samples import write_sample

        files = write_sample(folder, task)
    lines = [*map(str, files), "", f"Next: headrace run {folder / 'recipe.yaml'}"]
    answer({"files": [str(file) for file in files]}, lines, as_json)


@app.command(epilog="Example: headrace check recipe.yaml")
def check(
    recipe_file: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Rows of each source that are looked at.", min=1)] = 2000,
    as_json: Json = False,
) -> None:
    """Try a recipe on a sample, without training.

    Validates everything and runs the fusion on the first rows: unmatched keys, missing values, the balance of labels,
    text lengths, what would run where, and the memory it will take. Takes seconds.
    """
    with working():
        from training.data.summary import summary
        from tuning.preflight import foresee

        recipe, _ = load_recipe(recipe_file, overrides)
        planned, report = foresee(recipe, recipe.tune, rows)
    answer({"recipe": "valid", "data": report, "plan": planned}, [*summary(report), "", *outline(planned)], as_json)


@app.command(epilog="Example: headrace fuse recipe.yaml data.split.seed=8")
def fuse(recipe_file: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Join, clean and split the data.

    Reports what became of every row; those that could not be used lie in rejected.parquet with the reason.
    """
    with working():
        from training.data.fuse import fuse as fuse_data
        from training.data.summary import summary

        recipe, _ = load_recipe(recipe_file, overrides)
        fused = fuse_data(recipe)
    found = {"folder": str(fused.folder), "fingerprint": fused.fingerprint, **fused.report}
    answer(found, [*summary(fused.report), "", f"folder     {fused.folder}"], as_json)


@app.command(epilog="Example: headrace train recipe.yaml train.epochs=1")
def train(recipe_file: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fine-tune, evaluate and register a model.

    What is done already is skipped; what was interrupted is continued. A `tune` section is left alone.
    """
    with working():
        result = made(recipe_file, overrides, tuned=False)[0].as_json()
    answer(result, measured(result), as_json)


@app.command(epilog="Example: headrace tune recipe.yaml tune.trials=20")
def tune(recipe_file: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Search for better settings, train the best.

    A sweep that was interrupted is continued: finished trials are kept.
    """
    with working():
        recipe, document = load_recipe(recipe_file, overrides)
        if recipe.tune is None:
            raise RecipeError([document.problem((), "has no `tune` section; add one with `search`, or use train")])
    run(recipe_file, overrides, as_json)


@app.command(epilog="Example: headrace run recipe.yaml")
def run(recipe_file: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fuse, tune, train, evaluate and register.

    Tunes where the recipe has a `tune` section. What is done already is skipped.
    """
    with working():
        model, found = made(recipe_file, overrides)
        result = model.as_json() | (found.as_json() if found else {})
    chosen = [found.text(), "", f"best: {' '.join(found.overrides)}", f"picture: {found.picture}", ""] if found else []
    answer(result, [*chosen, *measured(result)], as_json)


@app.command(epilog="Example: headrace evaluate support-intent --data new_tickets.csv")
def evaluate(
    subject: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="What is measured.", show_default=False)],
    overrides: Overrides = None,
    data: Labelled = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    as_json: Json = False,
) -> None:
    """Show or measure how good a model is.

    A recipe stands for the model that `run` makes or has made of it. --data has it measured on other labelled rows.
    """
    with working():
        from training.data.table import read_table
        from training.evaluation.evaluate import evaluate as measure

        if overrides and not is_recipe(subject):
            raise UserError(f"{overrides[0]}: {subject} is a finished model; only a recipe can be changed")
        run = made(Path(subject), overrides)[0] if is_recipe(subject) else None
        bundle = open_model(str(run.bundle) if run else subject)
        rows = read_table(data, bundle.info["signature"], encoding, delimiter) if data else None
        result = (run.as_json() if run else {}) | measure(bundle, rows)
    answer(result, measured(result), as_json)


# --- model to answers -------------------------------------------------------------------------------------------------


@app.command(epilog="Example: headrace predict support-intent tickets.csv -o answers.jsonl")
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name@alias, name/3 or a bundle folder.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows to answer: csv, jsonl or parquet.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write here; .csv keeps the rows.")] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    top_k: Annotated[int | None, typer.Option(help="How many labels each answer holds.", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Answer every row of a file.

    The answers are those of the endpoint, one line of JSON for each row; in a .csv, after the row's own cells.
    """
    with working() as out:
        from serving.answering import answer_into, answer_to
        from serving.predictor import Predictor
        from training.data.table import open_table

        bundle = open_model(model)
        with open_table(file, bundle.info["signature"], encoding, delimiter) as table:
            chunks = (chunk.to_pylist() for chunk in table.chunks if chunk.num_rows)
            asked = Predictor(bundle), chunks, {"top_k": top_k} if top_k else {}, table.rows
            if not output:
                answer_to(out, *asked, as_json=as_json)
                return
            rows = answer_into(output, *asked)
    answer({"rows": rows, "output": str(output)}, [f"{rows} answers in {output}"], as_json)


@app.command(epilog="Example: headrace models promote support-intent 3")
def models(
    words: Annotated[list[str] | None, typer.Argument(metavar="[NAME | promote NAME VERSION | rollback NAME]")] = None,
    as_json: Json = False,
) -> None:
    """List, promote or roll back models.

    Promoting puts a version into production; rolling back puts the one back that was there before. A server that
    follows the model swaps it without losing a request.
    """
    with working():
        from training.registry import commanded

        found = commanded(words or [])
    answer({"models": found}, table(found) or ["no models yet; `headrace run RECIPE` makes one"], as_json)


@app.command(epilog="Example: headrace serve support-intent --port 8000")
def serve(
    subjects: Annotated[
        list[str], typer.Argument(metavar="FILE|MODEL...", help="A recipe, a serve.yaml or models, and KEY=VALUE.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 for any free one.", min=0, max=65535)] = 8000,
    without_keys: Annotated[bool, typer.Option("--without-keys", help="Let everyone ask who reaches HOST.")] = False,
    as_json: Json = False,
) -> None:
    """Host models until Ctrl-C or SIGTERM.

    Prints the address when it answers. HEADRACE_API_KEYS names a file of hashed keys that requests must carry. The
    `serve` section of the file holds; of one model by name, as it was in training; several share the defaults.
    """
    with working() as out:
        from serving.host import serve as host_models
        from training.registry import resolve

        models, options = served(subjects)
        names = [resolve(model.name).name for model in models]  # under which each is answered for, whatever its alias

        def announce(address: str) -> None:
            found = {"address": address, "models": [f"{address}/models/{name}" for name in names]}
            answer(found, [f"{name} answers at {address}/models/{name}" for name in names], as_json, out)

        host_models(models, options, host, port, announce=announce, without_keys=without_keys)


@app.command(epilog="Example: headrace ask support-intent 'where is my parcel'")
def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a model that is served.")],
    inputs: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts; or rows, as JSON objects.")],
    url: Url = "http://127.0.0.1:8000",
    as_json: Json = False,
) -> None:
    """Ask a server that runs, which a key in HEADRACE_API_KEY is sent to."""
    from serving.client import ask as ask_server

    answers = ask_server(url, model, inputs)
    answer({"answers": answers}, [json.dumps(one, ensure_ascii=False) for one in answers], as_json)


@app.command(epilog="Example: headrace bench support-intent --rate 200 --data tickets.csv")
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a model that is served.")],
    rate: Annotated[float, typer.Option(help="Requests a second, at random moments.", min=0.01)] = 50.0,
    seconds: Annotated[float, typer.Option(help="For how long.", min=0.1)] = 10.0,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Rows to ask; without, a text.")] = None,
    url: Url = "http://127.0.0.1:8000",
    as_json: Json = False,
) -> None:
    """Measure how quickly a server answers at a given rate.

    Requests are sent when they are due, however many are unanswered, and waits count from that moment.
    """
    from serving.bench import bench as measure_server
    from serving.client import about
    from training.data.table import read_table

    rows = read_table(data, about(url, model)["signature"]).to_pylist() if data else None
    found = measure_server(url, model, rate, seconds, rows)
    answer(found, outline(found), as_json)


# --- elsewhere --------------------------------------------------------------------------------------------------------


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: headrace submit --address http://127.0.0.1:8265 run recipe.yaml",
)
def submit(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="A headrace command and its arguments.")],
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="Follow the job and return its exit code.")] = True,
    dependencies: Dependencies = "missing",
) -> None:
    """Run a command as a job on a Ray cluster.

    The recipe or serve.yaml, checked, and the files it names travel along; logs and the exit code come back.
    """
    from cluster.jobs import submit as submit_job
    from cluster.parcel import recipe_of

    if command[0] not in (known := [str(getattr(one.callback, "__name__", "")) for one in app.registered_commands]):
        raise UserError(f"there is no command {command[0]}; there are {', '.join(known)}")
    if recipe := recipe_of(command):  # not as work here: that would fill in the home, which the job must be told
        served(recipe.words) if command[0] == "serve" else load_recipe(recipe.path, recipe.overrides)
    raise typer.Exit(submit_job(address, command, wait=wait, dependencies=dependencies))


@app.command(epilog="Example: headrace jobs logs headrace-run-1a2b3c")
def jobs(
    words: Annotated[list[str] | None, typer.Argument(metavar="[logs ID | stop ID]")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """List, follow or stop a cluster's jobs."""
    from cluster.jobs import commanded, logs

    if words and words[0] == "logs" and len(words) == 2:
        raise typer.Exit(logs(address, words[1]))
    found = commanded(address, words or [])
    answer({"jobs": found}, table(found) or ["no jobs"], as_json)


@app.command(epilog="Example: headrace doctor")
def doctor(as_json: Json = False) -> None:
    """Examine this machine and its cluster.

    Says what is installed, what the devices can do, whether storage is shared, and what to mend.
    """
    with working(prepared=False):  # what the user has set, and what not, is what it looks at
        from cluster.doctor import examine

        found = [one.as_json() for one in examine()]
    lines = [f"{one['status']:4}  {one['name']}: {one['what']}\n      {one['cure']}".rstrip() for one in found]
    answer({"checks": found}, lines, as_json)
    if any(one["status"] == "fail" for one in found):
        raise typer.Exit(1)


# --- recipes ----------------------------------------------------------------------------------------------------------


@functools.cache
def recipe_model() -> "type[WholeRecipe]":
    """The whole recipe: training's own, with the sections of tuning and serving."""
    from pydantic import Field, create_model

    from serving.recipe import Serve
    from training.recipe import Recipe
    from tuning.recipe import Tune

    whole: Any = create_model(
        "WholeRecipe",
        __base__=Recipe,
        tune=(Tune | None, Field(None, description="The search for better settings; left out, none is made.")),
        serve=(Serve, Field(default_factory=Serve, description="How the model is hosted.")),
    )
    return cast("type[WholeRecipe]", whole)


def load_recipe(source: "Path | Document", overrides: Sequence[str] | None = None) -> "tuple[WholeRecipe, Document]":
    """The recipe and its document, whose ``public`` part may be stored: of a file, or of one read before.

    Raises:
        RecipeError: with every problem there is, each with file, line, key, value and cure.
        UserError: the file is missing or is no text.
    """
    from cluster.settings import read
    from training.preflight import task_problems
    from tuning.space import check_search

    document = read(source, overrides or ()) if isinstance(source, Path) else source.overridden(overrides or ())
    problems = task_problems(document)
    try:
        recipe = document.validate(recipe_model())
    except RecipeError as error:
        raise RecipeError(error.problems + problems) from None
    if recipe.tune is not None:
        problems += check_search(recipe.tune, document)
    if problems:
        raise RecipeError(problems)
    return recipe, document


def made(recipe_file: Path, overrides: Sequence[str] | None, *, tuned: bool = True) -> "tuple[Run, Sweep | None]":
    """Carries a recipe out: its model and, where it has a `tune` section and ``tuned`` is left on, the sweep."""
    from cluster.imports import importing
    from cluster.session import early_session
    from training.finished import finished_before

    recipe, document = load_recipe(recipe_file, overrides)
    with early_session(unless=finished_before(recipe.name, document.public)):
        with importing():
            from training.fit import fit
            from tuning.sweep import sweep
        found = sweep(recipe, recipe.tune, document.public) if tuned and recipe.tune is not None else None
        if found:
            recipe, document = load_recipe(document, found.overrides)
        return fit(recipe, document.public), found


def served(subjects: Sequence[str]) -> "tuple[list[Hosted], Serve]":
    """The models that are meant, and how they are to be hosted."""
    from cluster.settings import is_override
    from serving.recipe import hosted
    from serving.wanted import hosting, is_hosting

    overrides, names = ([word for word in subjects if is_override(word) is changes] for changes in (True, False))
    if len(names) == 1 and is_recipe(names[0]) and not is_hosting(Path(names[0])):
        recipe, _ = load_recipe(Path(names[0]), overrides)
        return hosted([recipe.name], recipe.serve), recipe.serve
    wanted = hosting(names, overrides)
    return hosted(wanted.models, wanted.serve), wanted.serve


def is_recipe(subject: str) -> bool:
    """Whether a word of the command line names a recipe file rather than a model."""
    return subject.endswith((".yaml", ".yml"))


def open_model(model: str) -> "Bundle":
    """The bundle of a model, by any of its names."""
    from training.bundle import open_bundle
    from training.registry import resolve

    return open_bundle(resolve(model).bundle)


def main() -> None:
    """Runs the command line; turns what went wrong into a plain message and an exit code."""
    carry_out(app)


if __name__ == "__main__":
    main()
