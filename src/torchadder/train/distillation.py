"""Train a network by distillation: it learns the outputs and features of a teacher network as well as the labels.

The method is that of "Kernel Based Progressive Distillation for Adder Neural Networks", Xu et al., NeurIPS 2020,
arXiv 2009.13044 (PKKD).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.errors import UserError
from torchadder.models import Model, create_model, list_models
from torchadder.models.checkpoint import LAST, read_checkpoint
from torchadder.models.lenet import LeNet5BN, LeNetPP
from torchadder.models.resnet import ResNet
from torchadder.models.vgg import VGGSmall

from .optimizer import build_optimizer, clip_gradients
from .recipe import Recipe

# the last batch normalisation of each stage; stage_ends finds those of a ResNet itself
_STAGE_ENDS: dict[type[nn.Module], tuple[str, ...]] = {
    LeNet5BN: ("bn1", "bn2", "bn3"),
    LeNetPP: ("stages.bn2", "stages.bn4", "stages.bn6"),
    VGGSmall: ("bn2", "bn4", "bn6"),
}


def stage_ends(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the last batch normalisation of each stage of ``model``, before activation and shortcut."""
    if not isinstance(model, ResNet):
        return _STAGE_ENDS.get(type(model), ())
    stages = [(name, stage) for name, stage in model.named_children() if name.startswith("layer")]
    last = [f"{name}.{len(stage) - 1}" for name, stage in stages]  # type: ignore[arg-type]  # a Sequential
    return tuple(f"{block}.{'bn3' if hasattr(model.get_submodule(block), 'bn3') else 'bn2'}" for block in last)


@contextmanager
def record_outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect the outputs of the modules ``names`` in a list, in order of execution, while ``model`` runs.

    The hooks are removed afterwards, so that copies and pickles of the model do not contain them.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output.clone())  # the activation may overwrite it in place

    hooks = [model.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Kernel(nn.Module):
    """Map the features y of a network to values that are compared with those of another network:

        g = exp(-|x - f|_1 / (2 sigma^2))  of an adder layer, y = -|x - f|_1     (Laplace)
        h = exp(-(x * f)   / (2 sigma^2))  of any other,      y = x * f          (Gaussian)

    y is taken after batch normalisation, because exp of the raw outputs of an adder layer would be 0. The scale of
    that normalisation acts as the width of the kernel in each channel; its shift multiplies g or h by a constant.

    The result is normalised by channel over the batch. This removes the constant. Together with the bound on the
    exponent it keeps training stable: a teacher whose running statistics are out of date can have features of any size.

    Shapes: (N, C, H, W) -> the same. sigma starts at 1 and is learned if ``learned``.
    """

    def __init__(self, op: str, channels: int, learned: bool):
        super().__init__()
        self.sign = 1 if op == "adder" else -1
        self.log_sigma = nn.Parameter(torch.zeros(()), requires_grad=learned)
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)

    def forward(self, y: Tensor) -> Tensor:
        exponent = y * (self.sign * torch.exp(-2 * self.log_sigma) / 2)
        return self.norm(torch.exp(exponent.clamp(max=4)))


