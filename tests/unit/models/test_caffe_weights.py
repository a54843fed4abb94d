from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import build_model
from resnet_pipeline.models.blocks import Bottleneck
from resnet_pipeline.models.resnet import Architecture, ResNet
from resnet_pipeline.models.weights import build_for_weights, load_weights
from tests.unit.models import caffe_writer as caffe

STAGES = [(2, 4), (3, 8), (2, 4), (1, 8)]


class CaffeNet:
    """The authors' network with random blobs, computed as Caffe does, layer by layer, in float64."""

    def __init__(self, *, names, bias, factor, eps):
        self.rng, self.blobs, self.names, self.eps, self.factor = np.random.default_rng(0), {}, names, eps, factor
        self.add("conv1", 3, STAGES[0][1], 7, bias=bias)
        channels = STAGES[0][1]
        for stage, (count, width) in enumerate(STAGES, start=2):
            for number in range(count):
                block = self.block(stage, number)
                if number == 0:
                    self.add(f"{block}_branch1", channels, 4 * width, 1)
                self.add(f"{block}_branch2a", channels, width, 1)
                self.add(f"{block}_branch2b", width, width, 3)
                self.add(f"{block}_branch2c", width, 4 * width, 1)
                channels = 4 * width
        self.blobs["fc1000"] = [self.rng.normal(size=(10, channels)), self.rng.normal(size=10)]
        # as precise as the file keeps them
        self.blobs = {k: [b.astype(np.float32).astype(np.float64) for b in v] for k, v in self.blobs.items()}

    def block(self, stage, number):
        if self.names == "letters" or number == 0 or stage in (2, 5):  # ResNet-50; in ResNet-101: a, b1, b2, …
            return f"res{stage}{'abcdefgh'[number]}"
        return f"res{stage}b{number}"

    def add(self, name, inputs, outputs, kernel, bias=False):
        scale = (2 / (inputs * kernel**2)) ** 0.5
        convolution = [self.rng.normal(size=(outputs, inputs, kernel, kernel)) * scale]
        self.blobs[name] = convolution + ([self.rng.normal(size=outputs)] if bias else [])
        bn, affine = self.batch_norm(name)
        statistics = self.rng.normal(size=outputs) * 0.1, self.rng.uniform(0.5, 2, size=outputs)
        self.blobs[bn] = [statistics[0] * self.factor, statistics[1] * self.factor, np.array([self.factor])]
        self.blobs[affine] = [self.rng.uniform(0.5, 1.5, size=outputs), self.rng.normal(size=outputs) * 0.1]

    def batch_norm(self, name):
        short = name.removeprefix("res")
        return (f"bn_{name}", f"scale_{name}") if name == "conv1" else (f"bn{short}", f"scale{short}")

    def write(self, path, form="shape"):
        kinds = {"bn": "BatchNorm", "scale": "Scale", "fc": "InnerProduct"}
        layers = [
            caffe.layer(name, next((k for p, k in kinds.items() if name.startswith(p)), "Convolution"), blobs,
                        eps=self.eps, form=form)
            for name, blobs in self.blobs.items()
        ]  # fmt: skip
        path.write_bytes(caffe.net(*layers))

    def run(self, name, x, stride=1, padding=0):
        weight, *bias = (torch.from_numpy(b) for b in self.blobs[name])
        x = F.conv2d(x, weight, *bias, stride=stride, padding=padding)
        mean, variance, factor = (torch.from_numpy(b) for b in self.blobs[self.batch_norm(name)[0]])
        gamma, beta = (torch.from_numpy(b)[:, None, None] for b in self.blobs[self.batch_norm(name)[1]])
        mean, variance = mean[:, None, None] / factor, variance[:, None, None] / factor
        return (x - mean) / (variance + (self.eps or 1e-5)).sqrt() * gamma + beta

    def __call__(self, bgr):
        """Return the inputs of the softmax for images [N, 3, H, W] in Caffe's order of channels."""
        x = F.max_pool2d(self.run("conv1", bgr, 2, 3).relu(), 3, 2, ceil_mode=True)
        for stage, (count, _) in enumerate(STAGES, start=2):
            for number in range(count):
                name, stride = self.block(stage, number), 2 if stage > 2 and number == 0 else 1
                around = self.run(f"{name}_branch1", x, stride) if number == 0 else x
                out = self.run(f"{name}_branch2a", x, stride).relu()
                out = self.run(f"{name}_branch2b", out, 1, 1).relu()
                x = (self.run(f"{name}_branch2c", out) + around).relu()
        weight, bias = (torch.from_numpy(b) for b in self.blobs["fc1000"])
        return x.mean(dim=(2, 3)) @ weight.T + bias


def ours(**changes):
    architecture = {"stem": "imagenet", "block": Bottleneck, "stages": STAGES, "shortcut": "B", "pooling": "caffe"}
    return ResNet(Architecture(**(architecture | changes)), num_classes=10).eval()


