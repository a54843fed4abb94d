from __future__ import annotations

import os
import pickle

import pytest
import torch
import torchvision

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import load_weights, save_weights, weights_sha256


def test_safetensors_round_trip_with_the_mean(tmp_path):
    first = Classifier(Normalize(torch.rand(8, 8, 3)), build_model("cifar-resnet8"))
    second = Classifier(Normalize(torch.zeros(8, 8, 3)), build_model("cifar-resnet8"))
    save_weights(first, tmp_path / "w.safetensors", {"recipe": "x"})
    load_weights(second, tmp_path / "w.safetensors")
    assert weights_sha256(first) == weights_sha256(second)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
def test_torchvision_s_state_dict_loads(tmp_path, suffix):
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), tmp_path / f"w{suffix}")
    ours = build_model("resnet18", shortcut="B", stride="v1.5")
    load_weights(ours, tmp_path / f"w{suffix}")
    assert weights_sha256(ours) == weights_sha256(theirs)


def test_public_cifar_names_load(tmp_path):
    network = build_model("cifar-resnet20")
    state = {
        f"module.{k.replace('fc.', 'linear.')}": v for k, v in network.state_dict().items() if "num_batches" not in k
    }
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "w.th")
    other = build_model("cifar-resnet20")
    load_weights(other, tmp_path / "w.th")
    assert torch.equal(other.fc.weight, network.fc.weight)
    assert torch.equal(other.layer3[2].bn2.weight, network.layer3[2].bn2.weight)


def test_the_hash_is_of_the_values_in_name_order():
    import hashlib

    state = {"b": torch.tensor([3.0]), "a": torch.tensor([[1.0, 2.0]])}
    assert weights_sha256(state) == hashlib.sha256(torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes()).hexdigest()
    assert weights_sha256(state) != weights_sha256({**state, "b": torch.tensor([4.0])})


def test_a_misfit_names_the_first_tensors_and_what_was_expected(tmp_path):
    state = build_model("cifar-resnet8").state_dict()
    state["fc.weight"] = torch.zeros(7, 64)
    del state["conv1.weight"]
    state["other"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        load_weights(build_model("cifar-resnet8"), tmp_path / "w.pth")
    for part in ("conv1.weight is missing", "other is not the network's", "[7, 64], expected [10, 64]"):
        assert part in str(error.value)


def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "w.pth").write_bytes(pickle.dumps({"conv1.weight": Hostile()}, protocol=2))
    torch.save({"conv1.weight": Hostile()}, tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(UserError, match=name):
            load_weights(build_model("cifar-resnet8"), tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    (tmp_path / "w.bin").write_bytes(b"no")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("w.safetensors", "w.bin", "missing.pth", "list.pt"):
        with pytest.raises(UserError, match=name):
            load_weights(build_model("cifar-resnet8"), tmp_path / name)
