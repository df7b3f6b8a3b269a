"""Test AdaptiveLR: the rescaled gradient against the formula, and the same step with every route to a gradient."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, update_bn

from torchadder.errors import UserError
from torchadder.nn import AdderConv2d, AdderLinear
from torchadder.optim import AdaptiveLR, IncreasedLR


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        AdderConv2d(2, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        AdderLinear(3 * 3 * 3, 5, bias=False),
        nn.Linear(5, 4),
    )


def batch(n=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 5, 5, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def adder_weights(net):
    return [m.weight for m in net if isinstance(m, AdderConv2d | AdderLinear)]


def update(grad, eta=0.2):
    """Return what a step of SGD at learning rate 1 subtracts from a weight with this gradient."""
    weight = nn.Parameter(torch.zeros_like(grad))
    weight.grad = grad.clone()
    AdaptiveLR(optimizer := torch.optim.SGD([weight], lr=1.0), eta, params=[weight])
    optimizer.step()
    return -weight.detach()


@pytest.mark.parametrize("eta", [0.2, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (5, 3, 2, 2)])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_gradient_equals_equation_13(shape, eta, size):
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * size
    found = update(grad, eta)
    expected = eta * math.sqrt(grad.numel()) / max(grad.double().norm().item(), 1e-12) * grad.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert found.norm().item() == pytest.approx(eta * math.sqrt(grad.numel()), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0]),  # a zero gradient stays zero
        ([1e-13, 0.0], [0.2 * math.sqrt(2) * 0.1, 0.0]),  # a norm below 1e-12 counts as 1e-12
        ([math.nan, 1.0], [math.nan, math.nan]),
        ([math.inf, 1.0], [math.nan, 0.0]),
    ],
)
def test_extreme_gradients(values, expected):
    torch.testing.assert_close(update(torch.tensor(values)), torch.tensor(expected), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_scaled_in_float32_or_wider(dtype):
    grad = torch.linspace(-3e-6, 4e-6, 1000).to(dtype)  # in float16 the squares underflow and the factor overflows
    expected = 0.2 * math.sqrt(1000) / grad.double().norm() * grad.double()
    rtol = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(update(grad).double(), expected, rtol=rtol, atol=1e-7)


def test_weight_decay_and_momentum_see_the_rescaled_gradient():
    start, grad = torch.tensor([3.0, -4.0]), torch.tensor([0.3, 0.4])
    weight = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    AdaptiveLR(optimizer, params=[weight])
    step = 0.2 * math.sqrt(2) / 0.5 * grad
    value, velocity = start.clone(), torch.zeros(2)
    for _ in range(3):
        weight.grad = grad.clone()
        optimizer.step()
        velocity = 0.9 * velocity + step + 0.01 * value
        value = value - 0.1 * velocity
        torch.testing.assert_close(weight.detach(), value)


def test_only_adder_weights_change():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    AdaptiveLR(optimizer)
    F.cross_entropy(net(batch()[0]), batch()[1]).backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p.grad, before[name])}
    assert changed == {"0.weight", "4.weight"}


OPTIMIZERS = {  # with an epsilon that lets them see the size of a gradient
    "SGD": (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.01, nesterov=True, foreach=False)),
    "SGD, foreach": (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.01, foreach=True)),
    "SGD, fused": (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.01, fused=True)),
    "SGD, maximize": (torch.optim.SGD, dict(maximize=True)),
    "Adam": (torch.optim.Adam, dict(foreach=False, amsgrad=True, eps=0.1)),
    "Adam, foreach": (torch.optim.Adam, dict(foreach=True, eps=0.1)),
    "AdamW": (torch.optim.AdamW, dict(foreach=False, eps=0.1)),
    "AdamW, foreach": (torch.optim.AdamW, dict(foreach=True, eps=0.1)),
    "AdamW, fused": (torch.optim.AdamW, dict(fused=True, eps=0.1)),
    "RMSprop": (torch.optim.RMSprop, dict(momentum=0.9, eps=0.1)),
    "Adagrad": (torch.optim.Adagrad, dict(eps=0.1)),
}


STEPS = {  # how a step gets its gradients from a function that computes them
    "no closure": lambda optimizer, closure: closure() and optimizer.step(),
    "closure=None": lambda optimizer, closure: closure() and optimizer.step(closure=None),
    "closure": lambda optimizer, closure: optimizer.step(closure),
    "closure=closure": lambda optimizer, closure: optimizer.step(closure=closure),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_every_optimizer_steps_on_the_rescaled_gradient(kind, options, step):
    """Test three steps against the same optimizer on gradients that were rescaled by hand (eq. 13)."""
    nets, (images, labels) = [small_net().double(), small_net().double()], batch()
    optimizers = [
        kind([{"params": net[:4].parameters(), "lr": 0.02}, {"params": net[4:].parameters()}], lr=0.01, **options)
        for net in nets
    ]
    AdaptiveLR(optimizers[0])
    losses = []

    def closure(net, optimizer):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(net(images.double()), labels))
        losses[-1].backward()
        return losses[-1]

    for _ in range(3):
        found = step(optimizers[0], lambda: closure(nets[0], optimizers[0]))
        assert found is None or found is losses[-1]
        closure(nets[1], optimizers[1])
        for weight in adder_weights(nets[1]):
            weight.grad *= 0.2 * math.sqrt(weight.numel()) / weight.grad.norm()
        optimizers[1].step()
    assert len(losses) == 6
    torch.testing.assert_close(*(net.state_dict() for net in nets), rtol=1e-9, atol=1e-10)


def test_missing_gradient_is_skipped():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    AdaptiveLR(optimizer)
    optimizer.step()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(  # tests/test_compatibility.py has the marks of single layers after every change
    "change",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: net.to(torch.float64),
        lambda net: net.to(memory_format=torch.channels_last),
    ],
)
def test_adder_weights_are_found_after(change):
    net = change(small_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    AdaptiveLR(optimizer)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for weight in adder_weights(net):
        torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.2))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda trainer: pickle.loads(pickle.dumps(trainer))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize(("chosen", "removed"), [(False, False), (True, False), (True, True)])
def test_a_copy_beside_its_optimizer_rescales(copied, chosen, removed):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    rates = AdaptiveLR(optimizer, params=adder_weights(net) if chosen else None)
    if removed:
        rates.remove()
    net, optimizer, _ = copied((net, optimizer, rates))
    net[4].weight.grad = torch.ones_like(net[4].weight)
    optimizer.step()
    torch.testing.assert_close(net[4].weight.grad, torch.full_like(net[4].weight, 1.0 if removed else 0.2))


def test_weights_of_a_group_added_later_are_found():
    net = small_net()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.0)
    AdaptiveLR(optimizer)
    optimizer.add_param_group({"params": list(net[4].parameters())})
    net[4].weight.grad = torch.ones_like(net[4].weight)
    optimizer.step()
    torch.testing.assert_close(net[4].weight.grad, torch.full_like(net[4].weight, 0.2))


@pytest.mark.parametrize("kind", [AdaptiveLR, IncreasedLR])
def test_a_later_rule_replaces_that_of_the_same_weights(kind):
    changes = []
    for earlier in ([], [AdaptiveLR], [IncreasedLR, IncreasedLR]):
        torch.manual_seed(0)
        net = small_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        before = adder_weights(net)[0].clone()
        for other in earlier:
            other(optimizer)
        kind(optimizer)
        net(batch()[0]).square().mean().backward()
        optimizer.step()
        changes.append(adder_weights(net)[0] - before)
    assert changes[0].any()
    assert torch.equal(changes[0], changes[1])
    assert torch.equal(changes[0], changes[2])


def test_rules_of_some_of_the_same_weights_are_refused():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = AdaptiveLR(optimizer, params=adder_weights(net)[:1])
    with pytest.raises(UserError, match=r"^1 of the weights have a rule already: call remove\(\) of that AdaptiveLR"):
        IncreasedLR(optimizer)
    first.remove()
    IncreasedLR(optimizer)


def test_removed_hook_leaves_gradients_alone():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    AdaptiveLR(optimizer := torch.optim.SGD([weight], lr=0.0), params=[weight]).remove()
    optimizer.step()
    assert torch.equal(weight.grad, torch.ones(3))


@pytest.mark.parametrize(("make", "state"), [(AdaptiveLR, {"eta": 0.07}), (IncreasedLR, {"factor": 7.0})])
def test_state_survives_a_checkpoint(make, state):
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    first = make(optimizer, *state.values())
    torch.save(first.state_dict(), file := io.BytesIO())
    file.seek(0)
    first.remove()
    second = make(optimizer)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.state_dict() == state


def test_increased_lr_scales_the_gradient_and_not_the_decay():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
    IncreasedLR(optimizer, 100.0, params=[weight])
    weight.grad = torch.tensor([0.01])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.0 - 0.1 * (100 * 0.01 + 0.5 * 2.0)]))


REFUSED = [  # call -> the words that the message must contain
    (lambda sgd: AdaptiveLR(sgd), "no adder weight"),
    (lambda sgd: IncreasedLR(sgd), "no adder weight"),
    (lambda sgd: AdaptiveLR(sgd, params=[]), "no adder weight"),
    (lambda sgd: AdaptiveLR(sgd, params=[nn.Parameter(torch.ones(1))]), "not in the optimizer"),
    (lambda sgd: AdaptiveLR(sgd, eta=0), "eta"),
    (lambda sgd: AdaptiveLR(sgd, eta=math.nan), "eta"),
    (lambda sgd: IncreasedLR(sgd, factor=-1), "factor"),
    (lambda sgd: AdaptiveLR(sgd, params=sgd.param_groups[0]["params"]).load_state_dict({"eta": -1}), "eta=-1"),
    (lambda sgd: AdaptiveLR(sgd, eta="0.1"), "eta='0.1': expected a number"),
    (lambda sgd: AdaptiveLR(sgd, params=sgd.param_groups[0]["params"][0]), "params is a tensor: expected several"),
    (lambda sgd: AdaptiveLR(small_net()), "optimizer is of type Sequential: expected the torch optimizer itself"),
    (lambda sgd: AdaptiveLR(Wrapper(sgd)), "optimizer is of type Wrapper: expected the torch optimizer itself, before"),
]


class Wrapper(torch.optim.Optimizer):
    """Wrap an optimizer as accelerate does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_lbfgs_is_refused():
    with pytest.raises(UserError, match="does not work with LBFGS"):
        AdaptiveLR(torch.optim.LBFGS(small_net().parameters()))


