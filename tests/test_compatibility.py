"""Test every layer with everything that torch does with nn.Conv2d: the numbers are always the eager ones.

Inputs and weights are multiples of 1/4, gradients whole numbers, binary filters have 2^n elements: float32 sums of
these are exact in every order, so that each variant of a layer must give the same bits.
"""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from torchadder.functional import GradientRule
from torchadder.nn import Adder, AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear, BinaryConv2d, BinaryLinear

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's own warnings about itself
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SIGN = GradientRule("sign", "sign")
INT8 = GradientRule(numbers="int8")
LAYERS = {  # a layer (it takes torch's device and dtype) and the shape of an input for it
    "conv1d": (functools.partial(AdderConv1d, 4, 6, 3, stride=2), (4, 4, 11)),
    "conv2d": (functools.partial(AdderConv2d, 4, 6, 3, padding=1), (4, 4, 6, 7)),
    "conv2d, groups, stride": (functools.partial(AdderConv2d, 4, 6, 3, stride=2, groups=2, bias=False), (4, 4, 6, 7)),
    "conv2d, same": (functools.partial(AdderConv2d, 4, 6, (2, 3), padding="same"), (4, 4, 6, 7)),
    "conv2d, reflect": (functools.partial(AdderConv2d, 4, 6, 3, padding=1, padding_mode="reflect"), (4, 4, 6, 7)),
    "conv2d, sign, recenter": (functools.partial(AdderConv2d, 4, 6, 3, grad=SIGN, recenter=True), (4, 4, 6, 7)),
    "conv2d, int8": (functools.partial(AdderConv2d, 4, 6, 3, padding=1, grad=INT8), (4, 4, 6, 7)),
    "conv3d": (functools.partial(AdderConv3d, 2, 4, (2, 1, 3), padding=(0, 1, 1)), (4, 2, 4, 3, 5)),
    "linear": (functools.partial(AdderLinear, 9, 5), (4, 9)),
    "linear, sign, recenter": (functools.partial(AdderLinear, 9, 5, False, grad=SIGN, recenter=True), (4, 3, 9)),
    "binary conv2d": (functools.partial(BinaryConv2d, 4, 6, 2, padding=1), (4, 4, 6, 7)),
    "binary conv2d, groups, same": (functools.partial(BinaryConv2d, 4, 6, 4, padding="same", groups=2), (4, 4, 6, 7)),
    "binary linear": (functools.partial(BinaryLinear, 8, 5), (4, 8)),
}
layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())


def numbers(shape, step=0.25, seed=0):
    """Return multiples of `step` between -2 and 2."""
    return torch.randint(int(-2 / step), int(2 / step) + 1, shape, generator=torch.Generator().manual_seed(seed)) * step


def build(make):
    layer = make()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(numbers(parameter.shape, seed=seed))
    return layer


def pair(make, shape):
    return build(make), numbers(shape, seed=7)


def results(call, parameters, x):
    """Return the output, the gradient of the input, and that of each parameter."""
    x, parameters = x.clone().requires_grad_(), list(parameters)
    for p in parameters:
        p.grad = None
    y = call(x)
    y.backward(numbers(y.shape, 1.0).to(y.dtype))
    return [y.detach(), x.grad, *(p.grad.clone() for p in parameters)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def through_bytes(value, save, load):
    save(value, file := io.BytesIO())
    file.seek(0)
    return load(file)


def compiled(layer, x):
    torch.compiler.reset()  # torch keeps 8 compilations of one forward(), and then refuses
    return torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)


