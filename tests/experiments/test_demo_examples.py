"""Two test clips that the demo's report shows, and the command that repeats the demo."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from flamest.experiments.demo_checks import DemoRequest
from flamest.experiments.demo_examples import Examples, choose_examples
from flamest.experiments.demo_report import repeat_command


def test_the_surest_wrong_clip_stands_beside_a_right_one_of_its_class():
    p = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.0, 0.55, 0.45], [0.0, 0.1, 0.9]])
    assert choose_examples(p, np.array([0, 1, 0, 1, 2])) == Examples(right=0, doubtful=2, wrong=2)


def test_without_a_right_clip_of_its_class_another_is_shown():
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2]])
    assert choose_examples(p, np.array([0, 1, 0])) == Examples(right=0, doubtful=1, wrong=1)


def test_without_a_wrong_clip_the_least_certain_one_is_shown():
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    assert choose_examples(p, np.array([0, 1, 1, 1])) == Examples(right=3, doubtful=1, wrong=0)


def test_where_every_clip_is_wrong_no_right_one_is_shown():
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert choose_examples(p, np.array([1, 0])) == Examples(right=None, doubtful=0, wrong=2)


def test_a_single_clip_is_shown_alone():
    assert choose_examples(np.array([[0.9, 0.1]]), np.array([0])) == Examples(right=None, doubtful=0, wrong=0)


def test_the_command_on_the_page_repeats_every_option():
    request = DemoRequest(Path("out"), Path("my clips"), Path("b"), 3, 7, 0.5, 0.25, 4711, 2)
    words = shlex.split(repeat_command(request))
    assert words == [
        *("flamest-demo", "--silos", "3", "--rounds", "7", "--beta", "0.5", "--test-share", "0.25", "--seed", "4711"),
        *("--threads", "2", "--videos", "my clips", "--bundle", "b"),
    ]
    assert "--export" in repeat_command(DemoRequest(Path("out"), None, None, 4, 10, 0.6, 0.3, 0, 1, export=True))
