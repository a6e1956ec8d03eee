"""How much of a wanted text another one says, in its order: ROUGE-L."""

import re
from collections.abc import Sequence

WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # scripts without spaces
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case; of Chinese and Japanese each character."""
    return WORD.findall(text.lower())


def rouge_l(wanted: str, said: str) -> float:
    """The F-measure of the longest common subsequence of words (Lin, 2004), precision and recall weighed alike.

    For English the same as the package rouge-score without stemming.
    """
    left, right = words(wanted), words(said)
    common = common_subsequence(left, right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence, a machine word of comparisons at once (Hyyrö, 2004).

    Bit ``i`` of ``row`` is 0 where the subsequence grows by ``left[i]``.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(left)) - 1
    row = everywhere
    for word in right:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & everywhere
    return len(left) - row.bit_count()
