import pytest
from flamest.base.errors import SettingsError
from flamest.coordinator.admin.config_template import render_config_template
from flamest.coordinator.rounds import Cohort, RoundPolicy
from flamest.coordinator.settings import load_coordinator_settings
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import Strategy, TrainSettings, decode_run_settings

STARTER = render_config_template(["a", "b"], "f", recipe="paper")


def load(tmp_path, text):
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    return load_coordinator_settings(path)


def test_template_is_valid_with_the_papers_defaults(tmp_path):
    settings = load(tmp_path, STARTER)
    run = settings.run_settings()
    assert (run.head.widths, run.rounds, run.train.epochs, run.train.batch_size) == ((2816, 512, 256, 2), 80, 5, 128)
    assert settings.server.state == tmp_path / "state"
    assert decode_run_settings(run.encode()) == run


def test_template_lists_every_default(tmp_path):
    keys = ("hidden", "inputs", "rounds", "min_silos", "deadline_s", "seed", "listen", "keep_models", "epochs")
    keys += ("batch_size", "learning_rate", "weight_decay", "mu", "alpha", "server_momentum", "average_last")
    keys += ("class_balanced", "kind", "blocks", "standardise", "common", "start")
    short = "\n".join(line for line in STARTER.splitlines() if not line.startswith(keys))
    assert load(tmp_path, short) == load(tmp_path, STARTER)


def test_template_without_labels_asks_for_them(tmp_path):
    with pytest.raises(
        SettingsError, match=r"run\.labels: expected 2 or more.*run\.fingerprint: expected the bundle's"
    ):
        load(tmp_path, render_config_template([], ""))


def test_unusual_labels_survive_the_template(tmp_path):
    labels = [f'class "{i}" \\ ü' for i in range(101)]
    assert load(tmp_path, render_config_template(labels, "f")).run.labels == tuple(labels)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[run]", "[run]\nlearning_rate = 1", r"unknown key 'learning_rate' in \[run\]; known: .*deadline_s"),
        ("rounds = 80", "rounds = 0", r"run\.rounds: expected 1 or more"),
        ("rounds = 80", 'rounds = "80"', r"run\.rounds: expected `int`"),
        ("inputs = 2816", "inputs = 0", r"run\.inputs"),
        ("inputs = 2816", "inputs = 999999999", r"run\.head: inputs, outputs, hidden and blocks"),
        ("hidden = [512, 256]", "hidden = [0]", r"run\.hidden"),
        ("min_silos = 2", "min_silos = 0", r"run\.min_silos"),
        ("# wanted = 4", "wanted = 1", r"run\.wanted: expected run\.min_silos \(2\) or more"),
        ("deadline_s = 600.0", "deadline_s = 0", r"run\.deadline_s"),
        ("deadline_s = 600.0", "deadline_s = nan", r"run\.deadline_s"),
        ("seed = 0", "seed = -1", r"run\.seed"),
        ('name = "run-1"', 'name = "../x"', r"run\.name"),
        ('labels = ["a", "b"]', 'labels = ["a", "a"]', r"run\.labels"),
        ('fingerprint = "f"', 'fingerprint = ""', r"run\.fingerprint"),
        ('labels = ["a", "b"]', 'labels = ["a", "\\u001b[2J"]', r"run\.labels: expected printable .*'\\x1b\[2J'"),
        ('labels = ["a", "b"]', 'labels = ["a", "b\\u202e"]', r"run\.labels: expected printable"),
        ('fingerprint = "f"', 'fingerprint = "f\\u0007f"', r"run\.fingerprint: expected printable"),
        ('name = "run-1"', 'name = "run\\u001b"', r"run\.name"),
        ("epochs = 5", "epochs = 0", r"run\.train\.epochs"),
        ("learning_rate = 0.01", "learning_rate = 0.0", r"run\.train\.learning_rate"),
        ("learning_rate = 0.01", "learning_rate = inf", r"run\.train\.learning_rate"),
        ("weight_decay = 1e-4", "weight_decay = -1.0", r"run\.train\.weight_decay"),
        ("mu = 0.0", "mu = 0.1", r"run\.strategy\.mu: fedavg has none"),
        ('name = "fedavg"', 'name = "fedprox"', r"run\.strategy\.mu: fedprox needs"),
        ("alpha = 0.0", "alpha = 0.1", r"run\.strategy\.alpha: fedavg has none"),
        ('name = "fedavg"', 'name = "feddyn"', r"run\.strategy\.alpha: feddyn needs more than 0"),
        ("server_momentum = 0.0", "server_momentum = 1.0", r"run\.strategy\.server_momentum: .*less than 1"),
        ("average_last = 0", "average_last = -1", r"run\.strategy\.average_last"),
        ("learning_rate_decay = 1.0", "learning_rate_decay = 0.0", r"run\.train\.learning_rate_decay"),
        ("learning_rate_decay = 1.0", "learning_rate_decay = 1.1", r"run\.train\.learning_rate_decay"),
        ('kind = "mlp"', 'kind = "rgcf"', r"run\.head: kind 'rgcf' fuses exactly two blocks, there are 0"),
        ('kind = "mlp"', 'kind = "cnn"', r"run\.head\.kind"),
        ("blocks = []", "blocks = [768, 2047]", r"run\.head: blocks \[768, 2047\]: .*inputs = 2816"),
        ("blocks = []", "blocks = [2817, -1]", r"run\.head: inputs, outputs, hidden and blocks"),
        ("common = 256", "common = 0", r"run\.head: common"),
        ('name = "fedavg"', 'name = "best"', r"run\.strategy\.name"),
        ('listen = "0.0.0.0:7443"', 'listen = "7443"', r"server\.listen"),
        ('listen = "0.0.0.0:7443"', 'listen = "0.0.0.0:99999"', r"server\.listen"),
        ("keep_models = 0", "keep_models = -1", r"server\.keep_models"),
        ("[run]", "[run", "not valid TOML"),
        ('ca = "ca.pem"', "", "missing required field `ca`"),
    ],
)
def test_invalid_setting_is_named_with_the_expected_value(tmp_path, old, new, problem):
    assert old in STARTER
    with pytest.raises(SettingsError, match=problem) as refused:
        load(tmp_path, STARTER.replace(old, new))
    assert "coordinator.toml" in refused.value.message
    assert refused.value.exit_code == 78


