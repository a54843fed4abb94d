"""Which classes of an image get boxes: by name, by word, or by a classifier."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.detection.named_classes import ClassNamer
from resnet_pipeline.detection.trained_localiser import TrainedLocaliser
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import checked
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.models import Classifier, Normalize, build_model
from tests.unit.detection.conftest import picture
from tests.unit.detection.test_localisation import config, localiser

CLASSES, WORDS = ("n1", "n2", "n3"), ("crane", "crane", "dog")
IMAGES = checked([picture(number)[1] for number in range(2)])


def trained() -> TrainedLocaliser:
    return TrainedLocaliser(
        localiser=localiser(classes=3), config=config(), classes=CLASSES, class_words=WORDS, weights_sha256="0" * 64
    )


def member(classes: tuple[str, ...] = CLASSES) -> Member:
    network = build_model("cifar-resnet8", num_classes=3)
    torch.nn.init.zeros_(network.fc.weight)
    network.fc.bias.data = torch.tensor([0.0, 2.0, 1.0])
    return Member(
        name="a", classifier=Classifier(Normalize(torch.zeros(3)), network).eval(), views=config().views,
        weights_sha256="1" * 64, network="cifar-resnet8", classes=classes, class_words=WORDS,
    )  # fmt: skip


def test_classes_are_named_by_name_or_by_a_word_that_only_one_has():
    namer = ClassNamer(trained(), [])
    assert namer.classes(IMAGES, [["n2", "dog"], ["n1"]]) == [[1, 2], [0]]
    with pytest.raises(UserError, match="'crane' is no class of the localiser"):
        namer.classes(IMAGES, [["crane"], ["n1"]])
    with pytest.raises(UserError, match="no class of image 2 is named, and there is no classifier"):
        namer.classes(IMAGES, [["n1"], []])


def test_a_classifier_names_its_likeliest_where_nothing_is_named():
    namer = ClassNamer(trained(), [member()])
    assert namer.classes(IMAGES, [None, ["n1"]], top=2) == [[1, 2], [0]]
    with pytest.raises(UserError, match="top must be at least 1, not 0"):
        namer.classes(IMAGES, [None, None], top=0)
    with pytest.raises(UserError, match="a has other classes than the localiser"):
        ClassNamer(trained(), [member(("n1", "n3", "n2"))])


def test_images_with_unequal_numbers_of_classes_get_a_box_for_each():
    found = trained().find(IMAGES, [[2], [0, 1, 2]])
    assert [each.label.tolist() for each in found] == [[2], [0, 1, 2]]
    assert [each.box.shape for each in found] == [(1, 4), (3, 4)]
    assert all(((each.score > 0) & (each.score <= 1)).all() for each in found)
