"""Open a trained network by the name that a command takes: a checkpoint, or a function of the user and its weights."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from torch import nn

from torchadder.errors import UserError, in_one_line, shortened
from torchadder.models.checkpoint import Checkpoint, compare_states, counters, read_checkpoint
from torchadder.models.state_dict import find_state, read_file, with_plain_names
from torchadder.nn.adder import SMALL, Adder, root_mean_square


def open_trained(name: str, weights: Path | None = None) -> tuple[nn.Module, Checkpoint]:
    """Return a network in evaluation mode, and the description of its checkpoint.

    ``name`` is a checkpoint, as load_checkpoint takes it, or "package.module:function". The function is called without
    arguments and returns the network, whose state dict is in the file ``weights``.

    Raises UserError as load_checkpoint and build_network, and where the weights do not fit the network.
    """
    if not is_function(name):
        if weights is not None:
            raise UserError(f"weights={weights} is for package.module:function; {name} holds its own weights")
        return read_checkpoint(name)
    if weights is None:
        raise UserError(f"{name} builds a network without trained weights: name their file with weights=FILE")
    model = build_network(name)
    state = model.state_dict()
    zeros = counters(model)
    if not weights.is_file():
        raise UserError(f"weights={weights}: no such file")
    found, left_out = find_state(read_file(weights)[0], weights, state.keys())
    if left_out:
        warnings.warn(f"{weights}: left out {shortened(left_out)}", stacklevel=2)
    if state.keys() != {**zeros, **found}.keys():  # the two may differ in a name that all tensors share
        plain = dict(zip(with_plain_names(state), state, strict=True))
        found = {plain.get(key, key): tensor for key, tensor in found.items()}
    tensors = {**zeros, **found}
    if problems := compare_states(state, tensors):
        raise UserError(f"{weights} does not fit the network of {name}: {problems}")
    model.load_state_dict(tensors)
    _warn_of_the_operator(model, name, weights)
    return model.eval(), Checkpoint({"name": name})


def _warn_of_the_operator(model: nn.Module, name: str, weights: Path) -> None:
    """Warn where all adder filters are as small as those of a CNN, or all others as large as those of an AdderNet.

    A CNN and its AdderNet have the same names and shapes. The first convolution of an AdderNet stays one, so it does
    not count.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    adders = [layer for layer in layers if isinstance(layer, Adder)]
    small = {root_mean_square(layer.weight).item() < SMALL for layer in adders or layers[1:]}
    if adders and small == {True}:
        found, of, change = "adder layers", "small as those of a CNN", "leave torchadder.convert out of the function"
    elif not adders and small == {False}:
        found, of, change = (
            "no adder layers",
            "large as those of an AdderNet",
            "call torchadder.convert in the function",
        )
    else:
        return
    warnings.warn(f"{name} has {found}, but the filters in {weights} are as {of}: {change} if it is one", stacklevel=3)


def is_function(name: str) -> bool:
    """Return whether ``name`` has the form "package.module:function"."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name) is not None and not Path(name).exists()


def build_network(name: str) -> nn.Module:
    """Return the network that the function "package.module:function" builds; modules may lie in the working directory.

    Raises UserError where there is no such function, and where it fails or returns something else.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no part of our output
            found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: {error}; run the command in its folder, or install it") from error
    except AttributeError as error:
        raise UserError(f"{name}: {error}") from error
    try:
        with redirect_stdout(sys.stderr):
            model = found()
    except Exception as error:  # The user's own code may raise anything.
        reason = f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{name} does not run without arguments ({reason})") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} returns a value of type {type(model).__name__}, expected a torch.nn.Module")
    return model
