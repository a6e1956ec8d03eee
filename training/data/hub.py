"""Hugging Face data sets: by hub id, or from a local folder."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import RunError, UserError
from training.data.landing import PART_ROWS, Landed, Landing
from training.data.recipe import Source


def local_folder(source: Source, recipe_folder: Path) -> Path | None:
    """The folder that a `hub:` source means, where it is one on this machine."""
    folder = Path(str(source.hub)).expanduser()
    folder = folder if folder.is_absolute() else recipe_folder / folder
    return folder if folder.is_dir() else None


def land_hub(name: str, source: Source, recipe_folder: Path, landing: Landing) -> Landed:
    """Lands a split of a data set; class numbers become the names of their classes.

    Raises:
        UserError: the folder, the subset or the split does not exist.
        RunError: the hub cannot be reached.
    """
    folder = local_folder(source, recipe_folder)
    if folder is None and (str(source.hub).startswith((".", "/", "~")) or str(source.hub).count("/") > 1):
        raise UserError(f"data.sources.{name}.hub: there is no folder {source.hub} (looked in {recipe_folder})")
    data = _split(name, source, _load(name, source, folder))
    classes = {column: kind for column, kind in data.features.items() if type(kind).__name__ == "ClassLabel"}
    landing.declare(data.column_names)
    first = 1
    for batch in data.with_format("arrow").iter(batch_size=PART_ROWS):
        columns = {column: _values(batch[column], classes.get(column)) for column in batch.column_names}
        landing.add(columns, range(first, first + batch.num_rows))
        first += batch.num_rows
        if landing.full:
            break
    return landing.finish("hub", digest=True)


def _load(name: str, source: Source, folder: Path | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if folder is None:
            return datasets.load_dataset(str(source.hub), source.subset, split=source.split)
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder), source.subset, split=source.split)
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise _not_reached(name, source, folder, error) from None
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.sources.{name}.hub: {source.hub}: {str(error).splitlines()[0]}") from None


def _not_reached(name: str, source: Source, folder: Path | None, error: Exception) -> UserError | RunError:
    if folder is not None:
        reason = str(error).splitlines()[0]
        return UserError(f"data.sources.{name}.hub: {source.hub} holds no data set that can be read: {reason}")
    return RunError(
        f"data.sources.{name}.hub: the data set '{source.hub}' cannot be fetched from the hub "
        f"({type(error).__name__}). Check the id and the network; or download it elsewhere "
        f"(`datasets.load_dataset('{source.hub}').save_to_disk('FOLDER')`) and write `hub: FOLDER`; or set HF_ENDPOINT "
        "to a mirror, HF_TOKEN for a private data set, or HF_HUB_OFFLINE=1 where it is in the cache"
    )


def _split(name: str, source: Source, data: Any) -> Any:
    import datasets

    if isinstance(data, datasets.Dataset):
        return data
    if source.split is None and len(data) == 1:
        return next(iter(data.values()))
    there = ", ".join(data)
    if source.split is None:
        raise UserError(f"data.sources.{name}: the data set has the splits {there}; add data.sources.{name}.split")
    if source.split not in data:
        raise UserError(f"data.sources.{name}.split: there is no split '{source.split}'; there is {there}")
    return data[source.split]


def _values(column: pa.ChunkedArray, labels: Any) -> pa.Array | list[Any]:
    if labels is not None:
        names = labels.names
        return [None if value is None or value < 0 else names[value] for value in column.to_pylist()]
    return column.combine_chunks()
