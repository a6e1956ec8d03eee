"""The packages that headrace needs, at which versions, and which of them a cluster lacks."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from cluster.environment import code_root
from cluster.errors import UserError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Dependencies = Literal["missing", "all", "none"]


def lacking(
    modules: Iterable[str], python: str, installed: Mapping[str, str], dependencies: Dependencies = "missing"
) -> list[str]:
    """What pip is to install for a job, each pinned.

    Args:
        modules: what a recipe itself asks for (a weights package, a database driver).
        python: the cluster's.
        installed: its packages, with their versions.
        dependencies: which to install: those that it is missing, all, or none.

    Raises:
        UserError: the cluster's Python or Ray, which no job can bring along, is not one that headrace takes.
    """
    from packaging.specifiers import SpecifierSet

    have = {plain(name): version for name, version in installed.items()}
    pinned, wanted = _installed_here() | pins(), []
    if not SpecifierSet(_project()["requires-python"]).contains(python):
        raise UserError(f"the cluster runs Python {python} and headrace needs {_project()['requires-python']}")
    for requirement in [*_declared(), *(one for module in sorted(modules) for one in _of_module(module))]:
        name = plain(requirement.name)
        version = have.get(name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        if name == "ray" and version is not None:
            if not fits:
                raise UserError(f"the cluster runs Ray {version} and headrace needs ray{requirement.specifier}")
            continue
        if dependencies == "all" or not fits:
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted.append(f"{name}{extras}{pinned.get(name, str(requirement.specifier))}")
    return [] if dependencies == "none" else sorted(set(wanted))


def pins() -> dict[str, str]:
    """Name: ``==version``, as the tests ran with; empty where that is not known."""
    constraints = code_root() / "constraints.txt"
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").splitlines()
    parts = (line.partition("#")[0].partition(";")[0].strip().partition("==") for line in lines)
    return {plain(name): f"=={version.strip().partition('+')[0]}" for name, equals, version in parts if equals}


def plain(name: str) -> str:
    """A package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed_here() -> dict[str, str]:
    found = importlib.metadata.distributions()
    return {plain(one.metadata["Name"]): f"=={one.version.partition('+')[0]}" for one in found if one.metadata["Name"]}


def _project() -> dict[str, Any]:
    """``requires-python``, ``dependencies`` and ``optional-dependencies`` of headrace itself."""
    file = code_root() / "pyproject.toml"
    if file.is_file():
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return project
    lines = importlib.metadata.requires("headrace") or []
    return {
        "requires-python": importlib.metadata.metadata("headrace")["Requires-Python"],
        "dependencies": [line for line in lines if "extra ==" not in line],
        "optional-dependencies": {"": [line.partition(";")[0] for line in lines if "extra ==" in line]},
    }


def _declared() -> list["Requirement"]:
    from packaging.requirements import Requirement

    return [Requirement(line) for line in _project()["dependencies"]]


def _of_module(module: str) -> list["Requirement"]:
    """The packages that bring a module, as our extras ask for them; else as installed here, else by its own name."""
    from packaging.requirements import Requirement

    names = set(importlib.metadata.packages_distributions().get(module, [module.replace("_", "-")]))
    optional = [Requirement(line) for lines in _project()["optional-dependencies"].values() for line in lines]
    known = {plain(one.name): one for one in optional}
    return [known.get(plain(name), Requirement(name)) for name in sorted(names)]
