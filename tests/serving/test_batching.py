"""The arithmetic of batches: which items go together, and which of them is the culprit when one fails."""

from serving.batching import Failed, Limits, choose, isolated


def test_choose_always_takes_the_oldest_and_keeps_to_the_budget() -> None:
    limits = Limits(budget=100, items=8, padding_share=0.05, padding_slack=4)
    for lengths in ([10] * 20, [90, 10, 10, 11], [10, 90, 91, 9], [300, 1, 1], [7, 5, 6, 8, 100, 7]):
        chosen = choose(lengths, limits)
        longest = max(lengths[index] for index in chosen)
        padded = longest * len(chosen)
        assert 0 in chosen
        assert len(chosen) == len(set(chosen)) <= limits.items
        assert len(chosen) == 1 or padded <= limits.budget
        assert padded - sum(lengths[index] for index in chosen) <= 0.05 * padded + 4
    assert choose([], limits) == []


def test_choose_does_not_pad_short_texts_to_the_length_of_a_long_one() -> None:
    assert sorted(choose([8, 256, 9, 8, 250, 10], Limits(padding_slack=10))) == [0, 2, 3, 5]


def test_isolated_finds_the_culprits_with_few_calls() -> None:
    calls = []

    def fragile(values: list[int]) -> list[int]:
        calls.append(values)
        if 13 in values or 40 in values:
            raise ValueError
        return [value * 2 for value in values]

    results = isolated(fragile, list(range(64)))
    assert [index for index, result in enumerate(results) if isinstance(result, Failed)] == [13, 40]
    assert [result for result in results if not isinstance(result, Failed)] == [
        2 * value for value in range(64) if value not in (13, 40)
    ]
    assert len(calls) <= 25
