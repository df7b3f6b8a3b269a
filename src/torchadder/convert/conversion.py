"""Replace the layers of any network by their counterparts with another operator, and report what became of each."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from torchadder.errors import UserError, shortened
from torchadder.functional import DEFAULT_RULE, GradientRule
from torchadder.functional.adder import check_rule
from torchadder.nn import Adder, AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear
from torchadder.nn.adder import root_mean_square
from torchadder.nn.binary import Binary, BinaryConv2d, BinaryLinear

from .flow import Flow, find_flow, is_weighted

Filter = Callable[[str, nn.Module], bool]
Outcome = Literal["converted", "already", "kept", "left"]
Found = Literal["recorded", "traced", "defined"]


class Counterparts(NamedTuple):
    """Hold the classes of one layer with each of the three operators; None where there is no such layer."""

    conv: type[nn.Module]
    adder: type[nn.Module] | None
    binary: type[nn.Module] | None


OPS = Counterparts._fields
_COUNTERPARTS = {
    kind: row
    for row in (
        Counterparts(nn.Conv1d, AdderConv1d, None),
        Counterparts(nn.Conv2d, AdderConv2d, BinaryConv2d),
        Counterparts(nn.Conv3d, AdderConv3d, None),
        Counterparts(nn.Linear, AdderLinear, BinaryLinear),
    )
    for kind in row
    if kind is not None
}

_NORMALISATIONS: dict[type[nn.Module], type[nn.Module]] = {
    AdderConv1d: nn.BatchNorm1d,
    AdderConv2d: nn.BatchNorm2d,
    AdderConv3d: nn.BatchNorm3d,
    AdderLinear: nn.BatchNorm1d,
}

# torch's fused inference multiplies by linear1.weight and linear2.weight without calling the layers. It runs only where
# these attributes are true.
_FUSED = ((nn.TransformerEncoderLayer, "activation_relu_or_gelu"), (nn.TransformerEncoder, "use_nested_tensor"))

_SHARED = "shares its weight with"
_FOUND = {
    "recorded": "order of execution, recorded on the example input",
    "traced": "order of execution, traced by torch.fx",
    "defined": "order of definition, as the order of execution is not known",
}


@dataclass(frozen=True)
class Row:
    """Say what became of one layer, with the names of its class before and after.

    ``outcome``: "converted"; "already" of that class; "kept" by choice; "left" because it cannot be converted.
    """

    name: str
    before: str
    after: str
    outcome: Outcome
    note: str = ""


@dataclass(frozen=True)
class Conversion:
    """Report a conversion: rows in order of definition. ``str()`` is a table, ``to_dict()`` plain values.

    ``flow`` says how convert found the layers that run first and last and what follows each: "recorded" on the example
    input, "traced" by torch.fx, or "defined", from the order of definition. None where it was not needed.
    """

    model: str
    to: str
    flow: Found | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "to": self.to, "flow": self.flow, "layers": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        counts = Counter(row.outcome for row in self.rows)
        title = ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome) if counts[outcome])
        cells = [("layer", "was", "is"), *((row.name or "(model)", row.before, _result(row)) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        found = [] if self.flow is None else ["", _FOUND[self.flow]]
        return "\n".join([f"{self.model} to {self.to}: {title}", "", *table, *found])


def _result(row: Row) -> str:
    return f"{row.after if row.outcome == 'converted' else row.outcome}: {row.note}".removesuffix(": ")


def convert(
    module: nn.Module,
    to: Literal["adder", "binary", "conv"] = "adder",
    filter_fn: Filter | None = None,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = True,
    rescale: bool = False,
    normalize: bool = False,
    example_input: Any = None,
) -> nn.Module:
    """Replace the convolutions and linear layers of any module by adder layers, by binary layers, or the reverse.

        model = torchadder.convert(model)        # all except the first and the last layer
        print(model.conversion)                  # what became of each layer, and why

    The module is changed in place: each layer changes its class and nothing else. Parameters stay the same objects
    under the same names with the same bits, so that optimisers, tied weights, hooks, shared modules and state_dicts
    remain valid, and converting back gives the first network again, apart from the modules that ``normalize`` adds.
    Only nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Linear and their counterparts in torchadder.nn are replaced; subclasses,
    computed weights, weights shared with other layers and the like are left as they are, and the report names them.

    Train a converted network: a trained CNN is no trained AdderNet. Its filters are a good start with rescale=True.

    Args:
        module: any module; a single layer is converted, although it runs first and last.
        to: "adder", "binary" (2-d convolutions and linear layers only) or "conv".
        filter_fn: called with the dotted name and the layer, returns whether to convert it. Without it the layers that
            run first and last are kept as they are, as in the paper; to="conv" keeps none.
        grad, recenter: options of the adder layers, as in AdderConv2d. Here recenter is True by default: the mean of
            recentred outputs moves less, so that the running mean of a batch normalisation is right after fewer steps.
            The statistics of a network that was trained with raw outputs, such as the official ones, need False.
        rescale: scale the weight of each converted adder layer to a root mean square of 1, the initial one of adder
            layers. torch's convolutions start with smaller weights, which take an adder layer many steps to enlarge.
        normalize: add a batch normalisation after each adder layer that no normalisation follows. The module then has
            nn.Sequential(layer, norm) in the place of the layer: "conv.weight" becomes "conv.0.weight" in its
            state_dict, so load a pretrained CNN before. An AdderLinear then takes inputs (N, in_features) only.
        example_input: a tensor, a tuple of arguments or a dict of keyword arguments for the module, which then runs
            once, in evaluation mode, and is left as it was. This run gives the exact order of the layers.
            Without it torch.fx traces the module; where it cannot, the order of definition is taken.

    Returns the module, with a Conversion as its attribute ``conversion``.

    Warns of adder layers without a normalisation after them, of layers that do not run in evaluation mode, such as
    auxiliary heads, and of binary layers whose input is never negative.

    Raises TypeError for what is not an nn.Module, and UserError (a ValueError) for an unknown operator and where no
    layer can be converted. The module is then as it was.
    """
    _check(module, to, grad, rescale or normalize)
    network = _unwrapped(module)
    if normalize and is_weighted(network):
        kind = type(network).__name__
        raise UserError(f"normalize=True needs a network, got a single {kind}: convert nn.Sequential(layer, norm)")
    needs_flow = to != "conv" and not is_weighted(network)
    flow = find_flow(network, example_input) if needs_flow else None
    layers = {name: layer for name, layer in network.named_modules() if is_weighted(layer)}
    rows = _untied([_row(name, layer, to, flow, filter_fn) for name, layer in layers.items()], layers, to, network)
    if not any(row.outcome in ("converted", "already") for row in rows):
        raise UserError(f"{type(network).__name__} is not converted: {_why_none(rows, filter_fn)}")
    converted = {row.name: layers[row.name] for row in rows if row.outcome == "converted"}
    bare = _without_normalisation(rows, layers, to, flow)
    if flow is not None:
        _warn(converted, [] if normalize else bare, to, flow)
    for layer in converted.values():
        _change_class(layer, to, {"grad": grad, "recenter": recenter} if to == "adder" else {})
        if rescale:
            _rescale(layer.weight)
    for name in bare if normalize else ():
        added = _normalise(network, layers[name])
        rows = [replace(row, note=f"{added} added") if row.name == name else row for row in rows]
    _mark_and_guard(network)
    found = None if flow is None else flow.found
    module.conversion = Conversion(type(network).__name__, to, found, tuple(rows))  # type: ignore[assignment]
    return module


@torch.no_grad()
def _rescale(weight: Tensor) -> None:
    """Scale ``weight`` to a root mean square of 1; leave zeros as they are."""
    size = root_mean_square(weight)
    weight.div_(torch.where(size > 0, size, 1))


def _without_normalisation(rows: list[Row], layers: dict[str, nn.Module], to: str, flow: Flow | None) -> list[str]:
    """Return the names of the adder layers that no normalisation follows."""
    adder = [row.name for row in rows if row.outcome in ("converted", "already")] if to == "adder" else []
    return [name for name in adder if flow is not None and flow.lacks_normalisation(layers[name])]


def _normalise(network: nn.Module, layer: Any) -> str:
    """Put nn.Sequential(layer, norm) in the place of ``layer``, under all its names; return the class of the norm."""
    kind, weight = _NORMALISATIONS[type(layer)], layer.weight
    norm = kind(len(weight), device=weight.device, dtype=weight.dtype)
    block = nn.Sequential(layer, norm).train(layer.training)
    for name in [name for name, part in network.named_modules(remove_duplicate=False) if part is layer]:
        network.set_submodule(name, block)
    return kind.__name__


def _check(module: nn.Module, to: str, grad: GradientRule, has_options: bool) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"convert takes an nn.Module that is not scripted, got {type(module).__name__}")
    if to not in OPS:
        raise UserError(f"to={to} is unknown: expected one of {', '.join(OPS)}")
    check_rule(grad)
    if to != "adder" and (has_options or grad != DEFAULT_RULE):
        raise UserError(f"grad, rescale and normalize are options of adder layers: leave them out with to={to}")
    if not isinstance(getattr(module, "conversion", None), Conversion | None):
        kind = type(module).__name__
        raise UserError(f"{kind} has an attribute `conversion` of its own: call convert(nn.Sequential(model))[0]")


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside torch.compile's and the parallel wrappers, which share its layers."""
    parallel = isinstance(module, nn.DataParallel | DistributedDataParallel)
    # torch.compile has no public name for the module that it wraps; this one is a prefix of its state dict's keys
    inner = dict(module.named_children()).get("module" if parallel else "_orig_mod")
    return module if inner is None else _unwrapped(inner)


