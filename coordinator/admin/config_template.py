"""The template of coordinator.toml, which `flamest-coordinator init` fills in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ...fedproto.recipes import Recipe, completed

_TEMPLATE = """\
# Settings of flamest-coordinator. Relative paths start at this file's folder.
# Check it with: flamest-coordinator run --config coordinator.toml --check-config [--bundle BUNDLE]

[server]
listen = "0.0.0.0:7443"       # address:port that the silos dial
ca = "ca.pem"                 # the federation's authority; its key, ca-key.pem, is not needed to run
certificate = "server.pem"    # ends after a year: flamest-coordinator renew
key = "server-key.pem"
silos = "silos.json"          # who may take part: flamest-coordinator silo add / revoke / list
state = "state"               # rounds, updates and models; back this folder up
keep_models = 0               # models of how many last rounds are kept, next to the best one; 0 keeps all

[run]                         # sent to the silos
name = "run-1"                # the settings of a run that has started stay: for other ones choose another name
labels = {labels}
fingerprint = {fingerprint}
{inputs}
{recipe} # head, strategy and training where this file does not set them{other}
hidden = [512, 256]           # widths of the classifier's hidden layers
rounds = 80                   # rounds that must close; abandoned ones do not count
min_silos = 2                 # fewer updates at the deadline: the round is abandoned, the model stays
# wanted = 4                  # this many updates close a round early; not set: all silos enrolled when it opens
# wanted_share = 0.75         # or this share of the silos enrolled when it opens
deadline_s = 600.0            # seconds from the first silo that gets the round
seed = 0                      # of the initial model, and of the order of clips in training
codec = "fp32"                # how models travel; or "fp16", "int8", "sparse_int8": half, a quarter, a twentieth
{final_evaluation} # after the last round silos evaluate the final model; "sites": others' too, who agree
{calibrate} # silos report counts of held-out clips that calibrate the final model
# gains = true                # silos that agree report how a head trained on their own clips alone does, too

[run.head]
kind = "mlp"                  # or "rgcf": residual gated cross fusion of two blocks
{blocks} # widths of the modalities in a row, like [768, 2048]; rgcf needs two
standardise = false           # every block of every row to mean 0 and standard deviation 1
common = 256                  # rgcf only: width that both blocks are projected to
start = "uniform"             # initial weights; "zero" only without hidden layers

[run.strategy]
name = "fedavg"               # or "fedprox", with mu above 0, or "feddyn", with alpha above 0
mu = 0.0                      # fedprox: weight of the distance to the round's model in every silo's loss
alpha = 0.0                   # feddyn: weight of its correction
server_momentum = 0.0         # FedAvgM on top of the average; not with feddyn
server_adam = 0.0             # above 0: FedAdam with this learning rate on top of the average; not with feddyn
# server_beta1 = 0.9          # of FedAdam: decay of its first moment
# server_beta2 = 0.99         # of FedAdam: decay of its second moment
# server_tau = 1e-3           # of FedAdam: the larger, the less adaptive
combine = "mean"              # or "median", or "trimmed_mean": against hostile silos, unweighted; not with feddyn
trim = 0.0                    # trimmed_mean: share of the silos left out at either end of every coordinate, like 0.2
clip = 0.0                    # above 0: updates are clipped to this multiple of the round's median one
average_last = 0              # above 0: the final model is the mean of the models of this many last rounds

[run.train]                   # local training in a round
epochs = 5                    # passes over a silo's clips in one round
batch_size = 128              # clips per step
learning_rate = 0.01          # of Adam
weight_decay = 1e-4           # Adam's L2 term
learning_rate_decay = 1.0     # round r trains at learning_rate * decay ** (r - 1)
class_balanced = false        # every silo weights its classes equally

[checks]                      # of every update, before it counts; may be changed between starts
norm_times = 4.0              # farther from the model than this multiple of the median silo in the last rounds: refused
examples_times = 2.0          # the most that an update counts for, in median claims of examples; 0: as claimed
max_examples = 1000000        # an update of more is refused; set it to the size of your largest silo
quarantine_after = 3          # after this many refusals a silo is in quarantine until: silo release NAME

[log]                         # of the server, on stderr; may be changed between starts
level = "info"                # or "debug", "warning", "error"; --log-level wins
format = "logfmt"             # key=value words; "json": one object a line, for a log collector
"""


INPUTS = 2816  # of BLIP and Slow
_SETTING = re.compile(r"(?:# )?(?P<key>[a-z_0-9]+) = (?P<value>\S+|\[.*?\]) +(?P<meaning># .*)$")


def render_config_template(
    labels: Sequence[str],
    fingerprint: str,
    *,
    inputs: int | None = None,
    blocks: Sequence[int] = (),
    final_evaluation: str = "none",
    calibrate: bool = False,
    recipe: Recipe = "default",
) -> str:
    """Return the file's text. Values that are not given are left empty; `--check-config` asks for them.

    ``inputs``: width of the embeddings; None: not known, a line to check. ``final_evaluation``: "none" leaves the line
    as a comment, and so does ``calibrate`` = False. Of the recipe ``default`` the settings that it fills in are
    comments; ``paper`` has them as settings.
    """
    listed = json.dumps(list(labels), ensure_ascii=False)
    if len(listed) > 80:
        listed = "[\n" + "".join(f"    {json.dumps(label, ensure_ascii=False)},\n" for label in labels) + "]"
    labels_line = f"{listed}  # class k is the k-th name" if labels else "[]  # TO FILL IN: every class name"
    print_line = json.dumps(fingerprint)
    if not fingerprint:
        print_line += "  # TO FILL IN: flamest-export inspect BUNDLE prints it"
    check = "" if inputs else "; TO CHECK: flamest-export inspect BUNDLE prints it"
    final = f'final_evaluation = "{final_evaluation}"' if final_evaluation != "none" else '# final_evaluation = "model"'
    text = _TEMPLATE.format(
        labels=labels_line,
        fingerprint=print_line,
        inputs=f"{_column(f'inputs = {inputs or INPUTS}')} # width of a clip's embedding{check}",
        blocks=_column(f"blocks = {list(blocks)}"),
        final_evaluation=_column(final),
        calibrate=_column("calibrate = true" if calibrate else "# calibrate = true"),
        recipe=_column(f'recipe = "{recipe}"'),
        other='; "paper": its settings' if recipe == "default" else "",
    )
    return text if recipe == "paper" else _by_recipe(text)


def _by_recipe(text: str) -> str:
    """Turn the settings that the default recipe fills in into comments, with its values."""
    values = completed({})
    sections = {"[run.head]": values["head"], "[run.strategy]": values["strategy"], "[run.train]": values["train"]}
    lines, filled = [], {}
    for line in text.splitlines():
        if line.startswith("["):
            filled = sections.get(line.split()[0], {})
        found = _SETTING.match(line)
        key = found["key"] if found else ""
        own = {"hidden": values["hidden"]} if key == "hidden" else filled
        if found and own and key != "blocks":
            value = json.dumps(own[key]) if key in own else found["value"]
            line = f"{_column(f'# {key} = {value}')} {found['meaning']}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _column(setting: str) -> str:
    """Return a setting as wide as those of the template."""
    return setting.ljust(29)
