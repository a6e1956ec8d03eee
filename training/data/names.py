"""Names of files as a table: a row for each file, with what its name tells. The files themselves are not opened.

What a file holds is the task's to read, where rows become examples; so its content is no part of what was fused, and
its name is.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from training.data.files import File
from training.data.landing import Landed, Landing
from training.data.recipe import Source

FILE = "file"
"""The column with a file's path: relative to the recipe's folder where it lies in it, else in full."""

PART = re.compile(r"\{(\w+)\}")


def land_names(source: Source, files: Sequence[File], recipe_folder: Path, landing: Landing) -> Landed:
    """Lands the files' names, with a column for each part that the source's pattern names.

    Of several ways that a name can match the pattern, the first parts are the shortest.
    """
    pattern = as_regex(source.pattern)
    landing.declare([FILE, *pattern.groupindex])
    rows, numbers = [], []
    for number, path in enumerate(named(files, recipe_folder), 1):
        found = pattern.search(path)
        if found is None:
            landing.reject(number, FILE, path, f"its name does not match {source.pattern}")
        else:
            rows.append({FILE: path, **found.groupdict()})
            numbers.append(number)
    landing.add_rows(rows, numbers)
    return landing.finish("files", files=len(files))


def named(files: Sequence[File], recipe_folder: Path) -> list[str]:
    """What :data:`FILE` holds of each file."""
    root = recipe_folder.resolve()
    paths = [Path(file.address) for file in files]
    return [
        path.relative_to(root).as_posix() if not file.remote and path.is_relative_to(root) else file.address
        for file, path in zip(files, paths, strict=True)
    ]


def as_regex(pattern: str) -> re.Pattern[str]:
    """A pattern such as ``{digit}_{speaker}.wav`` as a regular expression for the end of a path."""
    parts = PART.split(pattern)
    written = (f"(?P<{part}>[^/]+?)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
    return re.compile(f"(?:^|/){''.join(written)}$")
