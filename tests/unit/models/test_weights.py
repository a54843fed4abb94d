from __future__ import annotations

import argparse
import logging
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import (
    build_for_weights,
    load_weights,
    read_metadata,
    save_weights,
    weights_sha256,
    write_safetensors,
)


def test_safetensors_round_trip_with_the_mean(tmp_path):
    first = Classifier(Normalize(torch.rand(8, 8, 3)), build_model("cifar-resnet8"))
    second = Classifier(Normalize(torch.zeros(8, 8, 3)), build_model("cifar-resnet8"))
    save_weights(first, tmp_path / "w.safetensors", {"recipe": "x"})
    load_weights(second, tmp_path / "w.safetensors")
    assert weights_sha256(first) == weights_sha256(second)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [torchvision.models.resnet50, timm.models.resnet.resnet50])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
def test_published_weights_build_the_network_that_they_are_of(tmp_path, suffix, make):
    torch.manual_seed(0)
    theirs, path = make(num_classes=7).eval(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save({"model": theirs.state_dict(), "epoch": 3} if suffix == ".pt" else theirs.state_dict(), path)
    ours = build_for_weights("resnet50", path).eval()
    assert weights_sha256(ours) == weights_sha256(theirs)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_projections_in_the_file_mean_option_b(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "b.pth")
    assert build_for_weights("resnet18", tmp_path / "b.pth").architecture.shortcut == "B"
    torch.save(build_model("resnet18").state_dict(), tmp_path / "a.pth")
    assert build_for_weights("resnet18", tmp_path / "a.pth").architecture.shortcut == "A"


def public_cifar_forward(state, images):
    """Compute a public CIFAR-10 ResNet from its state dict alone: option A with zeros on both sides of x."""

    def norm(x, name):
        return F.batch_norm(x, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    x = norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            around = x
            if stride == 2:
                quarter = x.shape[1] // 2
                around = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            out = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            x = (norm(F.conv2d(out, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2") + around).relu()
    return F.linear(x.mean(dim=(2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("new_format", [True, False])
def test_public_cifar_weights_compute_here_what_they_do_there(tmp_path, prefix, new_format):
    torch.manual_seed(0)
    state = {}
    for key, value in build_model("cifar-resnet20").state_dict().items():
        if "num_batches" not in key:  # saved before PyTorch 0.4.1
            state[key.replace("fc.", "linear.")] = torch.rand_like(value) + 0.5 if "bn" in key else value
    saved = {"state_dict": {prefix + key: value for key, value in state.items()}, "best_prec1": 91.7}
    torch.save(saved, tmp_path / "w.th", _use_new_zipfile_serialization=new_format)
    network = build_model("cifar-resnet20")
    load_weights(network, tmp_path / "w.th")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), public_cifar_forward(state, images), rtol=1e-5, atol=1e-4)


def test_projections_of_public_cifar_networks_load(tmp_path):
    network = build_model("cifar-resnet20", shortcut="B")
    save_file(
        {k.replace("downsample", "shortcut"): v for k, v in network.state_dict().items()}, tmp_path / "w.safetensors"
    )
    built = build_for_weights("cifar-resnet20", tmp_path / "w.safetensors")
    assert built.architecture.shortcut == "B" and weights_sha256(built) == weights_sha256(network)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"shortcut": "C", "stride": "v1.5"}, {"pooling": "caffe"}, {}])
def test_a_file_of_this_program_says_which_network_it_is_of(tmp_path, options):
    network = build_model("resnet50", num_classes=3, **options)
    save_weights(Classifier(Normalize(torch.zeros(3)), network), tmp_path / "w.safetensors", {"recipe": "x"})
    assert read_metadata(tmp_path / "w.safetensors")["recipe"] == "x"
    built = build_for_weights("resnet50", tmp_path / "w.safetensors")
    assert built.architecture == network.architecture
    assert weights_sha256(built) == weights_sha256(network)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "loaded", "said"),
    [
        (("resnet50", {}), ("resnet50", {"stride": "v1.5"}), "build it with stride='v1'"),
        (("resnet50", {"pooling": "caffe"}), ("resnet50", {}), "build it with pooling='caffe'"),
        (("plain18", {}), ("resnet18", {}), "shortcut none, this one has A"),
        (("cifar-resnet8", {}), ("cifar-plain8", {}), "shortcut A, this one has none"),
    ],
)
def test_equal_tensors_of_a_network_that_computes_otherwise_are_refused(tmp_path, saved, loaded, said):
    save_weights(build_model(saved[0], **saved[1]), tmp_path / "w.safetensors", {})
    with pytest.raises(UserError, match=said):
        load_weights(build_model(loaded[0], **loaded[1]), tmp_path / "w.safetensors")


def test_weights_go_into_a_classifier_and_leave_its_mean(tmp_path):
    network = build_model("cifar-resnet8")
    save_weights(network, tmp_path / "w.safetensors", {})
    classifier = Classifier(Normalize(torch.ones(3)), build_model("cifar-resnet8"))
    load_weights(classifier, tmp_path / "w.safetensors")
    assert weights_sha256(classifier.network) == weights_sha256(network)
    assert classifier.normalize.mean.tolist() == [1, 1, 1]


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


@pytest.mark.parametrize("new_format", [True, False, None])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, new_format):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "w.pth"
    state = {**build_model("cifar-resnet8").state_dict(), "conv1.weight": Hostile()}
    if new_format is None:
        path.write_bytes(pickle.dumps({"conv1.weight": Hostile()}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=new_format)
    network = build_model("cifar-resnet8")
    before = weights_sha256(network)
    for load in (lambda: load_weights(network, path), lambda: build_for_weights("cifar-resnet8", path)):
        with pytest.raises(UserError, match=r"w\.pth") as error:
            load()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()
    assert weights_sha256(network) == before


def test_unreadable_files_are_named(tmp_path):
    good = tmp_path / "good.safetensors"
    save_weights(build_model("cifar-resnet8"), good, {})
    (tmp_path / "w.safetensors").write_bytes(b"no")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-5])
    (tmp_path / "w.bin").write_bytes(b"no")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "html.pth").write_bytes(b"<!DOCTYPE html>\n<html>not found</html>\n" * 20)
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"conv1.weight": [1.0]}, tmp_path / "lists.pt")
    names = ["w.safetensors", "cut.safetensors", "w.bin", "empty.pth", "html.pth", "cut.pth", "list.pt", "lists.pt"]
    for name in [*names, "missing.pth"]:
        with pytest.raises(UserError, match=name) as error:
            load_weights(build_model("cifar-resnet8"), tmp_path / name)
        assert "\n" not in str(error.value)


