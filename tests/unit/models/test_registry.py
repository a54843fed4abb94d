from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import build_model, depth_of, model_names


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("kind", ["resnet", "plain", "highway"])
def test_cifar_networks_have_6n_plus_2_layers(kind, n):
    name = f"cifar-{kind}{6 * n + 2}"
    network = build_model(name)
    main = [m for key, m in network.named_modules() if isinstance(m, nn.Conv2d) and "gate" not in key]
    assert len(main) + 1 == 6 * n + 2 == depth_of(name)
    # section 4.2: a first 3×3 convolution, then 2n layers on maps of 32, 16, 8 with 16, 32, 64 filters
    assert [m.out_channels for m in main] == [16] * (2 * n + 1) + [32] * 2 * n + [64] * 2 * n
    assert all(m.kernel_size == (3, 3) for m in main)
    assert [i for i, m in enumerate(main) if m.stride == (2, 2)] == [2 * n + 1, 4 * n + 1]
    assert network.features(torch.randn(2, 3, 32, 32)).shape == (2, 64, 8, 8)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_every_named_network_can_be_built():
    names = model_names()
    assert len(set(names)) == len(names)
    for name in names:
        with torch.device("meta"):
            network = build_model(name, num_classes=7)
        assert network.fc.out_features == 7


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet51", "resnet networks for ImageNet have 18, 34, 50, 101, 152 layers"),
        ("plain50", "plain networks for ImageNet have 18, 34 layers"),
        ("resnte50", "did you mean 'resnet50'"),
        ("vgg", "the networks are plain18"),
        ("cifar-resnet21", "have 6n+2 layers for n >= 1; 21 is not one, 20 or 26 are"),
        ("cifar-plain2", "2 is not one, 8 or 14 are"),
        ("cifar-resnet020", "did you mean"),
        ("highway20", "cifar-highway20"),
        ("", "unknown network"),
    ],
)
def test_unknown_networks_name_the_known_ones(name, said):
    with pytest.raises(UserError) as error:
        build_model(name)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("plain34", {"shortcut": "B"}, "no shortcuts"),
        ("cifar-resnet20", {"shortcut": "C"}, "takes shortcut A"),
        ("resnet50", {"shortcut": "D"}, "A, B or C, not 'D'"),
        ("resnet50", {"stride": "v2"}, "stride must be one of v1, v1.5, not 'v2'"),
        ("resnet50", {"pooling": "ceil"}, "pooling must be one of pytorch, caffe"),
        ("resnet50", {"num_classes": 0}, "num_classes must be at least 1"),
        ("resnet50", {"checkpointing": -1}, "checkpointing must be"),
    ],
)
def test_options_that_cannot_be_are_named(name, options, said):
    with pytest.raises(UserError, match=said):
        build_model(name, **options)