def _row(name: str, layer: nn.Module, to: str, flow: Flow | None, filter_fn: Filter | None) -> Row:
    """Decide what becomes of a layer. convert decides this for all layers before it changes the first one."""
    kind, target = type(layer).__name__, _counterpart(layer, to)
    ends = [] if flow is None else [end for end in ("first", "last") if layer is getattr(flow, end)]
    left = _why_left(layer, to)
    if left is None and flow is not None and flow.takes_weight(layer):
        left = "its weight is used without calling it"
    if left is not None or target is None:
        return Row(name, kind, kind, "left", left or "")
    if filter_fn is not None and not filter_fn(name, layer):
        return Row(name, kind, kind, "kept", "not chosen")
    if target is type(layer):
        return Row(name, kind, kind, "already")
    if filter_fn is None and ends:
        return Row(name, kind, kind, "kept", f"runs {' and '.join(ends)}")
    return Row(name, kind, target.__name__, "converted", "" if flow is None or flow.runs(layer) else "did not run")


def _untied(rows: list[Row], layers: dict[str, nn.Module], to: str, network: nn.Module) -> list[Row]:
    """Leave each layer that shares its weight with a part of another operator: one weight serves one operator."""
    becomes = {row.name for row in rows if row.outcome in ("converted", "already")}
    owners = {
        _memory(parameter): name or "(model)"
        for name, part in network.named_modules()
        if name not in becomes and (to != "conv" or isinstance(part, Adder | Binary))
        for parameter in part.parameters(recurse=False)
    }
    return [
        replace(row, after=row.before, outcome="left", note=f"{_SHARED} {owner}, which is not converted")
        if row.outcome == "converted" and (owner := owners.get(_memory(layers[row.name].weight)))
        else row
        for row in rows
    ]


