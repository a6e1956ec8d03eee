"""Brings the public data sets of the examples into ``examples/data``: ``python examples/prepare.py FOLDER``.

FOLDER holds each data set in a folder of its own, as its authors publish it; `examples/README.md` says where. What
headrace reads as it is stays where it is and is linked; what no recipe can read is written anew below ``data/made``.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def main(source: Path) -> None:
    """Links or converts every data set that is there, and says which are not."""
    made = DATA / "made"
    made.mkdir(parents=True, exist_ok=True)
    for name in (*AS_THEY_ARE, *WRITTEN_ANEW):
        if not (source / name).is_dir():
            print(f"{name}: not in {source}")
        elif name in WRITTEN_ANEW:
            WRITTEN_ANEW[name](source / name, made)
            print(f"{name}: written to {made}")
        else:
            (DATA / name).unlink(missing_ok=True)
            (DATA / name).symlink_to((source / name).resolve())
            print(f"{name}: linked")
    digits(made / "digits")


def wnut17(folder: Path, made: Path) -> None:
    """CoNLL files, a token and a tag a line and a blank line after each sentence, as a row a sentence."""
    files = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    for name, file in files.items():
        with (made / f"wnut17_{name}.jsonl").open("w", encoding="utf-8") as out:
            for sentence in sentences(folder / file):
                tokens, tags = zip(*sentence, strict=True)
                out.write(json.dumps({"tokens": tokens, "tags": tags}, ensure_ascii=False) + "\n")


def sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    """The sentences of a CoNLL file: the first and the last column of each line."""
    sentence: list[tuple[str, str]] = []
    for line in [*file.read_text(encoding="utf-8").split("\n"), ""]:
        if line.strip():
            token, *_, tag = line.split("\t")
            sentence.append((token, tag.strip()))
        elif sentence:
            yield sentence
            sentence = []


def cranfield(folder: Path, made: Path) -> None:
    """The SMART files as three tables. Judgements number the queries by their place, not by the number they carry."""
    documents = [[number, parts["T"], parts.get("W", "")] for number, parts in records(folder / "cran.all.1400")]
    queries = [[place, parts["W"]] for place, (_, parts) in enumerate(records(folder / "cran.qry"), 1)]
    judged = [line.split() for line in (folder / "cranqrel").read_text(encoding="utf-8").splitlines() if line.strip()]
    grades = [[query, document, 5 - int(code)] for query, document, code in judged]  # code 1 is the best of four
    write(made / "cranfield_documents.csv", ["document", "title", "body"], documents)
    write(made / "cranfield_queries.csv", ["query", "question"], queries)
    write(made / "cranfield_judgements.csv", ["query", "document", "grade"], grades)


def records(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The records of a SMART file: a number, and fields by their letters."""
    for record in re.split(r"^\.I ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        number, _, rest = record.partition("\n")
        parts = re.split(r"^\.([TABW])\n", rest, flags=re.MULTILINE)
        fields = zip(parts[1::2], parts[2::2], strict=True)
        yield int(number), {letter: " ".join(text.split()) for letter, text in fields}


def digits(folder: Path) -> None:
    """scikit-learn's pictures of digits as PNG files, their digit in the name."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(exist_ok=True)
    known = load_digits()
    for number, (pixels, digit) in enumerate(zip(known.images, known.target, strict=True)):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{digit}_{number:04}.png")
    print(f"digits: {len(known.images)} pictures in {folder}")


def write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


AS_THEY_ARE = (
    "banking77",
    "bike_sharing_hourly",
    "bitext_customer_support",
    "fsdd",
    "hotel_reviews_zh",
    "olist",
    "telco_churn",
)
WRITTEN_ANEW: dict[str, Callable[[Path, Path], None]] = {"cranfield": cranfield, "wnut17": wnut17}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
