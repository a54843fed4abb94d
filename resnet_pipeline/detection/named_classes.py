"""Which classes of an image get boxes: those that are named, or the likeliest of a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from resnet_pipeline.detection.trained_localiser import BoxGiver
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.predictor import Image, Predictor
from resnet_pipeline.evaluation.trained_model import Member


class ClassNamer:
    """Names a localiser's classes for images; ``members`` are its classifier, or none.

    Raises UserError if the classifier's classes are others.

    Example: ``ClassNamer(load_localiser(run.path), []).classes(images, [["n01440764"]] * len(images))``
    """

    def __init__(self, localiser: BoxGiver, members: Sequence[Member]) -> None:
        for member in members:
            if member.classes != localiser.classes:
                raise UserError(f"{member.name} has other classes than the localiser ({localiser.config.recipe})")
        self._classifier = Predictor(members, local_device()) if members else None
        self._places = {name: place for place, name in enumerate(localiser.classes)}
        words = Counter(localiser.class_words)
        for place, word in enumerate(localiser.class_words):
            if words[word] == 1:  # ImageNet has two cranes
                self._places.setdefault(word, place)

    def classes(
        self, images: Sequence[Image], named: Sequence[Sequence[str] | None], *, top: int = 5
    ) -> list[list[int]]:
        """Return the classes of each image that get a box: those that are ``named``, or else the ``top`` likeliest.

        Raises UserError for a name that is no class, and if nothing is named and there is no classifier.
        """
        if top < 1:
            raise UserError(f"the parameter top must be at least 1, not {top}")
        found = [[self._place(name) for name in dict.fromkeys(names or ())] for names in named]
        rows = [row for row, own in enumerate(found) if not own]
        if rows and self._classifier is None:
            raise UserError(
                f"no class of image {rows[0] + 1} is named, and there is no classifier that would name some"
            )
        if rows and self._classifier is not None:
            best = self._classifier.predict([images[row] for row in rows], top=top).classes
            for row, own in zip(rows, best.tolist(), strict=True):
                found[row] = own
        return found

    def _place(self, name: str) -> int:
        if name not in self._places:
            raise UserError(f"{name!r} is no class of the localiser{did_you_mean(name, list(self._places))}")
        return self._places[name]
