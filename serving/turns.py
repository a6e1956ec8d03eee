"""Whose turn it is: who asks a lot delays nobody else."""


class Turns:
    """Gives those who ask turns by which they are served. Guarded by its user's lock.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996) with items of one size: whoever has fewer items waiting has
    the earlier turns. Where all have one owner, turns are the order in which items came.

    Attributes:
        present: of the item that was served last.
    """

    def __init__(self) -> None:
        self.present = 0
        self._last: dict[str | None, int] = {}  # of each owner who waits

    @property
    def owners(self) -> int:
        """How many wait."""
        return len(self._last)

    def next(self, owner: str | None) -> int:
        """The turn of an owner's next item: one after the owner's last, and none that has been."""
        return max(self.present, self._last.get(owner, 0)) + 1

    def take(self, owner: str | None, items: int) -> int:
        """Gives an owner's next items a turn each; returns the first."""
        first = self.next(owner)
        self._last[owner] = first + items - 1
        return first

    def waiting(self, owner: str | None) -> int:
        """How many items of an owner wait, those counted whose turn came and who were not there any more."""
        return self.next(owner) - self.present - 1

    def part(self, room: int, owner: str | None) -> int:
        """What is an owner's of a room that all who wait have equal parts of."""
        return room // len(self._last.keys() | {owner})

    def advance(self, turn: int) -> None:
        """It was a turn; owners whose last one has been need not be remembered."""
        self.present = max(self.present, turn)
        self._last = {owner: last for owner, last in self._last.items() if last > self.present}
