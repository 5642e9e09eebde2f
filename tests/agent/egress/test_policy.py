"""The silo's policy: what it permits, refuses and reports."""

import hashlib
import pickle
import re

import msgspec
import pytest
from flamest.agent.egress.accountant import Spend, epsilon_of
from flamest.agent.egress.policy import CLASS_FLOOR, MIN_SAMPLES_FLOOR, Policy, PolicyRefused
from flamest.agent.settings import Work, load_agent_settings, write_settings_template
from flamest.agent.training.private import Protection
from flamest.base.errors import SettingsError
from flamest.fedproto.records import TrainSettings

SETTINGS = """
state = "state"
store = "features.sqlite"
[coordinator]
address = "host:7443"
ca = "ca.pem"
certificate = "silo.pem"
key = "silo.key"
[policy]
"""


def policy(text: str, tmp_path) -> Policy:
    path = tmp_path / "agent.toml"
    path.write_text(SETTINGS + text)
    return load_agent_settings(path).policy


def test_the_defaults_are_strict(tmp_path):
    made = policy("", tmp_path)
    expected = (MIN_SAMPLES_FLOOR, "exact", "off", ())
    assert (made.min_samples, made.report_counts, made.privacy, made.overrides()) == expected
    assert (made.reports, made.report_classes, made.share_for_evaluation) == (True, 0, False)
    assert made.protection == Protection()


def test_a_floor_below_ours_needs_an_override(tmp_path):
    with pytest.raises(SettingsError, match="min_samples_override = true"):
        policy("min_samples = 50", tmp_path)
    made = policy("min_samples = 50\nmin_samples_override = true", tmp_path)
    assert made.overrides() == ("min_samples 50 is below the floor of 256",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_norm = 1.0", "only with privacy = 'clip'"),
        ('privacy = "clip"\nepsilon = 1.0', "only with privacy = 'record-dp'"),
        ('privacy = "clip"\nclip_norm = 0.0', "clip_norm: expected more than 0"),
        ('privacy = "record-dp"\ndelta = 1.0', "delta: expected less than 1"),
        ("report_classes = -1", "report_classes"),
        ('report_classes = 5\nreport_counts = "power-of-two"', "exact counts"),
        ("hold_out = 1.0", "hold_out"),
        ("min_samples = 0", "min_samples"),
        ("min_class_samples = 0\nmin_samples_override = true", "min_class_samples: expected 1 or more"),
        ("min_class_samples = 9", "min_class_samples: 9 is below the floor of 10"),
        ('min_class_samples = 20\nprivacy = "record-dp"', "min_class_samples: not with privacy = 'record-dp'"),
        ('report_loss = "exact"', "report_loss_override = true"),
        ('report_loss = "none"', "report_loss"),
        ("evaluations_per_day = -1", "evaluations_per_day"),
        ("evaluations_per_month = -1", "evaluations_per_month"),
        ("evaluation_noise = -1.0", "evaluation_noise"),
        ("evaluation_noise = inf", "evaluation_noise"),
    ],
)
def test_invalid_values_are_named_by_key(tmp_path, text, message):
    with pytest.raises(SettingsError, match=r"policy\.") as error:
        policy(text, tmp_path)
    assert message in error.value.message


def test_the_modes_have_their_defaults(tmp_path):
    assert policy('privacy = "clip"', tmp_path).protection == Protection("clip", 1.0, 1e-3)
    private = policy('privacy = "record-dp"', tmp_path)
    assert private.protection == Protection("record-dp", 1.0, 1.0)
    assert private.budget == (8.0, 1e-5)
    assert not private.reports  # held-out clips are not covered by epsilon: telling has to be asked for
    assert private.overrides() == ()
    telling = policy('privacy = "record-dp"\nreport_evaluation = true', tmp_path)
    assert telling.reports
    assert ["epsilon does not cover" in words for words in telling.overrides()] == [True]
    assert policy('privacy = "clip"\nreport_evaluation = true', tmp_path).overrides() == ()


def test_a_message_has_the_overrides_that_it_needed_and_no_other():
    both = Policy(min_samples=4, min_samples_override=True, privacy="record-dp", report_evaluation=True)
    few, telling = both.overrides()
    assert both.overridden(MIN_SAMPLES_FLOOR - 1, evaluation=False) == (few,)
    assert both.overridden(MIN_SAMPLES_FLOOR, evaluation=True) == (telling,)
    assert both.overridden(MIN_SAMPLES_FLOOR, evaluation=False) == ()


