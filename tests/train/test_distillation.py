"""Test distillation: losses against formulas, gradients, stages that fit each other, and runs with a teacher."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch
from tests.conftest import tiny
from tests.train.test_run import Stop, StopAt, assert_continues_exactly, start

from torchadder.errors import UserError
from torchadder.lab.reproduce.runs import effective
from torchadder.models import create_model
from torchadder.models.checkpoint import save_checkpoint
from torchadder.train import Run, get_recipe, train
from torchadder.train.distillation import (
    Alignment,
    Distiller,
    Kernel,
    build_distiller,
    record_outputs,
    soft_target_loss,
    stage_ends,
    state_digest,
)
from torchadder.train.loop import forward_backward
from torchadder.train.optimizer import is_finite


@pytest.fixture
def taught(tiny_recipe):
    """Return the recipe with a teacher; tests that build a Distiller pass it a teacher of their own."""
    return dataclasses.replace(tiny_recipe, teacher="lenet5bn", progressive=True)


@pytest.fixture
def teacher_run(tiny_recipe, tmp_path):
    """Train a CNN for an epoch."""
    start(tmp_path / "teacher", dataclasses.replace(tiny_recipe, op="conv", epochs=1, seed=5))
    return tmp_path / "teacher"


def pair(recipe, op="adder", progressive=False, **changes):
    """Return a student, its distiller, and a batch of images and labels."""
    recipe = dataclasses.replace(recipe, progressive=progressive, **changes)
    torch.manual_seed(3)
    student, teacher = create_model("lenet5bn", op), create_model("lenet5bn", "conv")
    for batch_norm in (m for m in teacher.modules() if hasattr(m, "running_mean")):
        torch.nn.init.normal_(batch_norm.running_mean, std=0.1)
    return student, Distiller(student, teacher, recipe), tiny().train.images[:12], tiny().train.labels[:12]


def until(model, end):
    return torch.nn.Sequential(*list(model)[:end])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_by_the_formula(temperature):
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        q = [math.exp(z / temperature) for z in row]
        p = [math.exp(z / temperature) for z in target]
        q, p = [z / sum(q) for z in q], [z / sum(p) for z in p]
        expected += temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)) / len(logits)
    assert soft_target_loss(logits, targets, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert soft_target_loss(logits, logits, temperature).item() == pytest.approx(0, abs=1e-15)


def normalised(h):
    """Normalise by channel, with the epsilon of batch normalisation."""
    mean = h.mean((0, 2, 3), keepdim=True)
    return (h - mean) / ((h - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def distance(align, feature, target, signs):
    """Compute Alignment by its formula, in float64."""
    g, h = (
        normalised(torch.exp((sign * y.double() / (2 * math.exp(log_sigma) ** 2)).clamp(max=4)))
        for sign, y, log_sigma in zip(signs, (feature, target), (align.student.log_sigma.item(), 0.0), strict=True)
    )
    mapped = torch.einsum("oc,nchw->nohw", align.map.weight.double(), g)
    return (mapped - h).square().mean()


@pytest.mark.parametrize("ops", [("adder", "conv"), ("conv", "adder"), ("binary", "conv")])
def test_alignment_by_the_formula(ops):
    torch.manual_seed(0)
    align = Alignment(ops[0], 3, ops[1], 5).double()
    torch.nn.init.constant_(align.student.log_sigma, -0.4)
    feature, target = (3 * torch.randn(2, channels, 4, 6, dtype=torch.float64) for channels in (3, 5))
    expected = distance(align, feature, target, [1 if op == "adder" else -1 for op in ops])
    torch.testing.assert_close(align(feature, target), expected, rtol=1e-9, atol=0)


def test_an_adder_layers_feature_is_the_laplace_kernel_of_its_distance():
    """A normalisation before the kernel is the same as another width of the kernel."""
    kernel = Kernel("adder", 1, learned=True).double()
    distances = torch.rand(2, 1, 5, 5, dtype=torch.float64) * 300 + 200
    mean, scale = -350.0, 0.01
    expected = normalised(torch.exp(-distances * scale / 2) * math.exp(-mean * scale / 2))
    torch.testing.assert_close(kernel((-distances - mean) * scale), expected)


def test_features_of_any_size_leave_the_loss_finite(taught):
    """A teacher whose running statistics are not up to date has such features."""
    student, distiller, images, labels = pair(taught, logit_weight=0.0)
    for norm in (distiller.teacher.bn1, distiller.teacher.bn2):
        norm.running_var.fill_(1e-12)
    loss, _ = forward_backward(student, images, labels, distiller.recipe, distiller)
    assert is_finite(loss, student)
    assert loss < 20


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("op", "sign"), [("adder", 1), ("conv", -1)])
def test_the_loss_by_the_formula(taught, op, sign, progressive):
    weights = dict(temperature=2.0, logit_weight=0.7, feature_weight=3.0)
    student, distiller, images, labels = pair(taught, op, progressive, **weights)
    plain = copy.deepcopy(student)
    one, other = copy.deepcopy(student).double(), copy.deepcopy(distiller.teacher).double()
    logits, loss = distiller(student, images, labels)
    x = images.double()
    expected = 0.7 * soft_target_loss(one(x), other(x), 2.0)
    for end, align in zip((2, 6, 10), distiller.alignments, strict=True):  # up to and with a batch normalisation
        expected = expected + 3.0 * distance(align, until(one, end)(x), until(other, end)(x), (sign, -1))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits, plain(images))


def test_gradients_reach_student_and_alignments_and_no_fixed_teacher(taught):
    student, distiller, images, labels = pair(taught)
    before = copy.deepcopy(distiller.teacher.state_dict())
    for _ in range(2):
        forward_backward(student, images, labels, distiller.recipe, distiller)
        assert all(p.grad is not None and p.grad.any() for p in student.parameters())
        learned = [p for p in distiller.alignments.parameters() if p.requires_grad]
        assert len(learned) == 6
        assert all(p.grad is not None and p.grad.any() for p in learned)
        assert all(p.grad is None for p in distiller.teacher.parameters())
        distiller.step(0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in distiller.teacher.state_dict().items())


@pytest.mark.usefixtures("double_precision")
def test_a_progressive_teacher_learns_from_the_labels_alone(taught):
    """Its gradients, over two parts of the batch, and its steps are those of training it by itself, in float64."""
    student, distiller, images, labels = pair(taught, progressive=True, accumulate=2, label_smoothing=0.1)
    alone = copy.deepcopy(distiller.teacher)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(2):
        forward_backward(alone, images, labels, distiller.recipe)
        optimizer.step()
        optimizer.zero_grad()
        forward_backward(student, images, labels, distiller.recipe, distiller)
        distiller.step(0.05)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(distiller.teacher.state_dict()[name], tensor, rtol=1e-9, atol=1e-10)
    assert all(not p.grad.any() if p.grad is not None else True for p in distiller.parameters())


def test_logits_alone(taught):
    student, distiller, images, labels = pair(taught, feature_weight=0.0)
    assert not list(distiller.alignments)
    logits, loss = distiller(student, images, labels)
    torch.testing.assert_close(loss, soft_target_loss(logits, distiller.teacher(images), 4.0))


def test_16_bit_numbers_between_layers_leave_the_loss_in_32(taught):
    student, distiller, images, labels = pair(taught, "conv")
    _, expected = distiller(student, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = distiller(student, images, labels)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_nothing_stays_on_the_student(taught):
    student, distiller, images, labels = pair(taught)
    distiller(student, images, labels)
    with pytest.raises(ValueError, match="is larger than the input"):
        distiller(student, images[:, :, :7, :7], labels)
    for network in (student, distiller.teacher):
        assert not any(m._forward_hooks for m in network.modules())
    pickle.dumps(student)
    assert student.training
    assert not distiller.teacher.training


PAIRS = [  # student, teacher -> features of the student, of the teacher; None where their sizes differ
    ("lenet5bn", "lenet5bn", "bn1 bn2 bn3", "bn1 bn2 bn3"),
    ("lenetpp", "lenetpp", "stages.bn2 stages.bn4 stages.bn6", "stages.bn2 stages.bn4 stages.bn6"),
    ("resnet20", "resnet32", "layer1.2.bn2 layer2.2.bn2 layer3.2.bn2", "layer1.4.bn2 layer2.4.bn2 layer3.4.bn2"),
    ("resnet20", "vgg_small", "layer1.2.bn2 layer2.2.bn2 layer3.2.bn2", "bn2 bn4 bn6"),
    ("lenet5bn", "lenetpp", None, None),
]


@pytest.mark.parametrize(("student", "teacher", "ours", "theirs"), PAIRS)
def test_stages_fit_by_their_sizes(taught, student, teacher, ours, theirs):
    taught = dataclasses.replace(taught, progressive=False)
    one, other = create_model(student), create_model(teacher, "conv")
    if ours is None:
        with pytest.raises(
            UserError, match=r"differ in size \(28x28, 10x10, 1x1; 32x32, 16x16, 8x8\): .*feature_weight=0"
        ):
            Distiller(one, other, taught)
        assert Distiller(one, other, dataclasses.replace(taught, feature_weight=0.0)).student_ends == ()
        return
    distiller = Distiller(one, other, taught)
    assert " ".join(distiller.student_ends) == ours
    assert " ".join(distiller.teacher_ends) == theirs
    distiller(one, torch.randn(2, *one.input_size), torch.tensor([1, 2]))[1].backward()
    assert all(align.map.weight.grad.any() for align in distiller.alignments)


def test_the_stages_of_the_deep_ones():
    assert stage_ends(create_model("resnet18"))[-1] == "layer4.1.bn2"
    assert stage_ends(create_model("resnet50")) == ("layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3")


def test_a_network_of_unknown_stages(taught):
    model = create_model("lenet5bn")
    assert stage_ends(torch.nn.Sequential(model)) == ()
    with record_outputs(model, stage_ends(model)) as found:
        model(torch.randn(2, 1, 32, 32))
    assert [tuple(f.shape[1:]) for f in found] == [(6, 28, 28), (16, 10, 10), (120, 1, 1)]


CHANGES = [
    {},
    {"feature_weight": 0.0, "temperature": 1.0, "optimizer": "adam", "lr": 0.001},
    {"precision": "bf16", "recenter": True, "accumulate": 2, "clip_grad": 0.1, "ema": 0.8},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_stopped_run_continues_exactly(tiny_recipe, teacher_run, tmp_path, change, progressive):
    recipe = dataclasses.replace(tiny_recipe, teacher=str(teacher_run), progressive=progressive, **change)
    assert_continues_exactly(recipe, tmp_path)


def test_a_fresh_teacher_continues_exactly(taught, tmp_path):
    assert_continues_exactly(taught, tmp_path)


def test_end_to_end(tiny_recipe, teacher_run, tmp_path):
    """A student with a teacher learns the tiny data set, and its weights differ from those without a teacher."""
    states = []
    for name, changes in [("alone", {}), ("fixed", {"teacher": str(teacher_run)})]:
        run = start(tmp_path / name, dataclasses.replace(tiny_recipe, **changes))
        rows = run.metrics()
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        states.append(run.state["model"])
    assert not any(torch.equal(states[0][f"conv{i}.weight"], states[1][f"conv{i}.weight"]) for i in (1, 2, 3))
    assert Run.open(tmp_path / "alone", tiny_recipe, resume=True).state["distiller"] is None


def test_of_a_run_the_last_epoch_teaches(taught, teacher_run, tmp_path):
    """Not the best epoch, which the test split chose; a checkpoint file is itself the teacher."""
    last = torch.load(teacher_run / "last.pt", weights_only=True)
    best = last["model"]["conv1.weight"].clone()
    last["model"]["conv1.weight"] += 1
    torch.save(last, teacher_run / "last.pt")
    fixed = dataclasses.replace(taught, progressive=False)
    of_run, of_best = (
        build_distiller(create_model("lenet5bn"), dataclasses.replace(fixed, teacher=str(path))).teacher.state_dict()
        for path in (teacher_run, teacher_run / "best.safetensors")
    )
    assert torch.equal(of_run["conv1.weight"], last["model"]["conv1.weight"])
    assert torch.equal(of_best["conv1.weight"], best)


def test_the_digest_tells_weights_apart():
    torch.manual_seed(0)
    model = create_model("lenet5bn", "conv")
    digest = state_digest(model)
    assert digest == state_digest(copy.deepcopy(model))
    model.bn5.running_var[3] += 1e-6
    assert digest != state_digest(model)


def test_a_run_does_not_continue_with_another_teacher(tiny_recipe, teacher_run, tmp_path):
    recipe = dataclasses.replace(tiny_recipe, epochs=2, teacher=str(teacher_run))
    with pytest.raises(Stop):
        start(tmp_path / "run", recipe, progress=StopAt(2, 3))
    last = torch.load(teacher_run / "last.pt", weights_only=True)
    last["model"]["conv1.weight"] += 1
    torch.save(last, teacher_run / "last.pt")
    with pytest.raises(UserError, match=r"has other weights than when the run began \(sha256 \w{12}, now \w{12}\)"):
        start(tmp_path / "run", recipe, resume=True)
    assert json.loads((tmp_path / "run/environment.json").read_text())["resumed"] == []
    with pytest.raises(UserError, match=r"another recipe: teacher \(run: .*teacher, now: other\)"):
        start(tmp_path / "run", dataclasses.replace(recipe, teacher="other"), resume=True)


def of(name="lenet5bn", op="conv", **options):
    """Return a function that writes a teacher with save_pretrained."""
    return lambda folder: create_model(name, op, **options).save_pretrained(folder)


def trained_on_other_images(folder):
    folder.mkdir()
    save_checkpoint(folder, create_model("lenet5bn", "conv"), dataset="fashion_mnist", epoch=1, accuracy=9.0)


REFUSED = [  # function that writes the teacher, change to the recipe -> words in the message
    (lambda folder: None, {}, "cannot be read: no checkpoint at .*teacher; expected a run directory"),
    (lambda folder: folder.mkdir(), {}, "cannot be read: .* holds no best.safetensors"),
    (lambda folder: folder.write_text("x"), {}, "cannot be read: .* not a checkpoint"),
    (of(num_classes=7), {}, "has 7 classes, this run has 10: expected the same"),
    (of(in_chans=3), {}, "takes images of 3x32x32, this run has images of 1x32x32: expected the same"),
    (of("lenetpp"), {}, "the stages of lenet5bn and of the teacher, lenetpp, differ in size"),
    (of(op="adder"), {"progressive": True}, "progressive=True trains a CNN, .* has op=adder: leave it out"),
    (of(), {"teacher": "resnet20"}, "teacher=resnet20 is an untrained network: .* with progressive=True"),
    (of(), {"teacher": "resnet18", "progressive": True}, "takes images of 1x224x224, this run has images of 1x32x32"),
    (trained_on_other_images, {}, "was trained on fashion_mnist, this run is on tiny: expected the same"),
]


@pytest.mark.parametrize(("prepare", "change", "words"), REFUSED)
def test_refused(tiny_recipe, tmp_path, prepare, change, words):
    prepare(tmp_path / "teacher")
    recipe = dataclasses.replace(tiny_recipe, **{"teacher": str(tmp_path / "teacher"), **change})
    with pytest.raises(UserError, match=words) as caught:
        train(Run.open(tmp_path / "run", recipe))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


DATA = [  # trained on, to be run on, accepted
    ("tiny", "tiny", True),
    ("imagefolder:old", "imagefolder:new", True),
    ("imagefolder:old", "tiny", False),
    ("hf:cifar10", "hf:mnist", False),
    (None, "tiny", True),
]


@pytest.mark.parametrize(("trained_on", "run_on", "accepted"), DATA)
def test_the_teachers_images(tiny_recipe, tmp_path, trained_on, run_on, accepted):
    """A folder may have moved, and foreign checkpoints have no name; otherwise the names must be equal."""
    save_checkpoint(tmp_path, create_model("lenet5bn", "conv"), dataset=trained_on, epoch=1, accuracy=9.0)
    recipe = dataclasses.replace(tiny_recipe, dataset=run_on, teacher=str(tmp_path))
    if accepted:
        assert build_distiller(create_model("lenet5bn"), recipe) is not None
    else:
        with pytest.raises(UserError, match=f"was trained on {trained_on}, this run is on {run_on}"):
            build_distiller(create_model("lenet5bn"), recipe)


OUT_OF_RANGE = [
    ({"progressive": True}, "progressive=True needs a teacher"),
    (
        {"teacher": "x", "logit_weight": 0.0, "feature_weight": 0.0},
        "teacher=x has no effect with logit_weight=0",
    ),
    ({"temperature": 0.0}, "temperature=0.0 is out of range: expected above 0"),
    ({"logit_weight": -1.0}, "logit_weight=-1.0 is out of range: expected at least 0"),
    ({"feature_weight": math.inf}, "feature_weight=inf"),
    ({"teacher": "a\nb"}, "is out of range: expected a run or a checkpoint"),
]


@pytest.mark.parametrize(("change", "words"), OUT_OF_RANGE)
def test_out_of_range(change, words):
    with pytest.raises(UserError, match=words):
        get_recipe("lenet5bn-mnist", change)


def test_a_record_names_the_teacher_without_its_folder(tiny_recipe):
    recipe = dataclasses.asdict(tiny_recipe)
    untaught = effective(recipe)
    assert [untaught[name] for name in ("teacher", "progressive", "temperature", "logit_weight")] == [None] * 4
    record = effective({**recipe, "teacher": "/home/me/runs/cnn/", "temperature": 2.0})
    assert (record["teacher"], record["temperature"]) == ("cnn", 2.0)
    assert effective(record) == record
    assert effective(untaught) == untaught