def _memory(parameter: Any) -> int:
    """Return the address of the data, which parameters tied by ``.data`` share; where there is none, the object's."""
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return (parameter.data_ptr() if plain else 0) or id(parameter)


def _why_none(rows: list[Row], filter_fn: Filter | None) -> str:
    """Say in one line why no layer is converted."""
    kept = [row for row in rows if row.outcome == "kept"]
    tied = [row for row in rows if row.note.startswith(_SHARED)]
    if not rows:
        return "it has no convolution and no linear layer"
    if tied or not kept:
        return "; ".join(f"{row.name} ({row.before}): {row.note}" for row in (tied or rows)[:3])
    if filter_fn is not None:
        return f"filter_fn chose none of its {len(kept)} layers ({shortened([row.name for row in kept])})"
    left = "".join(f", {row.name} ({row.before}) is left: {row.note}" for row in rows if row.outcome == "left")
    return (
        f"the layers that run first and last are kept{left or ', and no other is a torch convolution or linear layer'}"
        "; filter_fn=lambda name, layer: True takes the kept ones too"
    )


def _warn(layers: dict[str, nn.Module], bare: list[str], to: str, flow: Flow) -> None:
    unsure = " (judged by the order of definition; pass example_input to be certain)" * (flow.found == "defined")
    if bare:
        text = (
            f"no normalisation follows {len(bare)} of the adder layers: {shortened(bare)}{unsure}; the network may "
            "not learn: add one after each with normalize=True, or exclude them with filter_fn"
        )
        warnings.warn(text, stacklevel=3)
    if idle := [name for name, layer in layers.items() if not flow.runs(layer)]:
        text = (
            f"{len(idle)} of the {to} layers did not run while their order was found: {shortened(idle)}; whether a "
            "normalisation follows each is not known: check that, or exclude them with filter_fn"
        )
        warnings.warn(text, stacklevel=3)
    blind = [name for name, layer in layers.items() if to == "binary" and flow.never_sees_negatives(layer)]
    if blind:
        text = (
            f"{len(blind)} of the binary layers see no negative input: {shortened(blind)}{unsure}; every sign is then "
            "+1: remove the ReLU before each, as the sign is the nonlinearity"
        )
        warnings.warn(text, stacklevel=3)


