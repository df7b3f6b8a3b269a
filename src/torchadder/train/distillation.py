"""Distillation: a teacher network, and what the network in training is asked to learn from it.

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
from torchadder.train.optimizer import build_optimizer, clip_gradients
from torchadder.train.recipe import Recipe

_STAGE_ENDS: dict[type[nn.Module], tuple[str, ...]] = {
    LeNet5BN: ("bn1", "bn2", "bn3"),
    LeNetPP: ("stages.bn2", "stages.bn4", "stages.bn6"),
    VGGSmall: ("bn2", "bn4", "bn6"),
}


def stage_ends(model: nn.Module) -> tuple[str, ...]:
    """The names of the batch normalisations that end the stages of ``model``, before activation and shortcut."""
    if not isinstance(model, ResNet):
        return _STAGE_ENDS.get(type(model), ())
    stages = [(name, stage) for name, stage in model.named_children() if name.startswith("layer")]
    last = [f"{name}.{len(stage) - 1}" for name, stage in stages]  # type: ignore[arg-type]  # a Sequential
    return tuple(f"{block}.{'bn3' if hasattr(model.get_submodule(block), 'bn3') else 'bn2'}" for block in last)


@contextmanager
def outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Within, a forward pass of ``model`` appends the outputs of the modules ``names``, in order of execution.

    Nothing stays on the modules afterwards, so that no copy of the model carries it away.
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
    """What the features y of two networks are compared by, each with a kernel of its own:

        g = exp(-|x - f|_1 / (2 sigma^2))  of an adder layer, y = -|x - f|_1     (Laplace)
        h = exp(-(x * f)   / (2 sigma^2))  of any other,      y = x * f          (Gaussian)

    y comes here from a batch normalisation, since exp of an adder layer's raw outputs would be 0. In the kernel its
    scale is a width by channel, its shift a factor, which disappears as the result is normalised by channel over the
    batch. That keeps the map which learns from it stable, as does the bound on the exponent: the features of a teacher
    whose running statistics lag behind can be of any size.

    Shapes: (N, C, H, W) -> the same. sigma, 1 at first, is learned if ``learned``.
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
    """The distance of a stage's features from the teacher's: mean((W g - h)^2), with W and g's sigma learned.

    Nothing is learned on the teacher's side: two maps would bring the distance to 0 by mapping everything to 0.

    Shapes: (N, C_student, H, W), (N, C_teacher, H, W) -> ().
    """

    def __init__(self, student_op: str, student_channels: int, teacher_op: str, teacher_channels: int):
        super().__init__()
        self.student = Kernel(student_op, student_channels, learned=True)
        self.teacher = Kernel(teacher_op, teacher_channels, learned=False)
        self.map = nn.Linear(student_channels, teacher_channels, bias=False)

    def forward(self, feature: Tensor, target: Tensor) -> Tensor:
        mapped = torch.matmul(self.map.weight, self.student(feature).flatten(2))  # a 1x1 convolution
        return F.mse_loss(mapped, self.teacher(target).flatten(2))


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over the images of T^2 KL(softmax(targets / T) || softmax(logits / T)); its gradient hardly depends on T.

    "Distilling the Knowledge in a Neural Network", Hinton et al., 2015, arXiv 1503.02531.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(targets / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Distiller(nn.Module):
    """A teacher, the alignments of its features with a student's, and the optimiser of what of these learns.

    The loss that it adds to the student's is, with m for the stages of the networks,

        logit_weight * soft_target_loss + feature_weight * sum_m alignment_m(student_m, teacher_m)

    The teacher stays as it is, in evaluation mode. With ``recipe.progressive`` it learns along, from the labels
    alone, by the student's recipe: it is never far ahead.

    Args:
        student: the network to be trained, on its device; it is only looked at.
        teacher: the network to learn from; it is taken over.
        recipe: the student's.
        digest: what tells the teacher's first weights from others; None if they are fresh.

    Raises UserError where features are asked for and the stages of the two are not of the same sizes.
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
        """The logits of ``student``, and the loss to be added to theirs, in float32.

        Backward through it also gives a progressive teacher the gradients of its own cross-entropy.
        """
        recipe = self.recipe
        with outputs_of(getattr(student, "module", student), self.student_ends) as features:  # .module: of DDP
            logits = student(images)
        with torch.set_grad_enabled(recipe.progressive), outputs_of(self.teacher, self.teacher_ends) as targets:
            answers = self.teacher(images)
        with torch.autocast(images.device.type, enabled=False):
            loss = recipe.logit_weight * soft_target_loss(logits.float(), answers.detach().float(), recipe.temperature)
            for align, feature, target in zip(self.alignments, features, targets, strict=True):
                loss = loss + recipe.feature_weight * align(feature.float(), target.detach().float())
            if recipe.progressive:
                own = F.cross_entropy(answers.float(), labels, label_smoothing=recipe.label_smoothing)
                loss = loss + (own - own.detach())  # its gradient, not its value: the loss is the student's
        return logits, loss

    def step(self, rate: float) -> None:
        """Update alignments and progressive teacher by their gradients, at the ordinary rate; clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clip_gradients(self, self.recipe)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def training_state(self) -> dict[str, Any]:
        """What has to be saved for a run to continue to the same numbers; a fixed teacher only by its digest."""
        return {
            "digest": self.digest,
            "teacher": self.teacher.state_dict() if self.recipe.progressive else None,
            "alignments": self.alignments.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from ``training_state``. Raises UserError where that is of another teacher."""
        if state["digest"] != self.digest:
            was, now = (d[:12] if d else "fresh" for d in (state["digest"], self.digest))
            raise UserError(
                f"--teacher {self.recipe.teacher} has other weights than when the run began (sha256 {was}, now {now}): "
                "put those back, or start a new run with --out"
            )
        if self.recipe.progressive:
            self.teacher.load_state_dict(state["teacher"])
        self.alignments.load_state_dict(state["alignments"])
        self.optimizer.load_state_dict(state["optimizer"])


def distiller_of(student: Model, recipe: Recipe) -> Distiller | None:
    """The recipe's distiller for ``student``; None without a teacher.

    A teacher that is the name of a model is a fresh CNN of that name; any other is read as a checkpoint, of a run
    the last epoch's.

    Raises UserError for a teacher that cannot be read, one of another task than the student's, one without training
    that is not to be trained either, and one that does not fit (Distiller).
    """
    if not recipe.teacher:
        return None
    given, config = f"--teacher {recipe.teacher}", student.config
    path = Path(recipe.teacher)
    if recipe.teacher in list_models() and not path.exists():
        if not recipe.progressive:
            raise UserError(f"{given} is a network without training: let it learn along with --progressive")
        fresh = create_model(recipe.teacher, "conv", num_classes=config["num_classes"], in_chans=config["in_chans"])
        _check_images(given, fresh, student)
        return Distiller(student, fresh, recipe)
    try:
        teacher, about = read_checkpoint(path / LAST if (path / LAST).is_file() else path, op="conv")
    except UserError as error:
        raise UserError(f"--teacher: {error}") from error
    _check_images(given, teacher, student)
    classes = teacher.config["num_classes"]
    if classes != config["num_classes"]:
        raise UserError(f"{given} tells {classes} classes apart, this run {config['num_classes']}: expected the same")
    if about.dataset is not None and _data(about.dataset) != _data(recipe.dataset):
        raise UserError(f"{given} was trained on {about.dataset}, this run is on {recipe.dataset}: expected the same")
    if recipe.progressive and teacher.config["op"] != "conv":
        raise UserError(f"--progressive trains a CNN, {given} is a network of op {teacher.config['op']}: leave it out")
    return Distiller(student, teacher, recipe, digest_of(teacher))


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the names and numbers in ``model``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _data(name: str) -> str:
    """A data set's name without the place of its files, which may have moved."""
    kind, _, _ = name.partition(":")
    return kind if kind in ("imagefolder", "wds") else name


def _check_images(given: str, teacher: Model, student: Model) -> None:
    expected, found = ("x".join(map(str, model.input_size)) for model in (student, teacher))
    if found != expected:
        raise UserError(f"{given} takes images of {found}, this run's are {expected}: expected the same")


@torch.no_grad()
def _feature_sizes(model: Model, names: Sequence[str]) -> list[tuple[int, ...]]:
    """(C, H, W) of each feature; ``model`` is left as it was."""
    training = model.training
    with outputs_of(model.eval(), names) as features:
        model(torch.zeros(1, *model.input_size, device=next(model.parameters()).device))
    model.train(training)
    return [tuple(feature.shape[1:]) for feature in features]


def _check_stages(student: Model, teacher: Model, sizes: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> None:
    ours, theirs = ([size[1:] for size in each] for each in (sizes, others))
    if not ours or ours != theirs:
        said = (", ".join(f"{h}x{w}" for h, w in each) or "unknown" for each in (ours, theirs))
        raise UserError(
            "the stages of {} and of the teacher, {}, do not pair ({}; {}): take the logits alone with "
            "--feature-weight 0, or another teacher".format(student.config["name"], teacher.config["name"], *said)
        )
