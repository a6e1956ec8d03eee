"""Rows of many texts, as items of the scheduler that others can come between."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.outcomes import Answered
from training.tasks.task import Row, Task

MOST_TEXTS = 16
"""Texts of one item. A batch is never interrupted, and who asks for many texts must not have all others wait for it."""


def texts_in(task: Task, rows: Sequence[Row]) -> int:
    """How many texts are read of these rows, where a row may hold many; one of each other row."""
    return sum(len(task.apart(row, 1)) for row in rows)


def into_items(task: Task, rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows as items, and of how many items each row is."""
    several = [task.apart(row, MOST_TEXTS) for row in rows]
    return [item for items in several for item in items], list(map(len, several))


def together(task: Task, answered: Answered, counts: Sequence[int], parameters: Mapping[str, Any]) -> Answered:
    """What became of the rows, of what became of their items."""
    if len(counts) == len(answered.answers):
        return answered
    answers, lengths, written, start = [], [], [], 0
    for count in counts:
        own = slice(start, start := start + count)
        answers.append(task.together(answered.answers[own], MOST_TEXTS, parameters))
        lengths.append(sum(answered.lengths[own]))
        written.append(sum(answered.written[own]))
    return Answered(answers, lengths, written, answered.runs)