def test_record_dp_from_the_template_reports_no_evaluation(tmp_path):
    assert write_settings_template(tmp_path, "silo.key") is not None
    path = tmp_path / "agent.toml"
    assert load_agent_settings(path).policy == Policy()
    line = next(line for line in path.read_text().splitlines() if line.startswith('# privacy = "record-dp"'))
    path.write_text(path.read_text().replace(line, line.removeprefix("# ")))
    private = load_agent_settings(path).policy
    assert (private.privacy, private.reports, private.overrides()) == ("record-dp", False, ())


@pytest.mark.parametrize(
    ("keys", "least", "overrides"),
    [
        ({}, CLASS_FLOOR, 0),
        ({"min_class_samples": 30}, 30, 0),
        ({"min_class_samples": 1, "min_samples_override": True}, 1, 1),
        ({"min_samples": 30, "min_samples_override": True}, 1, 1),  # accepted for all clips
        ({"min_samples": 30, "min_samples_override": True, "min_class_samples": 10}, 10, 1),
        ({"privacy": "record-dp"}, 1, 0),  # a class that comes and goes with one clip is not covered by epsilon
    ],
)
def test_the_floor_of_a_class_follows_from_the_policy(keys, least, overrides):
    made = Policy(**keys)
    assert made.problems() == []
    assert (made.class_floor, len(made.overrides())) == (least, overrides)


def test_a_lower_floor_of_a_class_is_an_override_of_updates_alone():
    lower = Policy(min_class_samples=4, min_samples_override=True)
    words = "min_class_samples 4 is below the floor of 10"
    assert lower.overridden(MIN_SAMPLES_FLOOR, evaluation=True) == (words,)
    assert lower.overridden(MIN_SAMPLES_FLOOR, evaluation=True, update=False) == ()


def test_a_refusal_says_how_many_clips_of_rare_classes_do_not_count():
    with pytest.raises(PolicyRefused, match=r"250 labelled clips to train on \(and 9 of classes with fewer than 10\)"):
        Policy().permit(250, TrainSettings(), (), left_out=9)


def test_counts_are_exact_or_the_nearest_power_of_two():
    exact, coarse = Policy(), Policy(report_counts="power-of-two")
    assert [exact.rounded_count(count) for count in (1, 300, 1000)] == [1, 300, 1000]
    assert [coarse.rounded_count(count) for count in (1, 300, 362, 363, 1000)] == [1, 256, 256, 512, 1024]


def test_too_few_clips_are_refused_with_a_code():
    with pytest.raises(PolicyRefused) as error:
        Policy().permit(255, TrainSettings(), ())
    assert (error.value.code, error.value.reason, error.value.examples) == ("policy_refused", "few_samples", 255)
    assert Policy().permit(256, TrainSettings(), ()) is None
    again = pickle.loads(pickle.dumps(error.value))  # it crosses from the worker to the daemon
    assert (again.reason, again.message, again.examples) == ("few_samples", error.value.message, 255)


def test_the_budget_counts_earlier_updates_and_stops_training():
    private = Policy(privacy="record-dp", epsilon=3.0, noise_multiplier=2.0)
    train = TrainSettings(epochs=1, batch_size=64)
    spends: list[Spend] = []
    refused = None
    while refused is None and len(spends) < 1000:
        try:
            spends.append(private.permit(1000, train, spends))
        except PolicyRefused as error:
            refused = error
    assert refused is not None
    assert refused.reason == "budget_spent"
    assert 1 < len(spends) < 1000
    assert epsilon_of(spends, 1e-5) <= 3.0
    assert spends[0] == Spend(64 / 1000, 2.0, 16)


def test_record_dp_refuses_weights_that_depend_on_other_clips():
    with pytest.raises(PolicyRefused) as error:
        Policy(privacy="record-dp").permit(1000, TrainSettings(class_balanced=True), ())
    assert error.value.reason == "class_balanced"


def test_another_policy_has_another_hash():
    keys = {
        "min_samples": 300,
        "report_loss": "exact",
        "report_evaluation": False,
        "privacy": "clip",
        "report_counts": "power-of-two",
    }
    changed = [msgspec.structs.replace(Policy(), **{key: value}) for key, value in keys.items()]
    assert len({made.sha256 for made in (Policy(), *changed)}) == 6


def test_the_template_names_every_key_of_policy_and_work(tmp_path):
    """Those of a privacy mode stand behind their mode."""
    template = write_settings_template(tmp_path, "silo.key").read_text()
    keys = [field.name for kind in (Policy, Work) for field in msgspec.structs.fields(kind)]
    assert [key for key in keys if f"{key} = " not in template and key not in template_of_modes()] == []


