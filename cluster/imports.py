"""What imports have the garbage collector do, which finds nothing among what they make."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Keeps Python from looking for garbage while the block imports, and from looking at what it made ever after.

    torch, transformers, Ray and what comes with them make more than half a million objects, which stay until the
    process ends. Collecting meanwhile takes a fifth of the time that importing them takes, each full collection later a
    third of a second in which a process does nothing else, and what is done at its end several times that.
    """
    collecting, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else it would keep whatever else there is
            gc.freeze()
        if collecting:
            gc.enable()
