from __future__ import annotations

import urllib.error

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.published_weights import load_reference


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return torch.hub's folder of files, empty; nothing can be downloaded."""

    def fail(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_torchvision_s_weights_come_from_its_cache_with_its_preprocessing(theirs, cache):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.save(theirs.state_dict(), cache / weights.url.rpartition("/")[2])
    member = load_reference("torchvision:resnet18")
    assert (member.views.crop, member.views.resize, member.network) == (224, 256, "resnet18")
    image = torch.randint(0, 256, (3, 230, 250), dtype=torch.uint8)
    preset = weights.transforms()
    with torch.inference_mode():
        expected = theirs(preset(image)[None])
        resized = v2.Resize(256, antialias=True)(image)
        found = member.classifier(v2.CenterCrop(224)(resized).permute(1, 2, 0)[None])
    # the two resizes of uint8 round differently by a level here and there
    assert (found - expected).abs().max() < 0.01 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["torchvision:resnet18.IMAGENET1K_V1", "timm:resnet18.a1_in1k"])
def test_a_given_file_is_taken_with_the_library_s_preprocessing(theirs, cache, tmp_path, reference):
    torch.save(theirs.state_dict(), tmp_path / "given.pth")
    member = load_reference(f"{reference}={tmp_path / 'given.pth'}")
    assert member.views.crop == 224 and member.views.resize == (256 if "torchvision" in reference else 235)
    assert torch.equal(member.classifier.network.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])
    with pytest.raises(UserError, match=r"none\.pth"):
        load_reference(f"{reference}={tmp_path / 'none.pth'}")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("torchvision:resnet18", "not in the local cache and can't be downloaded .*no route to host"),
        ("timm:resnet18.a1_in1k", "not in the local cache and can't be downloaded"),
        ("torchvision:resnet18.IMAGENET1K_V9", "IMAGENET1K_V1"),
        ("timm:resnet18.a1_in2k", "'a1_in1k'"),
        ("torchvision:vgg16", "none of the paper's networks"),
        ("timm:resnet26", "none of the paper's networks"),
    ],
)
def test_what_is_not_there_is_said(cache, reference, said):
    with pytest.raises(UserError, match=said) as error:
        load_reference(reference)
    assert "\n" not in str(error.value)
