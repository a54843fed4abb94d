from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.models import build_model
from resnet_pipeline.models.blocks import BasicBlock, Bottleneck, ZeroPadShortcut


@pytest.mark.parametrize(("inputs", "outputs", "stride", "size"), [(64, 128, 2, 8), (16, 32, 2, 7), (64, 256, 1, 5)])
def test_option_a_subsamples_and_pads_with_zeros_on_both_sides(inputs, outputs, stride, size):
    x = torch.randn(2, inputs, size, size)
    y = ZeroPadShortcut(inputs, outputs, stride)(x)
    rows = range(0, size, stride)
    assert y.shape == (2, outputs, len(rows), len(rows))
    new = outputs - inputs
    for i, row in enumerate(rows):
        for j, column in enumerate(rows):
            assert torch.equal(y[:, new // 2 : new // 2 + inputs, i, j], x[:, :, row, column])
    assert y.count_nonzero() == sum(x[:, :, r, c].count_nonzero() for r in rows for c in rows)


@pytest.mark.slow
def test_options_a_b_and_c_project_where_they_should():
    networks = {option: build_model("resnet34", shortcut=option) for option in "ABC"}
    projections = {
        o: sum(isinstance(m.downsample, nn.Sequential) for m in n.modules() if hasattr(m, "downsample"))
        for o, n in networks.items()
    }
    assert projections == {"A": 0, "B": 3, "C": 16}
    extra = sum(p.numel() for p in networks["A"].parameters())
    assert extra == sum(p.numel() for p in build_model("plain34").parameters())  # "parameter-free" (section 3.3)


@pytest.mark.parametrize("placement", ["v1", "v1.5"])
@pytest.mark.parametrize("option", ["A", "B", "C", "none"])
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
def test_a_block_is_relu_of_f_plus_x_written_out(kind, option, placement):
    torch.manual_seed(0)
    block = kind(8, 8, 2, option, placement).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)

    def normalised(x, bn):
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        return (x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]

    x = torch.randn(2, 8, 6, 6)
    if kind is BasicBlock:
        out = normalised(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1).clamp(min=0)
        out = normalised(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
    else:
        first, second = (2, 1) if placement == "v1" else (1, 2)
        out = normalised(F.conv2d(x, block.conv1.weight, stride=first), block.bn1).clamp(min=0)
        out = normalised(F.conv2d(out, block.conv2.weight, stride=second, padding=1), block.bn2).clamp(min=0)
        out = normalised(F.conv2d(out, block.conv3.weight), block.bn3)
    if option == "A":
        half = (out.shape[1] - 8) // 2
        out[:, half : half + 8] += x[:, :, ::2, ::2]
    elif option != "none":
        projection, bn = block.downsample
        out = out + normalised(F.conv2d(x, projection.weight, stride=2), bn)
    torch.testing.assert_close(block(x), out.clamp(min=0), rtol=1e-5, atol=1e-5)
