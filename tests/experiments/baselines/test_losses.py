"""Formulas of KD and ActionCLIP, checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flamest.experiments.baselines.losses import class_scores, class_words, contrastive_loss, distillation_loss


def test_the_distillation_loss_is_its_formula():
    student, teacher, temperature, alpha = [1.0, -0.5, 0.25], [2.0, 0.0, -1.0], 3.0, 0.7

    def softmax(values):
        powers = [math.exp(value) for value in values]
        return [power / sum(powers) for power in powers]

    hard = -math.log(softmax(student)[2])
    p, q = softmax([v / temperature for v in teacher]), softmax([v / temperature for v in student])
    soft = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = distillation_loss(
        torch.tensor([student], dtype=torch.float64),
        torch.tensor([teacher], dtype=torch.float64),
        torch.tensor([2]),
        temperature=temperature,
        alpha=alpha,
    )
    assert float(loss) == pytest.approx((1 - alpha) * hard + alpha * temperature**2 * soft, rel=1e-12)


def test_the_contrastive_loss_is_its_formula():
    random = np.random.Generator(np.random.PCG64(3))
    clips, texts = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in random.normal(size=(2, 4, 5)))
    y = np.array([0, 1, 0, 2])

    def softmax(table):
        powers = np.exp(table)
        return powers / powers.sum(1, keepdims=True)

    target = softmax(10.0 * (y[:, None] == y[None, :]))
    table = 7.0 * clips @ texts.T
    expected = sum((target * np.log(target / softmax(one))).sum() / 4 for one in (table, table.T)) / 2
    loss = contrastive_loss(*map(torch.tensor, (clips, texts, y)), torch.tensor(7.0), sharpness=10.0)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_class_scores_average_the_prompts_probabilities():
    texts = torch.eye(2)[None].repeat(3, 1, 1)
    scores = class_scores(torch.tensor([[1.0, 0.0]]), texts, torch.tensor(2.0))
    assert scores[0, 0].item() == pytest.approx(math.exp(2) / (math.exp(2) + 1))


@pytest.mark.parametrize(
    ("label", "words"),
    [("ApplyLipstick", "apply lipstick"), ("ball_crossing", "ball crossing"), ("YoYo", "yo yo"), ("fall", "fall")],
)
def test_a_label_becomes_words(label, words):
    assert class_words(label) == words
