"""The house rules: four rooms, imports one way, short functions, one place that starts Ray, a light front door."""

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cluster", "training", "serving", "tuning")
OURS = {*ROOMS, "headrace"}

LONGEST_FUNCTION = 50
LONGEST_FILE = 400
LONGEST_FRONT_DOOR = 450


def sources() -> list[Path]:
    """Every module that is installed."""
    return [ROOT / "headrace.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_name_means_this_repository(name: str) -> None:
    """The names are common words: a foreign wheel that ships one would silently win, or lose, by the folder that
    Python was started in."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    others = set(importlib.metadata.packages_distributions().get(name, [])) - {"headrace"}
    assert not others, f"{name} is also shipped by {others}"


def test_the_wheel_holds_the_rooms_and_the_front_door_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {*ROOMS, "headrace.py"}
    assert "training/samples/text-classification/recipe.yaml" in names


def test_it_must_not_reach_a_package_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "Private :: Do Not Upload" in project["classifiers"]


def test_imports_point_one_way() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_is_light() -> None:
    """``--help`` loads nothing of what the commands need; its time is a benchmark, not a test."""
    script = (
        "import sys, headrace\n"
        "sys.argv = ['headrace', '--help']\n"
        "try:\n    headrace.main()\n"
        "finally:\n    print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "ray", "transformers", "daft", "mlflow", "sklearn", "pydantic", "numpy", "pyarrow", "yaml"}
    assert heavy & set(done.stderr.split()) == set()


def test_the_loop_runs_without_ray() -> None:
    script = "import sys, training.loop; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["training.recipe", "tuning.recipe", "serving.recipe", "cluster.settings"])
def test_a_recipe_is_read_without_anything_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "ray", "transformers", "daft", "mlflow", "numpy"} & set(done.stdout.split()) == set()


@pytest.mark.parametrize("recipe", ["banking77", "telco_churn", "digits", "spoken_digits", "bitext_replies"])
def test_a_recipe_is_checked_without_model_code(recipe: str) -> None:
    """It takes longer to import than PyTorch, and a mistake in a recipe is to be told at once."""
    script = (
        "import sys, pathlib, headrace\n"
        f"headrace.load_recipe(pathlib.Path('examples/{recipe}.yaml'), ())\n"
        "print(*{'transformers.modeling_utils', 'ray', 'sklearn', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_ray_is_started_in_one_place() -> None:
    places = [path.relative_to(ROOT).as_posix() for path in sources() if calls(path, "ray", "init")]
    assert places == ["cluster/session.py"]


def calls(path: Path, owner: str, name: str) -> bool:
    """Whether a module calls ``owner.name``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(ast.unparse(function) == f"{owner}.{name}" for function in called)


def test_functions_read_top_to_bottom() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines"
        for path in sources()
        for node in functions(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


def test_a_file_is_one_concept() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    front = lengths.pop(ROOT / "headrace.py")
    assert front <= LONGEST_FRONT_DOOR
    long = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]
    assert long == []


def test_no_room_is_a_lumber_room() -> None:
    lumber = {"utils", "util", "helpers", "common", "misc"}
    assert [path.relative_to(ROOT) for path in sources() if {path.stem, path.parent.name} & lumber] == []


def test_nothing_but_the_four_rooms_is_a_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(ROOMS)


def test_every_dependency_is_pinned_and_torch_has_no_build_tag() -> None:
    """A pin like ``torch==2.13.0+cpu`` can be found on one machine only; without a pin pip takes CUDA everywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(one for extra in extras for one in extra)]
    names = {requirement_name(one) for one in declared}
    assert names - pins.keys() == set()
    assert all("+" not in version for version in pins.values())


def requirement_name(requirement: str) -> str:
    """``ray[serve]>=2`` -> ``ray``."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(requirement).name)


def test_no_environment_leaks_into_the_tests() -> None:
    assert not os.environ.get("RAY_ADDRESS"), "a test would run on somebody's cluster"