@pytest.mark.parametrize(
    ("names", "bias", "factor", "eps", "form"),
    [
        ("letters", True, 999.98, None, "shape"),  # ResNet-50: its conv1 has a bias
        ("numbers", False, 1.0, None, "legacy"),  # ResNet-101 and ResNet-152
        ("numbers", True, 0.5, 1e-3, "shape"),
    ],
)
def test_a_caffemodel_computes_here_what_it_does_in_caffe(tmp_path, names, bias, factor, eps, form):
    theirs = CaffeNet(names=names, bias=bias, factor=factor, eps=eps)
    theirs.write(tmp_path / "w.caffemodel", form)
    network = ours()
    load_weights(network, tmp_path / "w.caffemodel")
    network.double()
    rgb = torch.randn(3, 3, 70, 65, dtype=torch.float64) * 50
    with torch.inference_mode():
        expected = theirs(rgb.flip(1))
        torch.testing.assert_close(network(rgb), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        shifted = ours(pooling="pytorch").double()
        shifted.load_state_dict(network.state_dict())
        assert not torch.allclose(shifted(rgb), expected, rtol=1e-2, atol=1e-2)


def test_a_statistic_without_batches_is_zero(tmp_path):
    theirs = CaffeNet(names="letters", bias=False, factor=1.0, eps=None)
    theirs.blobs["bn_conv1"][2][:] = 0
    theirs.write(tmp_path / "w.caffemodel")
    network = ours()
    load_weights(network, tmp_path / "w.caffemodel")
    assert not network.bn1.running_mean.any() and not network.bn1.running_var.any()


def test_misfits_are_named(tmp_path):
    path = tmp_path / "w.caffemodel"
    theirs = CaffeNet(names="letters", bias=False, factor=1.0, eps=None)
    theirs.write(path)
    with pytest.raises(UserError, match="stride='v1'"):
        load_weights(ours(stride="v1.5"), path)
    with pytest.raises(UserError, match=r"w.caffemodel does not fit the network: layer2.3.conv1.weight is missing"):
        load_weights(ours(stages=[(2, 4), (4, 8), (2, 4), (1, 8)]), path)
    for change, said in (
        (("res9z", [np.zeros(2)]), "layer res9z is none of"),
        (("bn_conv1", [np.zeros(4)]), "bn_conv1 has 1 blobs, expected 3"),
        (("bn_conv1", [np.zeros(4)] * 3), "no single scale factor"),
    ):
        changed = CaffeNet(names="letters", bias=False, factor=1.0, eps=None)
        changed.blobs[change[0]] = change[1]
        changed.write(path)
        with pytest.raises(UserError, match=said):
            load_weights(ours(), path)


@pytest.mark.slow
def test_a_network_for_the_file_has_caffe_s_stride_and_pooling(tmp_path):
    network = build_model("resnet50", num_classes=3)
    names = {"fc": "fc1000", "conv1": "conv1"}
    layers = []
    for key, module in network.named_modules():
        if key.startswith("layer") and isinstance(module, Bottleneck):
            stage, number = key.removeprefix("layer").split(".")
            block = f"{int(stage) + 1}{'abcdef'[int(number)]}"
            parts = {"conv1": "2a", "conv2": "2b", "conv3": "2c"} | ({"downsample.0": "1"} if number == "0" else {})
            names |= {f"{key}.{part}": f"res{block}_branch{branch}" for part, branch in parts.items()}
    for key, name in names.items():
        module = network.get_submodule(key)
        blobs = [module.weight.detach().numpy()]
        if key == "fc":
            layers.append(caffe.layer(name, "InnerProduct", [*blobs, module.bias.detach().numpy()]))
            continue
        layers.append(caffe.layer(name, "Convolution", blobs))
        short, channels = name.removeprefix("res"), len(blobs[0])
        bn, scale = ("bn_conv1", "scale_conv1") if name == "conv1" else (f"bn{short}", f"scale{short}")
        ones, zeros = np.ones(channels), np.zeros(channels)
        layers += [
            caffe.layer(bn, "BatchNorm", [zeros, ones, np.ones(1)]),
            caffe.layer(scale, "Scale", [ones, zeros]),
        ]
    (tmp_path / "ResNet-50-model.caffemodel").write_bytes(caffe.net(*layers))
    built = build_for_weights("resnet50", tmp_path / "ResNet-50-model.caffemodel")
    assert (built.architecture.stride, built.architecture.pooling) == ("v1", "caffe")
    assert built.fc.out_features == 3
    assert torch.equal(built.conv1.weight, network.conv1.weight.flip(1))
    for (key, a), b in zip(network.state_dict().items(), built.state_dict().values(), strict=True):
        assert key == "conv1.weight" or torch.equal(a, b), key
