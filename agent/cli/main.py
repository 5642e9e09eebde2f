"""``flamest-agent``: the commands of a silo's administrator."""

from __future__ import annotations

from ...base.app import App
from .clips import clips
from .daemon import keygen, run, status
from .doctor import doctor
from .egress import egress
from .evaluate import evaluate
from .extraction import extract, features, import_features
from .labelling import label
from .labels_files import export_labels, import_labels
from .model import train
from .prediction import predict

app = App(
    "flamest-agent",
    extras=("agent",),
    no_args_is_help=True,
    help="The silo's side of FLAMeST: turn labelled video into embeddings, train on them, and send only "
    "the trained model's parameters. Videos, captions and labels stay on this machine.",
)

app.command("keygen")(keygen)
app.command("run")(run)
app.command("status")(status)
app.command("egress")(egress)
app.command("clips")(clips)
app.command("extract")(extract)
app.command("label")(label)
app.command("import-labels")(import_labels)
app.command("export-labels")(export_labels)
app.command("features")(features)
app.command("import-features")(import_features)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("predict")(predict)
app.command("doctor")(doctor)


def main() -> None:
    app()