def template_of_modes() -> set[str]:
    return {"sample_clip", "noise_multiplier"}  # docs/guides/privacy.md has them; their defaults need no change


TABLE = re.compile(r"^(?:# )?\[[a-z.]+\]", re.MULTILINE)


def test_every_line_of_the_template_is_valid_when_it_is_used(tmp_path):
    """One key at a time, each with the keys that its comment asks for."""
    path = write_settings_template(tmp_path, "silo.key")
    template = path.read_text()
    needs = {
        "report_loss": "report_loss_override = true",
        "clip_norm": 'privacy = "clip"\nnoise = 0.001',
        "noise": 'privacy = "clip"\nclip_norm = 1.0',
        "epsilon": 'privacy = "record-dp"\ndelta = 1e-5',
        "delta": 'privacy = "record-dp"\nepsilon = 8.0',
        "sample_clip": 'privacy = "record-dp"\nepsilon = 8.0\ndelta = 1e-5',
        "noise_multiplier": 'privacy = "record-dp"\nepsilon = 8.0\ndelta = 1e-5',
        "pattern": 'rule = "pattern"',
    }
    offered = [line for line in template.splitlines() if line.startswith("# ") and " = " in line.partition("  #")[0]]
    assert len(offered) > 20
    for line in offered:
        key = line.removeprefix("# ").partition(" =")[0]
        used = template.replace(line, "\n".join((line.removeprefix("# "), needs.get(key, ""))))
        table = TABLE.findall(template[: template.index(line)])[-1:]  # the last one before this line
        if table and table[0].startswith("# "):
            used = used.replace(table[0], table[0].removeprefix("# "))
        if key in ("videos", "trusted_keys"):
            continue  # they name files
        path.write_text(used)
        load_agent_settings(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads = 0", "work.threads: expected 1 to 1024"),
        ("idle_s = -1.0", "work.idle_s: expected 0 to 2592000 seconds"),
        ("rescan_s = 0.0", "work.rescan_s: expected 0.1 to 2592000 seconds"),
        ("rescan_s = nan", "work.rescan_s: expected 0.1 to 2592000 seconds"),
        ("clip_timeout = 0.0", "work.clip_timeout: expected 1 to 86400 seconds"),
        ("max_clip_gb = 0.0", "work.max_clip_gb: expected more than 0"),
        ('backend = "abacus"', "work: "),
    ],
)
def test_a_wrong_value_of_work_is_named_with_its_range(tmp_path, text, message):
    path = write_settings_template(tmp_path, "silo.key")
    path.write_text(path.read_text().replace("# [work]", f"[work]\n{text}"))
    with pytest.raises(SettingsError) as error:
        load_agent_settings(path)
    assert message in error.value.message


@pytest.mark.parametrize("key", ["evaluations_per_day", "evaluations_per_month"])
@pytest.mark.parametrize("value", [-1, 1_000_001, (1 << 63) - 1])
def test_limits_on_evaluations_are_named_with_their_range(tmp_path, key, value):
    with pytest.raises(SettingsError, match=rf"policy\.{key}: expected 0 \(none\) to 1000000"):
        policy(f"{key} = {value}", tmp_path)


def test_adopt_and_refuse_worse_are_not_set_together():
    assert Policy(adopt="auto").problems() == []
    assert Policy(refuse_worse=True).problems() == []
    [problem] = Policy(adopt="federated", refuse_worse=True).problems()
    assert problem.startswith("refuse_worse: adopt says")


def test_a_policy_without_adopt_has_the_hash_that_it_had():
    later = ("adopt", "report_gain", "min_class_samples")
    without = [field.name for field in msgspec.structs.fields(Policy) if field.name not in later]
    keys = {name: getattr(Policy(), name) for name in without}
    assert Policy().sha256 == hashlib.sha256(msgspec.json.encode(keys)).hexdigest()
    assert Policy(adopt="auto").sha256 != Policy().sha256


def test_a_gain_is_not_reported_where_evaluations_are_not():
    assert Policy(report_gain=True).problems() == []
    for policy in (Policy(report_gain=True, report_evaluation=False), Policy(report_gain=True, privacy="record-dp")):
        assert [problem for problem in policy.problems() if problem.startswith("report_gain: ")]
    both = Policy(report_gain=True, privacy="record-dp", report_evaluation=True)
    assert [problem for problem in both.problems() if problem.startswith("report_gain: ")]
