"""What headrace raises when a person can do something about it.

    HeadraceError
    ├── UserError (ValueError)      the recipe, the data or the arguments are at fault: exit 2
    │   ├── RecipeError             every problem found in one recipe
    │   ├── FewRowsError            the rows lack what further ones may have
    │   └── LongPromptError         a prompt is longer than its model reads
    └── RunError (RuntimeError)     anything else with a plain cause (disk, store, cluster): exit 1
        └── DiskError               nothing can be written until somebody makes room

An exception outside this tree is a defect of headrace and shows its traceback.
"""


class HeadraceError(Exception):
    """A failure whose message says what happened, where, and what to do."""

    exit_code = 1


class UserError(HeadraceError, ValueError):
    """The recipe, the data or the arguments are at fault."""

    exit_code = 2


class RecipeError(UserError):
    """All problems of one recipe; ``problems`` holds one finished line for each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class FewRowsError(UserError):
    """The rows lack what others may have, a second label, say: of a sample this tells nothing of the whole."""


class LongPromptError(UserError):
    """Of a prompt the model would read the end alone, and answer another question than was asked."""


class RunError(HeadraceError, RuntimeError):
    """The machine, the store or the cluster would not do what was asked."""


class DiskError(RunError):
    """The disk is full or cannot be written: no fault of what was tried, which may go on once there is room."""


def reason(told: Exception | str) -> str:
    """The last line of what Ray tells of an error, which says why; above it stands where."""
    lines = [line.strip() for line in str(told).splitlines() if line.strip()]
    return lines[-1] if lines else type(told).__name__ if isinstance(told, Exception) else "it does not say why"