def exported(layer, x):
    """Export for one batch size, save and load; the caller runs another."""
    program = torch.export.export(layer, (torch.cat([x, x]),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    return through_bytes(program, torch.export.save, torch.export.load).module()


def blank(layer):
    """Return the same layer with other numbers."""
    other = copy.deepcopy(layer)
    other.reset_parameters()
    return other


def reloaded(layer, x):
    state = through_bytes(layer.state_dict(), torch.save, functools.partial(torch.load, weights_only=True))
    (other := blank(layer)).load_state_dict(state)
    return other


def through_meta(layer, x):
    (other := copy.deepcopy(layer).to("meta").to_empty(device="cpu")).load_state_dict(layer.state_dict())
    return other


def replaced(layer, x):
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    return layer


def assigned(layer, x):
    (other := blank(layer)).load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return other


def swapped(layer, x):
    """Load a state in torch's mode that exchanges the contents of parameters."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return reloaded(layer, x)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def negated(tensor):
    """Return a view with the same numbers that torch has yet to negate."""
    view = torch.complex(tensor, -tensor).conj().imag
    assert view.is_neg()
    return view


def offloaded(layer, x):
    def call(x):
        with torch.autograd.graph.save_on_cpu():
            return layer(x)

    return call


def averaged(layer, x):
    (model := AveragedModel(blank(layer))).update_parameters(layer)
    return model


VARIANTS = {  # layer, example input -> a module of the same parameters, or a function that calls the layer
    "copy": lambda layer, x: copy.copy(layer),
    "pickle": lambda layer, x: pickle.loads(pickle.dumps(layer)),
    "deepcopy of a pickle": lambda layer, x: copy.deepcopy(pickle.loads(pickle.dumps(layer))),
    "torch.save": lambda layer, x: through_bytes(layer, torch.save, functools.partial(torch.load, weights_only=False)),
    "state_dict": reloaded,
    "load_state_dict(assign=True)": assigned,
    "load_state_dict, swapping": swapped,
    "another parameter": replaced,
    "to float64 and back": lambda layer, x: layer.double().float(),
    "share_memory": lambda layer, x: layer.share_memory(),
    "requires_grad_": lambda layer, x: layer.requires_grad_(False).requires_grad_(),
    "train and eval": lambda layer, x: layer.eval().train(),
    "meta and to_empty": through_meta,
    "functional_call": lambda layer, x: functools.partial(
        functional_call, blank(layer), dict(layer.named_parameters())
    ),
    "checkpoint": lambda layer, x: functools.partial(checkpoint, layer, use_reentrant=False),
    "save_on_cpu": offloaded,
    "not contiguous": lambda layer, x: lambda x: layer(torch.stack([x, x + 1], -1)[..., 0]),
    "transposed": lambda layer, x: lambda x: layer(x.transpose(-1, -2).contiguous().transpose(-1, -2)),
    "negated view": lambda layer, x: (
        lambda x: functional_call(layer, {name: negated(p) for name, p in layer.named_parameters()}, negated(x))
    ),
    "AveragedModel": averaged,
    "compile": compiled,
    "fx": lambda layer, x: torch.fx.symbolic_trace(layer),
    "export": exported,
    "jit.trace": lambda layer, x: through_bytes(torch.jit.trace(layer, (x,)), torch.jit.save, torch.jit.load),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@layers
def test_the_numbers_are_the_eager_ones(make, shape, variant):
    layer, x = pair(make, shape)
    expected = results(layer, layer.parameters(), x)
    call = variant(layer, x)
    found = results(call, (call if isinstance(call, nn.Module) else layer).parameters(), x)
    assert_same(found, expected)
    if isinstance(call, Adder):  # the options, and the mark by which AdaptiveLR finds the weight
        assert (call.grad, call.recenter, repr(call)) == (layer.grad, layer.recenter, repr(layer))
        assert [name for name, p in call.named_parameters() if getattr(p, "adder", False)] == ["weight"]


@layers
def test_no_grad_and_inference_mode(make, shape):
    layer, x = pair(make, shape)
    expected = layer(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = layer(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)


@layers
def test_gradients_of_the_input_alone_and_of_the_weight_alone(make, shape):
    layer, x = pair(make, shape)
    _, dx, dw, *_ = results(layer, layer.parameters(), x)
    for wanted, expected in (("input", dx), ("weight", dw)):
        layer.zero_grad()
        layer.requires_grad_(False).weight.requires_grad_(wanted == "weight")
        y = layer(one := x.clone().requires_grad_(wanted == "input"))
        y.backward(numbers(y.shape, 1.0))
        found = [t.grad for t in (one, *layer.parameters()) if t.grad is not None]
        assert_same(found, [expected])


@layers
def test_accumulated_gradients_are_those_of_the_whole_batch(make, shape):
    layer, x = pair(make, shape)
    y, _, *expected = results(layer, layer.parameters(), x)
    layer.zero_grad()
    for part, grad in zip(x.split(1), numbers(y.shape, 1.0).split(1), strict=True):
        layer(part).backward(grad)
    assert_same([p.grad for p in layer.parameters()], expected)


@layers
def test_hooks_see_the_output_and_every_gradient(make, shape):
    layer, x = pair(make, shape)
    y, *expected = results(layer, layer.parameters(), x)
    seen = {}
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    layer.register_forward_hook(lambda module, inputs, output: seen.update(input=inputs[0], output=output.detach()))
    layer.register_full_backward_hook(lambda module, of_input, of_output: seen.update(dx=of_input[0], dy=of_output[0]))
    for name, parameter in layer.named_parameters():
        parameter.register_hook(functools.partial(lambda name, grad: seen.update({name: grad}), name))
    results(layer, layer.parameters(), x / 2)
    assert_same([seen["input"], seen["output"], seen["dy"]], [x, y, numbers(y.shape, 1.0)])
    assert_same([seen["dx"], *(seen[name] for name, _ in layer.named_parameters())], expected)


@pytest.mark.parametrize("case", [name for name, (_, shape) in LAYERS.items() if len(shape) > 3])
def test_channels_last_is_kept(case):
    layer, x = pair(*LAYERS[case])
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    expected = results(layer, layer.parameters(), x)
    layer.to(memory_format=last)
    found = results(layer, layer.parameters(), x.to(memory_format=last))
    assert_same(found, expected)
    y, dx, dw, *_ = found
    assert all(t.is_contiguous(memory_format=last) for t in (y, dx, dw, layer.weight))


@layers
def test_device_and_dtype(make, shape):
    layer = make(device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    y = layer(torch.empty(shape, device="meta", dtype=torch.float64))
    layer.to_empty(device="cpu").reset_parameters()
    found = layer(numbers(shape).double())
    assert (y.shape, y.dtype) == (found.shape, found.dtype)
    assert found.isfinite().all()
    skipped = torch.nn.utils.skip_init(make.func, *make.args, **make.keywords)
    skipped.load_state_dict(layer.float().state_dict())
    assert torch.equal(skipped(numbers(shape)), layer(numbers(shape)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@layers
def test_autocast_computes_in_float32(make, shape, dtype):
    """Test that outputs stay float32, or are rounded once if small, and that a gradient has the dtype of its tensor."""
    layer, x = pair(make, shape)
    small = getattr(layer, "recenter", False)
    y, dx, *expected = results(layer, layer.parameters(), x)
    for narrow in (x, x.to(dtype)):
        with torch.autocast("cpu", dtype):
            found = results(layer, layer.parameters(), narrow)
        assert_same(found, [y.to(dtype) if small else y, dx.to(narrow.dtype), *expected])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@layers
def test_gradient_scaler(make, shape, dtype):
    """Test that a loss scale, a power of two, changes no bit of a step."""
    layer, x = pair(make, shape)
    y, _, *gradients = results(layer, layer.parameters(), x)
    expected = [p.detach() - 0.5 * grad for p, grad in zip(layer.parameters(), gradients, strict=True)]
    layer.zero_grad()
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.5), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = (layer(x) * numbers(y.shape, 1.0)).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert_same([p.detach() for p in layer.parameters()], expected)


def loss(layer, parameters, x, grad):
    return (functional_call(layer, parameters, (x,)) * grad).sum()


def detached(layer):
    return {name: p.detach() for name, p in layer.named_parameters()}


@layers
def test_func_grad_is_backward(make, shape):
    layer, x = pair(make, shape)
    y, *expected = results(layer, layer.parameters(), x)
    of_layer = torch.func.grad(functools.partial(loss, layer), argnums=(0, 1))
    of_parameters, of_input = of_layer(detached(layer), x, numbers(y.shape, 1.0))
    assert_same([of_input, *of_parameters.values()], expected)


@layers
def test_gradient_of_each_sample(make, shape):
    layer, x = pair(make, shape)
    grads = numbers(layer(x).shape, 1.0)
    of_sample = torch.func.grad(lambda parameters, one, grad: loss(layer, parameters, one[None], grad[None]))
    found = torch.func.vmap(of_sample, (None, 0, 0))(detached(layer), x, grads)
    for i in range(len(x)):
        layer.zero_grad()
        layer(x[i : i + 1]).backward(grads[i : i + 1])
        assert_same([of_all[i] for of_all in found.values()], [p.grad for p in layer.parameters()])


@pytest.mark.parametrize("separate_inputs", [False, True])
@pytest.mark.parametrize("name", [name for name in LAYERS if "int8" not in name])  # whose steps all members share
def test_ensemble_by_vmap(name, separate_inputs):
    """Test several layers of one shape as one, on the same input or each on its own."""
    make, shape = LAYERS[name]
    members = [build(make), build(make), build(make)]
    for k, member in enumerate(members):
        member.weight.data += k
    stacked, _ = torch.func.stack_module_state(members)
    inputs = torch.stack([numbers(shape, seed=k * separate_inputs) for k in range(3)]).requires_grad_()
    call = torch.func.vmap(functools.partial(functional_call, members[0]), (0, 0 if separate_inputs else None))
    y = call(stacked, inputs if separate_inputs else inputs[0])
    y.backward(numbers(y.shape, 1.0))
    for k, member in enumerate(members):
        one = member(inputs[k].detach())
        one.backward(numbers(y.shape, 1.0)[k])
        assert torch.equal(y[k], one)
        gradients = [stacked[name].grad[k] for name, _ in member.named_parameters()]
        assert_same(gradients, [p.grad for p in member.parameters()])


@layers
def test_jacobian_by_rows(make, shape):
    layer, x = pair(make, (1, *shape[1:]))
    jacobian = torch.func.jacrev(layer)(x)
    x.requires_grad_()
    y = layer(x)
    rows = [torch.autograd.grad(y, x, row.view_as(y), retain_graph=True)[0] for row in torch.eye(y.numel())]
    assert torch.equal(jacobian, torch.stack(rows).view_as(jacobian))


REFUSED = {  # a derivative of the gradient rule, or along a direction: there is none
    "backward of backward": lambda layer, x: (
        torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)[0].sum().backward()
    ),
    "grad of grad": lambda layer, x: torch.func.grad(
        lambda w: torch.func.grad(lambda w: functional_call(layer, {"weight": w}, (x,)).square().sum())(w).sum()
    )(layer.weight.detach()),
    "hessian": lambda layer, x: torch.func.hessian(lambda x: layer(x).square().sum())(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
@layers
def test_refused(make, shape, call):
    with pytest.raises((RuntimeError, NotImplementedError), match=r"once_differentiable|no derivative|jvp"):
        call(*pair(make, (1, *shape[1:])))


class Doubled(nn.Module):
    """Parametrize a weight as twice a parameter."""

    def forward(self, parameter):
        return parameter * 2


CHANGES = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@layers
def test_weight_made_of_other_parameters(make, shape, change):
    """Test that the numbers are those of a layer with that weight, and that the gradient reaches its parameters."""
    layer, x = pair(make, shape)
    change(layer)
    layer.eval()  # the power iteration of spectral_norm stands still
    sources = [p for name, p in layer.named_parameters() if name != "bias"]
    plain = make().eval()
    plain.load_state_dict({"weight": layer.weight} | {k: v for k, v in layer.named_parameters() if k == "bias"})
    y, dx, dw, *_ = results(plain, plain.parameters(), x)
    expected = [y, dx, *torch.autograd.grad(layer.weight, sources, dw)]
    assert_same(results(layer, sources, x), expected)
    state = copy.deepcopy(layer.train().state_dict())
    for _ in range(2):
        if len(sources) == 1:  # the filters themselves
            assert hasattr(sources[0], "adder") == isinstance(layer, Adder)
        layer.to(torch.float64).to(torch.float32)
        assert_same([*layer.state_dict().values()], [*state.values()])


# The operators


class Calls(TorchDispatchMode):
    """Record the calls of the project's operators."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "torchadder":
            self.kept.append((function, [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]))
        return function(*args, **(kwargs or {}))


def calls(make, shape):
    layer, x = pair(make, shape)
    with Calls() as mode:
        results(layer, layer.parameters(), x)
    return mode.kept


SAME_CALLS = {"conv2d", "conv2d, same", "conv2d, reflect", "linear", "binary conv2d, groups, same"}  # as other layers


@pytest.mark.parametrize("case", [name for name in LAYERS if name not in SAME_CALLS])
def test_opcheck(case):
    for operator, args in calls(*LAYERS[case]):
        torch.library.opcheck(operator, args)
        if "grad" not in operator.name():  # the gradients of a layer have no derivative
            args = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
            torch.library.opcheck(operator, args)


def test_every_operator_is_checked_and_seen_by_the_profiler():
    registered = {f"torchadder::{name}" for name in torch.ops.torchadder}
    assert {operator.name() for row in LAYERS.values() for operator, _ in calls(*row)} == registered
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for case in ("conv2d", "binary conv2d"):
            layer, x = pair(*LAYERS[case])
            results(layer, layer.parameters(), x)
    assert {event.key for event in profile.key_averages() if event.key.startswith("torchadder::")} == registered


def test_inductor():
    """Test one graph with every operator, forward and backward, for two sizes of the batch."""
    net = nn.Sequential(
        build(functools.partial(AdderConv2d, 2, 4, 3, recenter=True)),
        nn.ReLU(),
        build(functools.partial(BinaryConv2d, 4, 3, 2)),
        nn.Flatten(),
        build(functools.partial(AdderLinear, 48, 5, bias=False)),
    )
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=True)
    for n in (4, 3):
        x = numbers((n, 2, 7, 7))
        assert_same(results(compiled, compiled.parameters(), x), results(net, net.parameters(), x))