def test_every_option_reaches_the_silos(tmp_path):
    changes = {
        'kind = "mlp"': 'kind = "rgcf"',
        "blocks = []": "blocks = [768, 2048]",
        "standardise = false": "standardise = true",
        "common = 256": "common = 128",
        'name = "fedavg"': 'name = "feddyn"',
        "alpha = 0.0": "alpha = 0.1",
        "average_last = 0": "average_last = 3",
        "learning_rate_decay = 1.0": "learning_rate_decay = 0.9",
        "class_balanced = false": "class_balanced = true",
        "hidden = [512, 256]": "hidden = []",
    }
    text = STARTER
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    run = decode_run_settings(load(tmp_path, text).run_settings().encode())
    assert run.head == HeadSpec(2816, 2, (), "rgcf", (768, 2048), standardise=True, common=128)
    assert run.strategy == Strategy("feddyn", alpha=0.1, average_last=3)
    assert run.train == TrainSettings(learning_rate_decay=0.9, class_balanced=True)


def test_server_momentum_with_feddyn_is_refused(tmp_path):
    text = STARTER.replace('name = "fedavg"', 'name = "feddyn"').replace("alpha = 0.0", "alpha = 0.1")
    with pytest.raises(SettingsError, match="server_momentum: not with feddyn"):
        load(tmp_path, text.replace("server_momentum = 0.0", "server_momentum = 0.5"))


def shortened(text, *keys):
    return "\n".join(line for line in text.splitlines() if not line.startswith(keys))


def test_a_file_without_a_recipe_gets_the_default_one(tmp_path):
    default = load(tmp_path, render_config_template(["a", "b"], "f"))
    assert default.run.head_spec() == HeadSpec(2816, 2, (), standardise=True, start="zero")
    assert default.run_settings().strategy.average_last == 10
    unnamed = shortened(render_config_template(["a", "b"], "f"), "recipe = ")
    assert load(tmp_path, unnamed) == default


def test_an_unknown_recipe_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SettingsError, match=r"run\.recipe: invalid enum value 'best'"):
        load(tmp_path, STARTER.replace('recipe = "paper"', 'recipe = "best"'))


def test_a_run_from_before_recipes_keeps_the_papers(tmp_path):
    paper = load(tmp_path, STARTER)
    with RunStore.open(tmp_path / "state", paper.run_settings()) as store:
        store.load(RoundPolicy(80, 2, 600.0), Cohort(frozenset(), 2))
    keys = ("recipe", "hidden", "standardise", "start", "learning_rate")
    old = shortened(STARTER, *keys)
    assert load(tmp_path, old).run_settings() == paper.run_settings()
    fresh = load(tmp_path, old.replace('name = "run-1"', 'name = "run-2"'))
    assert fresh.run_settings().head.start == "zero"


def test_a_run_begun_with_default_keeps_it(tmp_path):
    text = render_config_template(["a", "b"], "f")
    default = load(tmp_path, text)
    with RunStore.open(tmp_path / "state", default.run_settings()) as store:
        store.load(RoundPolicy(80, 2, 600.0), Cohort(frozenset(), 2))
    assert load(tmp_path, text).run_settings() == default.run_settings()
