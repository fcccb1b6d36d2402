"""Rules of all ops, without processes: the parts together equal the whole op, forward and
backward."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from parallel.graph import trace, whole_part
from parallel.graph.box import Box
from parallel.graph.ops import RULES, Context, CrossEntropy, Op, Shape
from parallel.graph.ops.dropout import step_key
from parallel.graph.ops.elementwise import Add
from parallel.graph.ops.shape import Concat
from parallel.plans import Layout
from tests.support.gpu import needs_gpu

SEED, STEP, BATCH = 3, 2, 5
CPU = torch.device("cpu")


def op_of(layer: nn.Module, input_shape: Shape) -> Op:
    with torch.no_grad():
        shape = tuple(layer.double()(torch.zeros(1, *input_shape, dtype=torch.float64)).shape[1:])
    built = RULES[type(layer)](layer, "op", inputs=("x",), input_shapes=(input_shape,), shape=shape)
    assert isinstance(built, Op)
    return built


def context(
    samples: Any,
    training: bool = True,
    buffers: dict[str, Tensor] | None = None,
    constants: dict[str, Tensor] | None = None,
) -> Context:
    return Context(
        training,
        torch.tensor(step_key(SEED, STEP)),
        torch.tensor(list(samples), dtype=torch.int64),
        {"op": buffers or {}},
        {"op": constants or {}},
    )


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(math.prod(shape)))


def put_together(
    op: Op,
    layout: Layout,
    xs: Tensor | Sequence[Tensor],
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor] | None = None,
    training: bool = True,
) -> Tensor:
    """Return the op's output from its parts, each computed from the boxes of its rule, with partial
    sums added.

    `buffers` are those that a part has found and updated last.
    """
    xs = [xs] if isinstance(xs, Tensor) else xs
    shape = op.output_box(whole_part(op, BATCH)).shape
    whole, covered = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    before = {name: tensor.clone() for name, tensor in (buffers or {}).items()}
    for worker in layout.on:
        part = layout.part(op, worker, (0, BATCH))
        pieces = []
        for x, needed in zip(xs, op.needs(part), strict=True):
            assert needed & Box.whole(tuple(x.shape)) == needed
            pieces.append(x[needed.within(Box.whole(tuple(x.shape)))])
        own = {
            name: parameters[name][box.within(Box.whole(op.parameters[name]))]
            for name, box in op.parameter_boxes(part).items()
        }
        places = {
            name: box.within(Box.whole(op.buffers[name])) for name, box in op.buffer_boxes(part).items()
        }
        held = {name: before[name][place].clone() for name, place in places.items()}
        at = context(range(*part.box.spans[0]), training, held, op.constants(part, CPU))
        piece = op.forward(part, pieces, own, at)
        for name, place in places.items():
            buffers[name][place] = held[name]  # type: ignore[index]
        box = op.output_box(part)
        assert piece.shape == box.shape
        place = tuple(slice(*span) for span in box.spans)
        covered[place] += 1
        padded = torch.zeros_like(whole)
        padded[place] = piece
        whole = whole + padded
    assert (covered == layout.terms(op)).all(), "the parts do not tile the output"
    return whole


def check(layer: nn.Module, input_shape: Shape, layout: Layout, truth: Tensor | None = None) -> None:
    """Check that outputs and gradients of all parts equal the layer's; `truth` replaces the layer's
    output."""
    op = op_of(layer, input_shape)
    x = random(BATCH, *input_shape).requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    ours = put_together(op, layout, x, parameters)
    cotangent = random(*ours.shape)
    expected = layer(x) if truth is None else x * truth
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    ours_x, *ours_p = torch.autograd.grad(ours, [x, *parameters.values()], cotangent)
    true_x, *true_p = torch.autograd.grad(expected, [x, *layer.parameters()], cotangent)
    torch.testing.assert_close(ours_x, true_x, rtol=1e-11, atol=1e-11)
    for a, b in zip(ours_p, true_p, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@st.composite
def degrees(draw: st.DrawFn, op: Op, limit: int = 12) -> Layout:
    """Draw degrees that the op allows, in all dims in which it may be split."""
    found: dict[str, int] = {}
    for dim in draw(st.permutations(op.dims)):
        most = min(BATCH if dim == "n" else op.extent(dim), limit // math.prod(found.values()))
        found[dim] = draw(st.integers(1, max(1, most)))
    return Layout(on=tuple(range(math.prod(found.values()))), **found)


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_conv(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from((1, 1, 2, 3)))
    kernel, stride = data.draw(pairs), data.draw(pairs)
    padding = data.draw(st.integers(0, kernel[0] - 1)), data.draw(st.integers(0, kernel[1] - 1))
    size = data.draw(st.tuples(st.integers(4, 11), st.integers(4, 11)))
    channels = groups * data.draw(st.integers(1, 4))
    layer = nn.Conv2d(
        channels,
        groups * data.draw(st.integers(1, 4)),
        kernel,
        stride,
        padding,
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    shape = (channels, *size)
    check(layer, shape, data.draw(degrees(op_of(layer, shape))))


@pytest.mark.parametrize(
    "layout",
    [
        Layout(on=(0, 1), c=2),  # whole groups
        Layout(on=(0, 1, 2, 3), c=4),  # parts inside a group
        Layout(on=(0, 1, 2), c=3),  # a part across two groups
        Layout(on=(0, 1), k=2),  # partial sums over every group: what is read has gaps
        Layout(on=tuple(range(6)), c=3, k=2),
        Layout(on=tuple(range(12)), n=2, c=3, k=2),
    ],
    ids=str,
)
def test_conv_with_groups(layout: Layout) -> None:
    check(nn.Conv2d(8, 8, 3, padding=1, groups=2), (8, 5, 6), layout)


@pytest.mark.parametrize("layout", [Layout(on=(0, 1), h=2), Layout(on=tuple(range(6)), h=3, w=2)], ids=str)
def test_alexnet_first_conv_in_space(layout: Layout) -> None:
    check(nn.Conv2d(3, 4, 11, stride=4, padding=2), (3, 64, 64), layout)


@pytest.mark.parametrize(("kernel", "padding"), [(1, 1), (2, 2), (2, 3), (3, 5)])
def test_conv_whose_windows_may_lie_in_the_padding(kernel: int, padding: int) -> None:
    layer = nn.Conv2d(2, 3, kernel, padding=padding)
    op = op_of(layer, (2, 4, 4))
    for degree in range(1, op.shape[1] + 1):
        layout = Layout(on=tuple(range(degree)), h=degree)
        check(layer, (2, 4, 4), layout)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, stride=4), nn.MaxPool2d(2, 3), nn.MaxPool2d(3, 2)], ids=str
)
def test_an_unsplit_op_needs_just_its_input(layer: nn.Module) -> None:
    """This includes the last rows, which no window reads; otherwise an exchange would seem
    necessary."""
    op = op_of(layer, (3, 10, 12))
    assert op.needs(whole_part(op, BATCH)) == (Box.whole((BATCH, 3, 10, 12)),)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_linear(data: st.DataObject) -> None:
    layer = nn.Linear(
        data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), bias=data.draw(st.booleans())
    )
    shape = (layer.in_features,)
    check(layer, shape, data.draw(degrees(op_of(layer, shape))))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_max_pool(data: st.DataObject) -> None:
    kernel, stride = data.draw(pairs), data.draw(pairs)
    padding = data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2))
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(4, 11)), data.draw(st.integers(4, 11)))
    layer = nn.MaxPool2d(kernel, stride, padding)
    check(layer, shape, data.draw(degrees(op_of(layer, shape))))


def test_max_pool_pads_with_less_than_every_value() -> None:
    """Padding with zeros would win over negative activations."""
    layer, op = nn.MaxPool2d(3, 2, 1), op_of(nn.MaxPool2d(3, 2, 1), (1, 6, 6))
    x = -1 - random(BATCH, 1, 6, 6).abs()
    torch.testing.assert_close(put_together(op, Layout(on=(0, 1, 2), h=3), x, {}), layer(x))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_adaptive_average_pool(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    output = (
        (height, width)
        if data.draw(st.booleans())
        else data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    )
    layer, shape = nn.AdaptiveAvgPool2d(output), (3, height, width)
    op = op_of(layer, shape)
    assert op.dims == ("nchw" if output == (height, width) else "nc")
    check(layer, shape, data.draw(degrees(op)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_local_response_norm(data: st.DataObject) -> None:
    layer = nn.LocalResponseNorm(data.draw(st.integers(1, 6)), alpha=0.7, beta=0.6, k=1.5)
    shape = (data.draw(st.integers(1, 9)), 3, 4)
    check(layer, shape, data.draw(degrees(op_of(layer, shape))))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_flatten(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)))
    check(nn.Flatten(), shape, data.draw(degrees(op_of(nn.Flatten(), shape))))


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([(6,), (3, 4, 2)]))
def test_relu(data: st.DataObject, shape: Shape) -> None:
    check(nn.ReLU(), shape, data.draw(degrees(op_of(nn.ReLU(), shape))))


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([(16,), (3, 4, 2)]))
def test_dropout_drops_the_same_elements_however_it_is_split(data: st.DataObject, shape: Shape) -> None:
    layer = nn.Dropout(0.4)
    op = op_of(layer, shape)
    ones = torch.ones(BATCH, *shape, dtype=torch.float64)
    whole = whole_part(op, BATCH)
    at = context(range(BATCH), constants=op.constants(whole, CPU))
    kept = op.forward(whole, [ones], {}, at)
    assert 0 < (kept == 0).sum() < kept.numel()
    check(layer, shape, data.draw(degrees(op)), truth=kept)


def test_dropout_does_nothing_in_evaluation() -> None:
    op, x = op_of(nn.Dropout(0.9), (6,)), random(BATCH, 6)
    assert torch.equal(op.forward(whole_part(op, BATCH), [x], {}, context(range(BATCH), training=False)), x)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([(6,), (3, 4, 2)]))
def test_add_and_concat(data: st.DataObject, shape: Shape) -> None:
    channels = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shapes = tuple((c, *shape[1:]) for c in channels)
    concat = Concat(
        name="op", inputs=tuple("xyzt")[: len(shapes)], input_shapes=shapes, shape=(sum(channels), *shape[1:])
    )
    add = Add(name="op", inputs=("x", "y"), input_shapes=(shape, shape), shape=shape)
    for op, expected in ((concat, lambda *xs: torch.cat(xs, 1)), (add, torch.add)):
        xs = [random(BATCH, *s).mul(i + 1).requires_grad_() for i, s in enumerate(op.input_shapes)]
        ours, truth = put_together(op, data.draw(degrees(op)), xs, {}), expected(*xs)
        assert torch.equal(ours, truth)
        for a, b in zip(
            torch.autograd.grad(ours.sin().sum(), xs), torch.autograd.grad(truth.sin().sum(), xs), strict=True
        ):
            assert torch.equal(a, b)


def test_a_concat_needs_of_an_input_only_what_its_channels_reach() -> None:
    op = Concat(name="op", inputs=("x", "y"), input_shapes=((2, 3), (4, 3)), shape=(6, 3))
    layout = Layout(on=(0, 1, 2), c=3)
    assert [[box.spans[1] for box in op.needs(layout.part(op, w, (0, 1)))] for w in range(3)] == [
        [(0, 2), (0, 0)],
        [(2, 2), (0, 2)],
        [(2, 2), (2, 4)],
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batch_norm_has_the_statistics_of_the_whole_batch(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)))
    affine = data.draw(st.booleans())
    layer = nn.BatchNorm2d(shape[0], eps=0.01, momentum=0.3, affine=affine).double()
    names = {name: p.uniform_(0.5, 2.0) for name, p in layer.state_dict().items() if p.is_floating_point()}
    buffers = {name: names[name].clone() for name in ("running_mean", "running_var")}
    sums, norm = RULES[nn.BatchNorm2d](layer, "op", inputs=("x",), input_shapes=(shape,), shape=shape)  # type: ignore[misc]
    assert (sums.name, norm.name, norm.inputs) == ("op.sums", "op", ("x", "op.sums"))
    x = (random(BATCH, *shape) + 3.0).requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    total = put_together(sums, data.draw(degrees(sums)), x, {})
    torch.testing.assert_close(
        total[0], torch.stack([torch.ones_like(x), x, x * x], 0).sum((1, 3, 4)).T, rtol=1e-12, atol=1e-12
    )
    ours, truth = put_together(norm, data.draw(degrees(norm)), [x, total], parameters, buffers), layer(x)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    cotangent = random(*ours.shape)
    for a, b in zip(
        torch.autograd.grad(ours, [x, *parameters.values()], cotangent),
        torch.autograd.grad(truth, [x, *layer.parameters()], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for name, tensor in buffers.items():
        torch.testing.assert_close(tensor, layer.state_dict()[name], rtol=1e-12, atol=1e-12)
    was = {name: tensor.clone() for name, tensor in buffers.items()}
    zeros = put_together(sums, data.draw(degrees(sums)), x, {}, training=False)
    evaluated = put_together(norm, data.draw(degrees(norm)), [x, zeros], parameters, buffers, training=False)
    torch.testing.assert_close(evaluated, layer.eval()(x), rtol=1e-12, atol=1e-12)
    assert not zeros.any() and all(torch.equal(buffers[name], was[name]) for name in was)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_sums_takes_the_statistics_of_its_part(affine: bool, training: bool) -> None:
    shape = (5, 3, 2)
    layer = nn.BatchNorm2d(shape[0], eps=0.01, momentum=0.3, affine=affine).train(training)
    names = {name: p.uniform_(0.5, 2.0) for name, p in layer.state_dict().items() if p.is_floating_point()}
    buffers = {name: names[name].clone() for name in ("running_mean", "running_var")}
    _, norm = RULES[nn.BatchNorm2d](layer, "op", inputs=("x",), input_shapes=(shape,), shape=shape)  # type: ignore[misc]
    assert norm.fuses == "op.sums"
    x, pieces = random(BATCH, *shape).float() + 3.0, []
    expected, truth = layer(x), layer.state_dict()
    for worker in range(2):
        part = Layout(on=(0, 1), c=2).part(norm, worker, (0, BATCH))
        own = slice(*part.box.spans[1])
        parameters = {name: p.detach()[own] for name, p in layer.named_parameters()}
        running = {name: tensor[own] for name, tensor in buffers.items()}
        pieces.append(
            norm.forward(part, [x[:, own]], parameters, context(range(BATCH), training, buffers=running))
        )
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-6, atol=1e-6)
    for name, tensor in buffers.items():
        torch.testing.assert_close(tensor, truth[name], rtol=1e-6, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_batch_norm_on_a_gpu(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    layer = nn.BatchNorm2d(6).cuda()
    sums, norm = RULES[nn.BatchNorm2d](
        layer,
        "op",
        inputs=("x",),
        input_shapes=((6, 4, 4),),  # type: ignore[misc]
        shape=(6, 4, 4),
    )
    x = random(BATCH, 6, 4, 4).to("cuda", dtype, memory_format=memory_format).requires_grad_()
    parameters, buffers = dict(layer.named_parameters()), {n: b.clone() for n, b in layer.named_buffers()}
    total = sums.forward(whole_part(sums, BATCH), [x], {}, context(()))
    ours = norm.forward(whole_part(norm, BATCH), [x, total], parameters, context((), buffers=buffers))
    cotangent = torch.randn_like(ours)
    found = torch.autograd.grad(ours, [x, *parameters.values()], cotangent)
    truth = layer(x)
    expected = torch.autograd.grad(truth, [x, *parameters.values()], cotangent)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for a, b in zip(
        [ours, *found, buffers["running_var"]], [truth, *expected, layer.running_var], strict=True
    ):
        assert isinstance(b, Tensor) and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_batch_norm_of_numbers_far_from_zero_in_fp32_and_of_bf16() -> None:
    """With plain sums of squares, the variance of numbers around 1000 would be lost in float32."""
    layer = nn.BatchNorm2d(3)
    sums, norm = RULES[nn.BatchNorm2d](
        layer,
        "op",
        inputs=("x",),
        input_shapes=((3, 4, 4),),  # type: ignore[misc]
        shape=(3, 4, 4),
    )
    for dtype, offset, tolerance in ((torch.float32, 1000.0, 1e-3), (torch.bfloat16, 1.0, 2e-2)):
        x = (random(BATCH, 3, 4, 4) + offset).to(dtype)
        parts = [Layout(on=(0, 1), n=2).part(sums, worker, (0, BATCH)) for worker in range(2)]
        total = sum(sums.forward(part, [x[slice(*part.box.spans[0])]], {}, context(())) for part in parts)
        assert isinstance(total, Tensor) and total.dtype == torch.float64
        buffers = {name: tensor.clone() for name, tensor in layer.named_buffers()}
        y = norm.forward(
            whole_part(norm, BATCH),
            [x, total],
            dict(layer.named_parameters()),
            context(range(BATCH), buffers=buffers),
        )
        assert y.dtype == dtype
        truth = F.batch_norm(x.double(), None, None, training=True)
        torch.testing.assert_close(y.double(), truth, rtol=tolerance, atol=tolerance)


def test_cross_entropy_of_each_sample() -> None:
    op = CrossEntropy(name="loss", inputs=("fc",), input_shapes=((5,),), shape=())
    logits, labels = random(BATCH, 5), torch.tensor([0, 4, 2, -1, 1])
    layout = Layout(on=(0, 1, 2), n=3)
    pieces = []
    for worker in layout.on:
        part = layout.part(op, worker, (0, BATCH))
        (box,) = op.needs(part)
        assert box.spans == (part.box.spans[0], (0, 5))
        rows = slice(*part.box.spans[0])
        pieces.append(
            op.forward(part, [logits[rows], labels[rows]], {}, context(range(rows.start, rows.stop)))
        )
    losses = torch.cat(pieces)
    torch.testing.assert_close(
        losses[labels >= 0], F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")
    )
    assert losses[3] == 0  # a row without a label


def test_cross_entropy_in_bf16_sums_in_fp32() -> None:
    op = CrossEntropy(name="loss", inputs=("fc",), input_shapes=((1000,),), shape=())
    logits, labels = random(BATCH, 1000).bfloat16(), torch.arange(BATCH)
    loss = op.forward(whole_part(op, BATCH), [logits, labels], {}, context(range(BATCH)))
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, reduction="none"))


def test_multiply_adds_of_the_parts_are_those_of_the_whole() -> None:
    for layer, shape in ((nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 5, 7)), (nn.Linear(6, 4), (6,))):
        op = op_of(layer, shape)
        layout = Layout(on=tuple(range(12)), n=2, c=2, k=3)
        parts = [layout.part(op, worker, (0, BATCH)) for worker in layout.on]
        assert sum(op.multiply_adds(part) for part in parts) == op.multiply_adds(whole_part(op, BATCH))
    assert (
        op_of(nn.Linear(6, 4), (6,)).multiply_adds(whole_part(op_of(nn.Linear(6, 4), (6,)), 3)) == 3 * 6 * 4
    )
    conv = op_of(nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 5, 7))
    assert conv.multiply_adds(whole_part(conv, 1)) == 5 * 7 * 4 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Conv2d(3, 4, 3, dilation=2), "layer 0: a convolution with dilation"),
        (
            nn.Conv2d(3, 4, 3, padding="same"),
            "layer 0: a convolution with dilation, non-zero or named padding",
        ),
        (
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
            "layer 0: a convolution with dilation, non-zero",
        ),
        (nn.MaxPool2d(3, ceil_mode=True), "layer 0: a pooling with dilation, ceil_mode"),
        (
            nn.Sequential(nn.Softplus()),
            "layer 0.0: Softplus has no rule in parallel/graph/ops; add one there",
        ),
        (nn.Flatten(2), "layer 0: a flatten of other dims than 1 to -1"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_without_a_rule_is_refused(layer: nn.Module, what: str) -> None:
    model = nn.Sequential(
        layer, nn.LazyConv2d(2, 1) if not isinstance(layer, nn.Flatten) else nn.Conv1d(3, 2, 1)
    )
    with torch.no_grad():
        model(torch.zeros(1, 3, 12, 12))
    with pytest.raises(ValueError, match=f"^{what}"):
        trace(model, (3, 12, 12))


class Calls(nn.Module):
    """A model around one function of a convolution's output and the images; it is its own
    logits."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 2, 1), function
        self.relu, self.drop, self.norm = nn.ReLU(inplace=True), nn.Dropout(), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x, self.conv(x))


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (
            lambda m, x, y: y + 1.0,
            "layer add: an addition of anything but two tensors of the same shape has no rule",
        ),
        (lambda m, x, y: torch.add(x, y, alpha=2), "layer add: an addition of anything but two tensors"),
        (lambda m, x, y: y + m.conv.bias.view(2, 1, 1), "node conv_bias: get_attr conv.bias has no rule"),
        (
            lambda m, x, y: torch.cat([x, y]),
            "layer concat: a concatenation along another dim than 1, the channels, has",
        ),
        (lambda m, x, y: torch.cat([x, y], dim=2), "layer concat: a concatenation along another dim than 1"),
        (
            lambda m, x, y: torch.concatenate([x, y], axis=3),
            "layer concat: a concatenation along another dim than 1",
        ),  # type: ignore[call-arg]
        (lambda m, x, y: torch.flatten(y), "layer flatten: a flatten of other dims than 1 to -1 has no rule"),
        (lambda m, x, y: y.flatten(1, 2), "layer flatten: a flatten of other dims than 1 to -1 has no rule"),
        (
            lambda m, x, y: y.view(1, -1),
            "node view: call_method view has no rule in parallel/graph/ops; add one there",
        ),
        (lambda m, x, y: y + y, "node add: reads conv twice, which no op supports"),
        (lambda m, x, y: torch.cat([y, y], 1), "node cat: reads conv twice"),
        (
            lambda m, x, y: m.drop(m.drop(y)),
            "layer drop: Dropout is used twice; only a layer without weights, statistics",
        ),
        (lambda m, x, y: m.norm(m.norm(y)), "layer norm: BatchNorm2d is used twice"),
        (lambda m, x, y: m.relu(y) + y, "node relu: changes conv in place, but other nodes read it, too"),
        (lambda m, x, y: y.add_(x) + y, "node add_: changes conv in place, but other nodes read it, too"),
        (
            lambda m, x, y: y.mul(2) if y.sum() > 0 else y,
            "the model cannot be traced, because what it computes depends on",
        ),
        (lambda m, x, y: (x, y), "the model returns .*; it must return one tensor, the logits"),
        (lambda m, x, y: (m.norm(y), torch.flatten(y, 1))[1], "op norm: nothing reads its output"),
    ],
)
def test_calls_without_a_rule_are_refused(function: Callable[..., Any], what: str) -> None:
    with pytest.raises(ValueError, match=f"^{what}"):
        trace(Calls(function), (2, 3, 3))