def checkpoint_of(state, kind):
    """Return what training scripts write around a state dict."""
    namespace = argparse.Namespace(lr=0.1, output=Path("out"))
    prefixed = {f"{kind}.{name}": tensor for name, tensor in state.items()}
    if kind == "torchvision":
        averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": t + 1 for name, t in state.items()}}
        return {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": namespace, "model_ema": averaged}
    if kind == "timm":
        averaged = {name: t + 1 for name, t in state.items()}
        return {"state_dict": state, "state_dict_ema": averaged, "args": namespace, "metric": np.float64(71.5)}
    if kind == "lightning":
        hyper = OrderedDict(lr=0.1)
        inside = {f"model.{name}": tensor for name, tensor in state.items()}
        return {"state_dict": inside, "hyper_parameters": hyper, "pytorch-lightning_version": "2.0", "callbacks": {}}
    if kind in ("net", "model_state_dict"):
        return {kind: state, "acc": 92.1, "epoch": 199}
    return prefixed


@pytest.mark.parametrize("file", ["model_best.pth.tar", "last.ckpt", "w.pth"])
@pytest.mark.parametrize(
    "kind",
    ["torchvision", "timm", "lightning", "net", "model_state_dict", "_orig_mod", "model", "backbone", "module.module",
     "module._orig_mod.model", "_orig_mod.module.backbone"],
)  # fmt: skip
def test_checkpoints_as_training_scripts_write_them(tmp_path, kind, file):
    network, again = build_model("cifar-resnet8"), build_model("cifar-resnet8")
    torch.save(checkpoint_of(network.state_dict(), kind), tmp_path / file)
    load_weights(again, tmp_path / file)
    assert weights_sha256(again) == weights_sha256(network)


def test_lightning_s_own_dictionary_is_read(tmp_path, monkeypatch):
    module = types.ModuleType("lightning.fabric.utilities.data")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for name in ("lightning", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    network, again = build_model("cifar-resnet8"), build_model("cifar-resnet8")
    saved = {"state_dict": network.state_dict(), "hyper_parameters": module.AttributeDict(lr=0.1, layers=[1, 2])}
    torch.save(saved, tmp_path / "last.ckpt")
    load_weights(again, tmp_path / "last.ckpt")
    assert weights_sha256(again) == weights_sha256(network)


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_averaged_weights_are_taken_if_asked_for_and_what_was_taken_is_said(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline")
    network, again, path = build_model("cifar-resnet8"), build_model("cifar-resnet8"), tmp_path / "w.pth"
    torch.save(checkpoint_of(network.state_dict(), kind), path)
    load_weights(again, path)
    assert weights_sha256(again) == weights_sha256(network) and "--ema" in caplog.records[-1].getMessage()
    load_weights(again, path, ema=True)
    assert torch.equal(again.conv1.weight, network.conv1.weight + 1)
    assert "averaged weights (EMA) under" in caplog.records[-1].getMessage()


def test_averaged_weights_that_are_not_there_are_refused(tmp_path):
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "w.pth")
    save_weights(build_model("cifar-resnet8"), tmp_path / "w.safetensors", {})
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(UserError, match=rf"{name} holds no averaged weights"):
            build_for_weights("cifar-resnet8", tmp_path / name, ema=True)


def test_two_networks_in_one_state_dict_are_refused(tmp_path):
    state = build_model("cifar-resnet8").state_dict()
    torch.save({**state, **{f"model.{name}": t for name, t in state.items()}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: it holds two networks: both conv1.weight and model.conv1.weight"):
        load_weights(build_model("cifar-resnet8"), tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.to("meta"), "conv1.weight is no dense tensor"),
        (lambda tensor: tensor.to_sparse() if tensor.ndim else tensor, "conv1.weight is no dense tensor"),
        (lambda tensor: -1 - tensor.abs() if tensor.is_floating_point() else tensor, "running_var holds a negative"),
    ],
    ids=["meta", "sparse", "negative"],
)
def test_tensors_that_no_network_can_compute_with_are_refused(tmp_path, change, said):
    state = build_model("cifar-resnet8").state_dict()
    torch.save({name: change(tensor) for name, tensor in state.items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=said):
        build_for_weights("cifar-resnet8", tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_programs_and_other_archives_are_named_without_pytorch_s_advice(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    for file, said in (("program.pth", "it is a TorchScript program"), ("other.pth", "it is damaged, or was not")):
        with pytest.raises(UserError, match=said) as error:
            build_for_weights("cifar-resnet8", tmp_path / file)
        assert "weights_only" not in str(error.value) and "PyTorch" not in str(error.value)


def test_of_several_state_dicts_it_is_said_which_was_taken(tmp_path, caplog):
    state = build_model("cifar-resnet8").state_dict()
    torch.save({"model": state, "state_dict": state, "net": {"depth": 8}}, tmp_path / "w.pth")
    with caplog.at_level("INFO", logger="resnet_pipeline"):
        build_for_weights("cifar-resnet8", tmp_path / "w.pth")
    assert "taken are the weights under 'state_dict'; it has others, too, under model" in caplog.text


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_with_nan_are_refused_with_the_tensor_s_name(tmp_path, suffix):
    network = build_model("cifar-resnet8")
    with torch.no_grad():
        network.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    if suffix == "pth":
        torch.save(network.state_dict(), tmp_path / "w.pth")
    else:
        save_weights(network, tmp_path / "w.safetensors", {})
    with pytest.raises(UserError, match=r"layer2\.0\.conv1\.weight holds NaN"):
        load_weights(build_model("cifar-resnet8"), tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "ckpt", "caffemodel"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n", "web page"),
    ],
)
def test_what_a_file_is_instead_of_weights_is_said(tmp_path, suffix, content, said):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.{suffix} is .*{said.removeprefix('is ')}"):
        load_weights(build_model("cifar-resnet8"), tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_cut_file_is_said_to_be_cut(tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(build_model("cifar-resnet8").state_dict(), path)
    else:
        save_weights(build_model("cifar-resnet8"), path, {})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"w\.{suffix} is cut"):
        load_weights(build_model("cifar-resnet8"), path)


def test_pytorch_s_advice_to_load_anything_is_not_passed_on(tmp_path):
    torch.save({"state_dict": {}, "transform": Fraction(1, 2)}, tmp_path / "object.pth")
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:3000])
    (tmp_path / "bytes.pth").write_bytes(bytes(range(256)) * 20)
    for name in ("object.pth", "cut.pth", "bytes.pth"):
        with pytest.raises(UserError, match=name) as error:
            load_weights(build_model("cifar-resnet8"), tmp_path / name)
        said = str(error.value)
        assert not any(word in said for word in ("weights_only", "trust", "\x1b", "\n", "add_safe_globals")), said
    with pytest.raises(UserError, match=r"an object of fractions\.Fraction"):
        load_weights(build_model("cifar-resnet8"), tmp_path / "object.pth")


def flip_bits(path, count=4096):
    """Flip the lowest bit of some bytes amid a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + count] = bytes(byte ^ 1 for byte in content[middle : middle + count])
    path.write_bytes(content)


@pytest.mark.parametrize("written_by", ["this version", "one before", "an export"])
def test_weights_that_are_not_as_they_were_written_are_refused(tmp_path, written_by):
    network, path = build_model("cifar-resnet8"), tmp_path / "w.safetensors"
    if written_by == "an export":
        write_safetensors(network.state_dict(), path, {"weights_sha256": "0" * 64})
    elif written_by == "this version":
        save_weights(network, path, {})
    else:
        about = {"run": "x", "weights_sha256": weights_sha256(network)}
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, path, metadata=about)
    load_weights(network, path)
    flip_bits(path, 1)
    before = weights_sha256(network)
    for load in (lambda: load_weights(network, path), lambda: build_for_weights("cifar-resnet8", path)):
        with pytest.raises(UserError, match=r"w\.safetensors is damaged: .*SHA-256"):
            load()
    assert weights_sha256(network) == before


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("resnet_pipeline.models.weights.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build_model("cifar-resnet8"), tmp_path / "w.safetensors", {})
    assert not list(tmp_path.iterdir())