INITIALISATIONS = {  # what is done to all convolutions and linear layers -> words of the warning at the first step
    "none": (lambda weight: weight, None),
    "kaiming": (nn.init.kaiming_normal_, "2 of 2 adder weights have a root mean square below 0.5 .the smallest 0.3"),
    "xavier": (nn.init.xavier_uniform_, "2 of 2 adder weights"),
    "trained": (lambda weight: weight.mul_(5.0), None),
    "one small layer": (lambda weight: weight.mul_(0.1 if weight.dim() == 4 else 1), "1 of 2 adder weights"),
}


@pytest.mark.parametrize(("init", "words"), INITIALISATIONS.values(), ids=INITIALISATIONS.keys())
def test_filters_as_small_as_a_cnn_s_are_warned_of_once(init, words):
    net = small_net()
    AdaptiveLR(optimizer := torch.optim.SGD(net.parameters(), lr=0.1))
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                init(layer.weight)
    if words is None:
        optimizer.step()
    else:
        with pytest.warns(UserWarning, match=words):
            optimizer.step()
    optimizer.step()  # a second warning would be an error


# The step of one plain batch, by other routes to the same mean gradient. Batch normalisation is in evaluation mode,
# because its statistics depend on the parts of a batch.


def plain_step(net, n=8, **sgd):
    net.eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, **sgd)
    AdaptiveLR(optimizer)
    return optimizer, *batch(n)


