"""Models compared with published numbers: AlexNet's three variants, VGG-16, ResNet-18."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parallel.graph import Graph
from parallel.graph.configured import model_graph
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.models.resnet import ResNet18Config
from tests.support.options import model_options

PARAMETERS = {"owt": 61_100_840, "original": 60_965_224, "ungrouped": 62_378_344}


def graph(variant: str | None, size: int = 224, name: str = "alexnet") -> Graph:
    return model_graph(model_options(name, variant, size), 1000)


@pytest.mark.parametrize(("variant", "count"), PARAMETERS.items())
@pytest.mark.parametrize("size", [64, 224, 227])
def test_parameters_are_the_published_number_at_every_size(variant: str, count: int, size: int) -> None:
    assert graph(variant, size).parameter_count == count


@pytest.mark.parametrize(
    ("name", "count", "multiply_adds"),
    [
        ("vgg16", 138_357_544, 15.47e9),  # Simonyan and Zisserman 2015, table 2, configuration D: 138 million
        ("resnet18", 11_689_512, 1.814e9),  # He et al. 2016, table 1: 1.8 × 10⁹
    ],
)
def test_the_other_models_have_the_published_numbers(name: str, count: int, multiply_adds: float) -> None:
    assert [graph(None, size, name).parameter_count for size in (64, 224)] == [count, count]
    assert graph(None, 224, name).multiply_adds == pytest.approx(multiply_adds, rel=1e-3)


@pytest.mark.parametrize(("size", "side"), [(32, 1), (64, 2), (224, 7)])
def test_last_maps_of_the_other_models(size: int, side: int) -> None:
    vgg, resnet = graph(None, size, "vgg16"), graph(None, size, "resnet18")
    assert (vgg["pool5"].shape, vgg["avgpool"].shape) == ((512, side, side), (512, 7, 7))
    assert (resnet["layer4.1.relu2"].shape, resnet["avgpool"].shape) == ((512, side, side), (512, 1, 1))


def test_order_of_a_residual_block_s_ops() -> None:
    names = graph(None, 64, "resnet18").names
    assert names[:6] == ("conv1", "bn1.sums", "bn1", "relu", "maxpool", "layer1.0.conv1")
    assert tuple(name for name in names if name.startswith("layer2.0.")) == tuple(
        f"layer2.0.{name}"
        for name in (
            "conv1",
            "bn1.sums",
            "bn1",
            "relu1",
            "conv2",
            "bn2.sums",
            "bn2",
            "downsample.0",
            "downsample.1.sums",
            "downsample.1",
            "add",
            "relu2",
        )
    )
    assert graph(None, 64, "resnet18")["layer2.0.add"].inputs == ("layer2.0.bn2", "layer2.0.downsample.1")
    assert graph(None, 64, "resnet18")["layer2.1.add"].inputs == ("layer2.1.bn2", "layer2.0.relu2")


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_initial_weights_of_the_other_models(name: str) -> None:
    model = build_model(model_options(name, image_size=32), 10, seed=0)
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    norms = {path for path, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    for path, tensor in model.named_parameters():
        layer, _, kind = path.rpartition(".")
        if kind == "bias" or layer in norms:
            assert torch.equal(tensor, torch.full_like(tensor, float(kind == "weight")))
            continue
        repeat = 7 if layer == "fc6" else 1  # a map of one position fills VGG's 7×7
        assert tensor.std().item() == pytest.approx((2 / tensor[0].numel()) ** 0.5 / repeat, rel=0.05)


def test_initial_weights_of_resnet_are_the_seed_s_and_as_configured() -> None:
    kaiming, again, other, default = (
        [p.detach() for p in build_model(ResNet18Config(init=init), 10, seed).parameters()]
        for init, seed in (("kaiming", 3), ("kaiming", 3), ("kaiming", 4), ("torch", 3))
    )
    assert all(map(torch.equal, kaiming, again))
    assert not torch.equal(kaiming[0], other[0])
    # Uniform up to its bound.
    assert default[0].abs().max().item() == pytest.approx((3 * 7 * 7) ** -0.5, rel=0.01)


def test_the_original_has_233_megabytes_and_0_7_g_multiply_adds() -> None:
    original = graph("original")
    assert round(original.parameter_count * 4 / 2**20) == 233
    # conv: positions × output channels × inputs of one output, layer by layer; then the three
    # linear layers.
    conv = (55**2 * 96 * 363, 27**2 * 256 * 1200, 13**2 * 384 * 2304, 13**2 * 384 * 1728, 13**2 * 256 * 1728)
    assert original.multiply_adds == sum(conv) + 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert round(original.multiply_adds / 1e9, 1) == 0.7


def test_conv_and_linear_weights_of_owt_are_the_published_numbers() -> None:
    owt = graph("owt")
    assert sum(op.parameter_count for op in owt if op.name.startswith("conv")) == 2_469_696
    assert sum(op.parameter_count for op in owt if op.name.startswith("fc")) == 58_631_144


@pytest.mark.parametrize(("size", "side"), [(63, 1), (64, 1), (128, 3), (224, 6), (227, 6)])
def test_feature_map_before_the_average_pool(size: int, side: int) -> None:
    assert graph("owt", size)["pool5"].shape == (256, side, side)
    assert graph("owt", size)["avgpool"].shape == (256, 6, 6)


def test_order_of_the_original_s_ops() -> None:
    """Krizhevsky et al. 2012, section 3.5: normalisation after the first two convs' ReLU, before
    their pooling."""
    assert graph("original").names == (
        "conv1",
        "relu1",
        "norm1",
        "pool1",
        "conv2",
        "relu2",
        "norm2",
        "pool2",
        "conv3",
        "relu3",
        "conv4",
        "relu4",
        "conv5",
        "relu5",
        "pool5",
        "avgpool",
        "flatten",
        "fc6",
        "relu6",
        "drop6",
        "fc7",
        "relu7",
        "drop7",
        "fc8",
        "loss",
    )
    assert [graph("original")[f"conv{i}"].groups for i in range(1, 6)] == [1, 2, 1, 2, 2]  # type: ignore[attr-defined]


def test_owt_drops_before_its_linear_layers_and_does_not_normalise() -> None:
    names = graph("owt").names
    assert names[names.index("flatten") :] == (
        "flatten",
        "drop6",
        "fc6",
        "relu6",
        "drop7",
        "fc7",
        "relu7",
        "fc8",
        "loss",
    )
    assert not [name for name in names if name.startswith("norm")]


def test_sixty_four_pixels_and_weights_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = build_model(AlexNetConfig(init="torch", dropout=0.25), 10, seed=7)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "building a model moved the global generator"
    two = build_model(AlexNetConfig(init="torch"), 10, seed=7)  # the global generator has another state now
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert {layer.p for layer in one.children() if isinstance(layer, nn.Dropout)} == {0.25}
    with torch.no_grad():
        assert one.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def weights_of(init: str, size: int, *, variant: str = "owt", seed: int = 0) -> dict[str, Tensor]:
    model = build_model(AlexNetConfig(variant=variant, init=init, image_size=size), 100, seed)
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def test_paper_initialisation_and_another_seed() -> None:
    """Krizhevsky et al. 2012, section 5."""
    one, two = (
        weights_of("paper", 64, variant="original"),
        weights_of("paper", 64, variant="original", seed=1),
    )
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])
    for name, tensor in one.items():
        if name.endswith("weight"):
            assert tensor.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(tensor.mean().item()) < 5e-4
    assert {name: tensor.unique().tolist() for name, tensor in one.items() if name.endswith("bias")} == {
        "conv1.bias": [0],
        "conv2.bias": [1],
        "conv3.bias": [0],
        "conv4.bias": [1],
        "conv5.bias": [1],
        "fc6.bias": [1],
        "fc7.bias": [1],
        "fc8.bias": [0],
    }


@pytest.mark.parametrize(("size", "repeat"), [(64, 6), (128, 2)])
def test_kaiming_initialisation_knows_that_small_maps_are_repeated(size: int, repeat: int) -> None:
    for name, tensor in weights_of("kaiming", size).items():
        if name.endswith("bias"):
            assert not tensor.any()
            continue
        expected = (2 / tensor[0].numel()) ** 0.5 / (repeat if name == "fc6.weight" else 1)
        assert tensor.std().item() == pytest.approx(expected, rel=0.05)


def test_torch_initialisation_is_uniform() -> None:
    for name, tensor in weights_of("torch", 64).items():
        if name.endswith("weight"):
            bound = tensor[0].numel() ** -0.5
            assert 0.99 * bound < tensor.abs().max().item() <= bound


def test_class_count_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^model.num_classes=1000 does not fit the data set, which has 10 classes; "
        r"leave it out or set it to 10$",
    ):
        build_model(AlexNetConfig(num_classes=1000), 10, seed=0)
