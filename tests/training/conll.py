"""Files of the CoNLL kind: a token and its tag a line."""

from pathlib import Path


def read_conll(file: Path) -> list[tuple[list[str], list[str]]]:
    """Sentences as tokens and tags: a line for each token, an empty one between sentences."""
    sentences: list[tuple[list[str], list[str]]] = [([], [])]
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            token, tag = line.split("\t")[:2]
            sentences[-1][0].append(token)
            sentences[-1][1].append(tag.strip())
        elif sentences[-1][0]:
            sentences.append(([], []))
    return [one for one in sentences if one[0]]