def expected_weights():
    net = small_net()
    optimizer, images, labels = plain_step(net)
    F.cross_entropy(net(images), labels).backward()
    optimizer.step()
    return net.state_dict()


def test_four_accumulated_parts_give_the_plain_step():
    net = small_net()
    optimizer, images, labels = plain_step(net)
    for part, target in zip(images.chunk(4), labels.chunk(4), strict=True):
        (F.cross_entropy(net(part), target) / 4).backward()
    optimizer.step()
    torch.testing.assert_close(net.state_dict(), expected_weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_loss_scale_gives_the_plain_step(fused, explicit):
    net = small_net()
    optimizer, images, labels = plain_step(net, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(F.cross_entropy(net(images), labels)).backward()
    if explicit:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(net.state_dict(), expected_weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaler_still_sees_infinity(fused):
    net = small_net()
    optimizer, images, labels = plain_step(net, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(F.cross_entropy(net(images), labels) * 1e38).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(net.state_dict(), small_net().eval().state_dict(), rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**15


def test_average_of_weights_is_that_of_any_network():
    """Test AveragedModel and update_bn, and that the adder weights of the copy are marked."""
    net = small_net()
    average = AveragedModel(net)
    average.update_parameters(net)
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    average.update_parameters(net)
    expected = small_net()
    with torch.no_grad():
        for p in expected.parameters():
            p += 0.5
    for model in (average, expected):
        update_bn(batch()[0].split(4), model)
    torch.testing.assert_close(average.module.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-5)
    assert all(weight.adder for weight in adder_weights(average.module))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weight_made_of_other_parameters(norm):
    """Test that weight_norm's two parameters, which are no filters, have to be named, and spectral_norm's one not."""
    net = nn.Sequential(norm(AdderLinear(5, 4, bias=False)))
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    if len(parameters) > 1:
        with pytest.raises(ValueError, match="no adder weight"):
            AdaptiveLR(optimizer)
    AdaptiveLR(optimizer, params=parameters if len(parameters) > 1 else None)
    net(torch.randn(3, 5)).square().sum().backward()
    optimizer.step()
    for p in parameters:
        assert p.grad.norm().item() == pytest.approx(0.2 * math.sqrt(p.numel()), rel=1e-5)
    parametrize.remove_parametrizations(net[0], "weight")
    assert net[0].weight.adder