def _counterpart(layer: nn.Module, to: str) -> type[nn.Module] | None:
    """Return the class of the layer with operator ``to``; None for a subclass, and where there is none."""
    row = _COUNTERPARTS.get(type(layer))
    return None if row is None else getattr(row, to)


def _why_left(layer: nn.Module, to: str) -> str | None:
    """Say why the layer cannot be replaced by its counterpart; None where it can."""
    kind = type(layer)
    if isinstance(layer, LazyModuleMixin):
        return "it has no weight yet; run the model once first"
    if "forward" in vars(layer):
        return "its forward is replaced, as by hooks of other libraries; remove those first"
    if is_parametrized(layer):
        return "parametrised; remove the parametrisation first"
    base = next((base for base in kind.__mro__ if base in _COUNTERPARTS), None)
    if kind not in _COUNTERPARTS and base is not None:
        return f"a subclass of {base.__name__}; only torch's own layer is converted"
    if _counterpart(layer, to) is None:
        return f"no {to} counterpart"
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None:
        return "its weight is computed; remove weight_norm, spectral_norm or the pruning first"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if not weight.is_floating_point() or weight.layout != torch.strided:
        return f"its weight is {weight.dtype}, {weight.layout}"
    return None


def _change_class(layer: nn.Module, to: str, options: dict[str, Any]) -> None:
    """Give the layer its counterpart's class; parameters, hooks and all references to it stay."""
    for name in ("grad", "recenter"):
        vars(layer).pop(name, None)
    layer.__class__ = _counterpart(layer, to)  # type: ignore[assignment]
    vars(layer).update(options)
    vars(layer.weight).pop("adder", None)


def _mark_and_guard(module: nn.Module) -> None:
    """Mark the adder weights, and allow torch's fused inference only in parts without adder and binary layers."""
    for part in module.modules():
        if isinstance(part, Adder):
            part._mark()
        for kind, permission in _FUSED:
            if isinstance(part, kind) and hasattr(part, permission):
                saved = f"_{permission}_of_products"
                if any(isinstance(layer, Adder | Binary) for layer in part.modules()):
                    vars(part).setdefault(saved, getattr(part, permission))
                    setattr(part, permission, 0)
                elif saved in vars(part):
                    setattr(part, permission, vars(part).pop(saved))
