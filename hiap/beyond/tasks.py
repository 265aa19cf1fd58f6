"""The task and distillation loss of Eq. 7 with its arguments checked, and, ours, for other tasks than one class of
many: several labels of an image, regression, features of networks without a head."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hiap import objective

IGNORED = -100  # a label that cross-entropy leaves out


def distillation_loss(
    logits: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    task: Literal["classes", "labels", "values"] = "classes",
    alpha: float = 0.7,
    temperature: float = 4.0,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return cross-entropy blended with distillation, ``(1 - alpha) CE + alpha T^2 KL(teacher || student)``, a mean
    over the batch. Without a teacher, cross-entropy alone.

    The paper gives alpha and T and says "cross-entropy plus distillation"; the convex blend and T^2 are Hinton's, the
    usual meaning of the two numbers. Networks without a head: ``feature_loss``. Raises ``ValueError`` (one line) for
    shapes that do not fit the task.

    Args:
        logits: (B, classes), or the two of a distilled DeiT in training: the first learns the targets, the second the
            teacher.
        targets: (B,) labels or (B, classes) probabilities.
        teacher_logits: of the shape of ``logits``.
        task: ours, for other tasks than 'classes'. 'labels', several labels of an image, ``targets`` (B, labels) in
            [0, 1]: binary cross-entropy, and each label's Bernoulli KL in place of the KL. 'values', regression,
            ``targets`` of the shape of ``logits``: mean squared errors to targets and teacher, without T.
        alpha, temperature: weight of the teacher, and T.
        t_squared: A12: T^2 or 1.
        label_smoothing: share of a label that goes to the other classes.
    """
    two = isinstance(logits, (tuple, list)) and len(logits) == 2
    student: Any
    taught: Any
    student, taught = logits if two else (logits, logits)
    _check_task(task, student, taught, targets, teacher_logits)
    _check_numbers(alpha, temperature, label_smoothing)
    if two and teacher_logits is None:
        raise ValueError(
            "distillation_loss: two heads and no teacher, from which the second learns; expected its logits"
        )
    if task == "classes":
        return objective.distillation_loss(
            student,
            targets if targets.is_floating_point() else targets.long(),
            teacher_logits,
            alpha=alpha,
            temperature=temperature,
            t_squared=t_squared,
            label_smoothing=label_smoothing,
            taught=taught,
        )
    loss = _task_loss(task, student.float(), targets, label_smoothing)
    if teacher_logits is None:
        return loss
    divergence = _divergence(task, taught.float(), teacher_logits.detach().float(), temperature)
    weight = alpha * temperature * temperature if t_squared and task != "values" else alpha
    return (1 - alpha) * loss + weight * divergence


