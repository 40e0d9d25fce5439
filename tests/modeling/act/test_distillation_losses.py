"""Distillation losses, compared with their formulas for one cloud at a time."""

import math

import pytest
import torch

from hf_any3d.modeling.act.distillation_losses import DISTILLATION_LOSSES, barlow_loss


def cosine(student, teacher):
    return sum(1 - (s @ t) / (s.norm() * t.norm()) for s, t in zip(student, teacher, strict=True)) / len(student)


def l2(student, teacher):
    return ((student - teacher) ** 2).sum() / student.numel()


def smooth_l1(student, teacher):
    far = (student - teacher).abs()
    return torch.where(far < 1, far**2 / 2, far - 0.5).sum() / student.numel()


def contrastive(student, teacher):
    rows = [row / row.norm() for row in (*student, *teacher)]
    count, total = len(student), 0.0
    for i, row in enumerate(rows):
        others = [math.exp(row @ other / 0.07) for j, other in enumerate(rows) if j != i]
        partner = math.exp(row @ rows[(i + count) % (2 * count)] / 0.07)
        total -= math.log(partner / sum(others))
    return total / (2 * count) / count


def barlow(student, teacher):
    first = (student - student.mean(0)) / student.std(0)
    second = (teacher - teacher.mean(0)) / teacher.std(0)
    total = 0.0
    for i in range(student.shape[1]):
        for j in range(student.shape[1]):
            correlation = (first[:, i] * second[:, j]).sum() / len(student)
            total += (1 - correlation) ** 2 if i == j else 5e-3 * correlation**2
    return total / len(student)


FORMULAS = {"cosine": cosine, "l2": l2, "smooth_l1": smooth_l1, "contrastive": contrastive, "barlow": barlow}


def tokens(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DISTILLATION_LOSSES)
def test_a_loss_is_the_mean_of_its_formula_over_clouds(name):
    student, teacher = 1.5 * tokens(3, 6, 5), tokens(3, 6, 5, seed=1)
    by_hand = sum(float(FORMULAS[name](s, t)) for s, t in zip(student, teacher, strict=True)) / 3
    assert DISTILLATION_LOSSES[name](student, teacher).item() == pytest.approx(by_hand, rel=1e-9)


def test_a_constant_channel_leaves_the_barlow_loss_finite():
    student = tokens(2, 6, 5)
    student[..., 2] = 1.0
    student.requires_grad_()
    loss = barlow_loss(student, tokens(2, 6, 5, seed=1))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