class Alignment(nn.Module):
    """Compute the distance of a stage's features from the teacher's: mean((W g - h)^2), with W and g's sigma learned.

    h has no parameters to learn: two learned maps could make the distance 0 by mapping every input to 0.

    Shapes: (N, C_student, H, W), (N, C_teacher, H, W) -> ().
    """

    def __init__(self, student_op: str, student_channels: int, teacher_op: str, teacher_channels: int):
        super().__init__()
        self.student = Kernel(student_op, student_channels, learned=True)
        self.teacher = Kernel(teacher_op, teacher_channels, learned=False)
        self.map = nn.Linear(student_channels, teacher_channels, bias=False)

    def forward(self, feature: Tensor, target: Tensor) -> Tensor:
        mapped = torch.matmul(self.map.weight, self.student(feature).flatten(2))  # W as a 1x1 convolution
        return F.mse_loss(mapped, self.teacher(target).flatten(2))


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the mean over the images of T^2 KL(softmax(targets / T) || softmax(logits / T)).

    The factor T^2 makes the size of its gradient nearly independent of T.

    "Distilling the Knowledge in a Neural Network", Hinton et al., 2015, arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(targets / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Distiller(nn.Module):
    """Hold a teacher, the alignments of the student's features with the teacher's, and one optimiser for both.

    It adds this loss to the student's own; m counts the stages of the networks:

        logit_weight * soft_target_loss + feature_weight * sum_m alignment_m(student_m, teacher_m)

    The teacher is constant and in evaluation mode. With ``recipe.progressive`` it trains at the same time instead, from
    the labels alone and by the student's recipe, so that it is never far ahead of the student.

    Args:
        student: the network to be trained, on its device; it is not changed.
        teacher: the network to learn from; the distiller moves, trains and owns it.
        recipe: the student's recipe.
        digest: state_digest of the teacher before the run; None if its first weights are random.

    Raises UserError where features are compared (``recipe.feature_weight`` above 0) and their sizes differ.
    """

    def __init__(self, student: Model, teacher: Model, recipe: Recipe, digest: str | None = None):
        super().__init__()
        device = next(student.parameters()).device
        self.recipe, self.digest = recipe, digest
        self.teacher = teacher.to(device).requires_grad_(recipe.progressive).train(recipe.progressive)
        self.student_ends = stage_ends(student) if recipe.feature_weight else ()
        self.teacher_ends = stage_ends(teacher) if recipe.feature_weight else ()
        self.alignments = nn.ModuleList()
        if recipe.feature_weight:
            sizes = _feature_sizes(student, self.student_ends), _feature_sizes(teacher, self.teacher_ends)
            _check_stages(student, teacher, *sizes)
            ops = student.config["op"], teacher.config["op"]
            self.alignments.extend(Alignment(ops[0], s[0], ops[1], t[0]) for s, t in zip(*sizes, strict=True))
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self, recipe)

    def forward(self, student: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of ``student`` and the loss to add to that of the labels, in float32 or wider.

        Its backward pass also gives a progressive teacher the gradients of the teacher's own cross-entropy.
        """
        recipe = self.recipe
        with record_outputs(getattr(student, "module", student), self.student_ends) as features:  # DDP has .module
            logits = student(images)
        with torch.set_grad_enabled(recipe.progressive), record_outputs(self.teacher, self.teacher_ends) as targets:
            teacher_logits = self.teacher(images)
        with torch.autocast(images.device.type, enabled=False):
            loss = recipe.logit_weight * soft_target_loss(
                _wide(logits), _wide(teacher_logits.detach()), recipe.temperature
            )
            for align, feature, target in zip(self.alignments, features, targets, strict=True):
                loss = loss + recipe.feature_weight * align(_wide(feature), _wide(target.detach()))
            if recipe.progressive:
                own = F.cross_entropy(_wide(teacher_logits), labels, label_smoothing=recipe.label_smoothing)
                loss = loss + (own - own.detach())  # adds 0 to the loss, and the gradient of own to the backward pass
        return logits, loss

    def step(self, rate: float) -> None:
        """Update alignments and progressive teacher with learning rate ``rate``, and clear their gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clip_gradients(self, self.recipe)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def training_state(self) -> dict[str, Any]:
        """Return the state from which a run continues with the same numbers; a constant teacher is only a digest."""
        return {
            "digest": self.digest,
            "teacher": self.teacher.state_dict() if self.recipe.progressive else None,
            "alignments": self.alignments.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore ``training_state``. Raises UserError where it belongs to another teacher."""
        if state["digest"] != self.digest:
            was, now = (d[:12] if d else "random" for d in (state["digest"], self.digest))
            raise UserError(
                f"teacher={self.recipe.teacher} has other weights than when the run began (sha256 {was}, now {now}): "
                "restore them, or start a new run in another folder"
            )
        if self.recipe.progressive:
            self.teacher.load_state_dict(state["teacher"])
        self.alignments.load_state_dict(state["alignments"])
        self.optimizer.load_state_dict(state["optimizer"])


def build_distiller(student: Model, recipe: Recipe) -> Distiller | None:
    """Build the recipe's distiller for ``student``; None without a teacher.

    ``recipe.teacher`` is the name of a model (a CNN with random weights is built) or the path of a checkpoint. A run
    directory stands for the checkpoint of its last epoch.

    Raises UserError where the teacher cannot be read, has other images, classes or data than the student, is neither
    trained nor progressive, or has stages that do not fit (see Distiller).
    """
    if not recipe.teacher:
        return None
    given, config = f"teacher={recipe.teacher}", student.config
    path = Path(recipe.teacher)
    if recipe.teacher in list_models() and not path.exists():
        if not recipe.progressive:
            raise UserError(f"{given} is an untrained network: train it at the same time with progressive=True")
        fresh = create_model(recipe.teacher, "conv", num_classes=config["num_classes"], in_chans=config["in_chans"])
        _check_images(given, fresh, student)
        return Distiller(student, fresh, recipe)
    try:
        teacher, about = read_checkpoint(path / LAST if (path / LAST).is_file() else path, op="conv")
    except UserError as error:
        raise UserError(f"{given} cannot be read: {error}") from error
    _check_images(given, teacher, student)
    classes = teacher.config["num_classes"]
    if classes != config["num_classes"]:
        raise UserError(f"{given} has {classes} classes, this run has {config['num_classes']}: expected the same")
    if about.dataset is not None and _data_kind(about.dataset) != _data_kind(recipe.dataset):
        raise UserError(f"{given} was trained on {about.dataset}, this run is on {recipe.dataset}: expected the same")
    if recipe.progressive and teacher.config["op"] != "conv":
        raise UserError(f"progressive=True trains a CNN, {given} has op={teacher.config['op']}: leave it out")
    return Distiller(student, teacher, recipe, state_digest(teacher))


def state_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names and numbers in the state of ``model``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if its dtype is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _data_kind(name: str) -> str:
    """Return the name of a data set without the folder of its files, because the folder may have moved."""
    kind, _, _ = name.partition(":")
    return kind if kind in ("imagefolder", "wds") else name


def _check_images(given: str, teacher: Model, student: Model) -> None:
    expected, found = ("x".join(map(str, model.input_size)) for model in (student, teacher))
    if found != expected:
        raise UserError(f"{given} takes images of {found}, this run has images of {expected}: expected the same")


@torch.no_grad()
def _feature_sizes(model: Model, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Return (C, H, W) of each feature; ``model`` stays as it is."""
    training = model.training
    with record_outputs(model.eval(), names) as features:
        model(torch.zeros(1, *model.input_size, device=next(model.parameters()).device))
    model.train(training)
    return [tuple(feature.shape[1:]) for feature in features]


def _check_stages(
    student: Model, teacher: Model, sizes: list[tuple[int, ...]], teacher_sizes: list[tuple[int, ...]]
) -> None:
    planes, teacher_planes = ([size[1:] for size in each] for each in (sizes, teacher_sizes))
    if not planes or planes != teacher_planes:
        texts = (", ".join(f"{h}x{w}" for h, w in each) or "unknown" for each in (planes, teacher_planes))
        raise UserError(
            "the stages of {} and of the teacher, {}, differ in size ({}; {}): compare only the logits with "
            "feature_weight=0, or choose another teacher".format(student.config["name"], teacher.config["name"], *texts)
        )