def feature_loss(features: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference of features (B, ..., D) to those that a teacher gives of the same images, as a
    share of the variance of the teacher's, so that 1 is as bad as their mean: ours, for networks without a head. To be
    added to ``pruner.penalty()`` alone, or with the loss of whatever stands on the features. Raises ``ValueError`` (one
    line) for other shapes."""
    if not torch.is_tensor(features) or not torch.is_tensor(wanted) or features.shape != wanted.shape:
        shapes = [tuple(t.shape) if torch.is_tensor(t) else type(t).__name__ for t in (features, wanted)]
        raise ValueError(
            f"feature_loss: features {shapes[0]}, the teacher's {shapes[1]}: expected tensors of one shape"
        )
    wanted = wanted.detach().float()
    scale = wanted.var(unbiased=False).clamp_min(torch.finfo(torch.float32).tiny)
    return (features.float() - wanted).square().mean() / scale


def _task_loss(task: str, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    if task == "labels":
        smooth = targets.float() * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth)
    return F.mse_loss(logits, targets.float())


def _divergence(task: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if task == "values":
        return F.mse_loss(student, teacher)
    student, teacher = student / temperature, teacher / temperature
    ours, theirs = (F.logsigmoid(torch.stack([z, -z])) for z in (student, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / student.numel()


def _check_task(task: str, student: Any, taught: Any, targets: Any, teacher: Any) -> None:
    """Raise ``ValueError`` (one line) for shapes that torch would broadcast, or take for something else, without a
    word."""
    if task not in ("classes", "labels", "values"):
        raise ValueError(f"distillation_loss: task {task!r}: expected 'classes', 'labels' or 'values'")
    for name, value in (("logits", student), ("logits", taught), ("targets", targets)):
        if not torch.is_tensor(value):
            raise ValueError(f"distillation_loss: {name} are a {type(value).__name__}; expected a tensor")
    wrong = _wrong_shapes(task, student, targets) or _wrong_numbers(task, targets, student.shape[-1])
    wrong = wrong or _wrong_teacher(task, teacher)
    if not wrong and (taught.shape != student.shape):
        wrong = f"two heads of shapes {tuple(student.shape)} and {tuple(taught.shape)}"
    if not wrong and teacher is not None and (not torch.is_tensor(teacher) or teacher.shape != student.shape):
        found = tuple(teacher.shape) if torch.is_tensor(teacher) else type(teacher).__name__
        wrong = f"the teacher's logits are {found}, the student's {tuple(student.shape)}"
    if wrong:
        raise ValueError(f"distillation_loss: {wrong}")


def _wrong_shapes(task: str, logits: Tensor, targets: Tensor) -> str:
    """Return what does not fit, and what was expected; '' if all does."""
    shape, wanted = tuple(logits.shape), tuple(targets.shape)
    if task != "classes":
        if shape != wanted or (task == "labels" and logits.ndim != 2):
            expected = "(B, labels) of both" if task == "labels" else "one shape"
            return f"task '{task}': logits {shape} and targets {wanted}; expected {expected}"
        return ""
    if logits.ndim != 2 or logits.shape[1] < 2:
        others = "task='labels' for one logit per label, task='values' for regression"
        return f"logits {shape}: expected (B, classes), 2 classes or more ({others})"
    if targets.is_floating_point() and shape != wanted:
        return f"targets {wanted} of floating point: expected probabilities {shape} (task='values' for regression)"
    if not targets.is_floating_point() and wanted != shape[:1]:
        return f"targets {wanted}: expected labels {shape[:1]} or probabilities {shape}"
    return ""


def _check_numbers(alpha: float, temperature: float, label_smoothing: float) -> None:
    """Raise ``ValueError`` for numbers with which the loss would ask for something else without a word."""
    for name, value, fits, wanted in (
        ("alpha", alpha, 0 <= alpha <= 1, "0 to 1"),
        ("temperature", temperature, 0 < temperature < math.inf, "a number above 0"),
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "0 to below 1"),
    ):
        if not fits:
            raise ValueError(f"distillation_loss: {name} {value}: expected {wanted}")


def _free_to_look(values: Any) -> bool:
    """Tell whether it costs nothing to look at the numbers: on a CPU."""
    return values.device.type == "cpu" and values.numel() > 0 and not torch.compiler.is_compiling()


def _wrong_teacher(task: str, teacher: Any) -> str:
    """Return what is wrong with a teacher's answers that are its probabilities."""
    if task != "classes" or not torch.is_tensor(teacher) or teacher.ndim != 2 or not _free_to_look(teacher):
        return ""
    answers = teacher.detach().float()
    if answers.min() >= 0 and (answers.sum(-1) - 1).abs().max() < 1e-3:
        return "the teacher's answers sum to 1 for each image; expected logits, which a softmax has not seen"
    return ""


def _wrong_numbers(task: str, targets: Tensor, classes: int) -> str:
    """Return the same for what the targets hold, where it costs nothing to look."""
    if not _free_to_look(targets):
        return ""
    if task == "classes" and not targets.is_floating_point():
        counted = targets[targets != IGNORED]
        if not counted.numel():
            return f"all labels are {IGNORED}, which count for nothing"
        if counted.min() < 0 or counted.max() >= classes:
            return f"labels from {counted.min()} to {counted.max()}; expected 0 to {classes - 1}"
    if task == "labels" and not 0 <= targets.min() <= targets.max() <= 1:
        return f"task 'labels': targets from {targets.min():.3g} to {targets.max():.3g}; expected 0 to 1"
    if task == "classes" and targets.is_floating_point():
        sums = targets.float().sum(-1)
        if not (sums - 1).abs().max() < 0.05:
            return (
                f"targets that sum to {sums.max():.3g} over the classes; expected probabilities, which sum to 1 "
                "(task='labels' for several labels of an image)"
            )
    return ""
