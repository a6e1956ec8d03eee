"""Whether a recipe has brought a model before: told in a moment, before anything heavy is imported."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from cluster.storage import home, read_json

ASIDE = ".refused-"
"""What the name of a bundle's folder goes on with where it could not be opened and was moved aside."""


def finished_before(name: str, public: Mapping[str, Any]) -> bool:
    """Whether a bundle in the home was made by just this recipe. Its data may have changed since.

    Args:
        public: the recipe as it may be stored (``Document.public``).
    """
    stored = json.loads(json.dumps(public, default=str))
    for manifest in (home() / "models" / name).glob("*/bundle.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whoever opens the bundle tells of it
            if ASIDE not in manifest.parent.name and read_json(manifest)["recipe"] == stored:
                return True
    return False
