"""Which versions of one model answer, and with which shares, while aliases move and versions are taken back."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster.errors import HeadraceError, UserError
from serving.recipe import Hosted
from serving.rollout import Finding
from training import registry
from training.bundle import open_bundle
from training.registry import ModelVersion

TRIAL_SECONDS = 86_400.0  # after which what took over is no longer compared with what was there a day before
REMEMBERED = 10  # versions that were taken back, of each model

logger = logging.getLogger(__name__)


class BundleError(UserError):
    """A version's bundle cannot be opened."""

    def __init__(self, version: int | None, why: str) -> None:
        super().__init__(why)
        self.version = version


@dataclass
class Place:
    """An alias or a fixed version, and the version that stands there.

    Attributes:
        reference: as :func:`training.registry.resolve` takes it.
        share: of 100.
        found: the version that answers.
        before: the one that answered until the alias moved; None where it has not moved.
        moved: when it did, on the monotonic clock.
        refused: versions taken back, or not taken; none of them is taken until the alias has moved to another.
    """

    reference: str
    share: int
    found: ModelVersion
    before: ModelVersion | None = None
    moved: float = 0.0
    refused: set[int | None] = field(default_factory=set)

    @property
    def withdrawn(self) -> bool:
        """Whether the version was taken back and there is none to put in its place."""
        return self.found.version in self.refused

    @property
    def judged_by(self) -> int | None:
        """The version that the present one took over from, while it is on trial."""
        on_trial = self.before is not None and time.monotonic() - self.moved < TRIAL_SECONDS
        return self.before.version if self.before and on_trial else None

    def follow(self) -> None:
        """Takes the version that the alias points to, if its bundle is whole.

        Raises:
            BundleError: it is not, and nothing has changed but that it is refused from here on.
            UserError, RunError: it cannot be told, and nothing has changed.
            OSError: the bundle cannot be read, and nothing has changed.
        """
        if self.found.alias is None:
            return
        found = registry.resolve(self.reference)
        if found.version in self.refused:
            return
        if found.version != self.found.version:
            try:
                open_bundle(found.bundle)
            except UserError as error:
                self.refused.add(found.version)
                raise BundleError(found.version, str(error)) from error
            self.before, self.moved = None if self.withdrawn else self.found, time.monotonic()
        self.found, self.refused = found, set()

    def take_back(self) -> None:
        """Puts the version before back; where there is none, this one is withdrawn."""
        self.refused.add(self.found.version)
        if self.before is not None:
            self.found, self.before = self.before, None


class Routing:
    """The places of one model.

    Raises:
        UserError: there is no such version, or its bundle cannot be opened; or traffic is to be split where one version
            is named.
    """

    def __init__(self, hosted: Hosted) -> None:
        found = registry.resolve(hosted.name)
        self.name = found.name
        if hosted.traffic and hosted.name != found.name:
            raise UserError(
                f"'{hosted.name}' names one version, and traffic would split among {', '.join(hosted.traffic)}; "
                f"serve {found.name}, or say serve.traffic=null"
            )
        places = [_place(found.name, version, share) for version, share in (hosted.traffic or {}).items()]
        self.places = places or [Place(hosted.name, 100, found)]
        self.shadow = _place(found.name, hosted.shadow, 0) if hosted.shadow else None
        self.taken_back: list[dict[str, Any]] = []
        for place in self._all():
            open_bundle(place.found.bundle)  # says now, in plain words, what a replica would say later in its log

    def follow(self) -> None:
        """Looks where the aliases point. A version whose bundle cannot be opened is told of, and not taken.

        No replica would load it, and none that starts could do without it: it must not get into what they read.

        Raises:
            UserError, RunError, OSError: it cannot be told of one of them; those before it have been followed.
        """
        for place in self._all():
            try:
                place.follow()
            except BundleError as error:
                self._tell({"version": str(error.version), "reason": "bundle"})
                logger.error(
                    "%s: version %s is not taken: %s; what was served goes on. Promote another (`headrace models "
                    "rollback %s`), and this one again once its bundle is whole",
                    *(self.name, error.version, error, self.name),
                )

    def entry(self) -> dict[str, Any]:
        """What replicas read. Places of one version are one route, and a withdrawn one's share is the leading one's."""
        leading = max((place for place in self.places if not place.withdrawn), key=lambda place: place.share)
        shares: Counter[int | None] = Counter()
        for place in self.places:
            shares[(leading if place.withdrawn else place).found.version] += place.share
        before = {place.found.version: place.judged_by for place in self.places if place.judged_by}
        routes = [
            {**_version(found), "share": shares[found.version], "before": before.get(found.version)}
            for found in {place.found.version: place.found for place in self.places}.values()
        ]
        # A shadow that was promoted would be compared with itself.
        compared = self.shadow and self.shadow.found.version != leading.found.version
        shadow = _version(self.shadow.found) if self.shadow and compared else None
        return {"routes": routes, "shadow": shadow, "taken_back": self.taken_back}

    def take_back(self, finding: Finding) -> bool:
        """Acts on what a replica has found; False where that version does not answer any more, or nothing else would.

        What an alias moved to gives way to the version before, in the registry too where it was in production; what was
        there from the start keeps no share.
        """
        standing = [place for place in self.places if not place.withdrawn]
        guilty = [place for place in standing if str(place.found.version) == finding.version]
        if not guilty or (guilty == standing and not any(place.before for place in guilty)):
            return False
        for place in guilty:
            if place.before and place.found.alias == registry.PRODUCTION:
                self._roll_back(int(finding.version))
            place.take_back()
        self._tell({name: value for name, value in asdict(finding).items() if name != "model"})
        logger.warning("%s: version %s is taken back: %s", self.name, finding.version, finding)
        return True

    def _tell(self, of: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.taken_back = [*self.taken_back, {**of, "at": at}][-REMEMBERED:]

    def _all(self) -> Iterator[Place]:
        yield from self.places
        if self.shadow:
            yield self.shadow

    def _roll_back(self, version: int) -> None:
        """What cannot be written is said, and does not keep the version answering."""
        try:
            registry.rollback(self.name, version)
        except HeadraceError as error:
            logger.warning("%s: version %d stays in production in the registry: %s", self.name, version, error)


def _place(name: str, version: str, share: int) -> Place:
    reference = f"{name}/{version}" if version.isdecimal() else f"{name}@{version}"
    return Place(reference, share, registry.resolve(reference))


def _version(found: ModelVersion) -> dict[str, Any]:
    return {"version": found.version, "bundle": str(found.bundle)}