def test_a_batch_norm_without_running_statistics_is_refused() -> None:
    for layer in (nn.BatchNorm2d(2, momentum=None), nn.BatchNorm2d(2, track_running_stats=False)):
        with pytest.raises(
            ValueError, match=r"^layer 1: a batch normalisation without running statistics or with"
        ):
            trace(nn.Sequential(nn.Conv2d(2, 2, 1), layer, nn.Flatten()), (2, 3, 3))


def test_names_of_calls_and_of_layers_used_twice() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.flatten = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Linear(36, 4)
            self.act, self.block = nn.ReLU(), Add()

        def forward(self, x: Tensor) -> Tensor:
            y = self.block(self.act(self.conv1(x)), self.act(self.conv2(x)))
            y = F.relu(self.block(y, F.relu(y)))
            return self.flatten(y.flatten(start_dim=1))

    assert trace(Model(), (2, 3, 3)).names == (
        "conv1",
        "act",
        "conv2",
        "act_1",
        "block.add",
        "relu",
        "block.add_1",
        "relu_1",
        "flatten_1",
        "flatten",
        "loss",
    )


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout().eval())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, (2, 1, 1))  # one value a channel: no batch statistics could be made of it
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, True, False]


def test_a_function_without_a_rule_and_an_output_without_logits_are_refused() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * 2.0

    with pytest.raises(ValueError, match=r"^node mul: call_function .* has no rule in parallel/graph/ops"):
        trace(Added(), (4,))
    with pytest.raises(ValueError, match=r"the model's output has shape \(2, 3, 3\) a sample"):
        trace(nn.Sequential(nn.Conv2d(3, 2, 3)), (3, 5, 5))


def test_an_average_pool_of_one_position_repeats_it() -> None:
    graph = trace(
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(2, 3, 1),
                pool=nn.AdaptiveAvgPool2d((2, 4)),
                flatten=nn.Flatten(),
                fc=nn.Linear(24, 5),
            )
        ),
        (2, 1, 1),
    )
    x = torch.randn(3, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    op = graph["pool"]
    got = op.forward(whole_part(op, 3), [x], {}, context(range(3), True))
    want = F.adaptive_avg_pool2d(x, (2, 4))
    assert torch.equal(got, want)
    upstream = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad(y, x, upstream)[0] for y in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
