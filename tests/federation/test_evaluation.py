"""Federated evaluation with real processes: models across silos, the best model, a silo that keeps its own."""

from __future__ import annotations

from flamest.agent.cli.main import app
from flamest.experiments.processes import daemons, run_command, wait_until
from flamest.fedproto.head import params_sha256
from flamest.fedproto.model_file import read_model
from typer.testing import CliRunner

SHARE = "share_for_evaluation = true"


def run_to_the_end(site) -> None:
    with daemons() as start:
        server = site.start_coordinator(start, once=True)
        silos = [site.start_silo(silo, start) for silo in site.silos]
        done = lambda: server.process.poll() is not None and all(s.process.poll() is not None for s in silos)  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *silos])


def test_silos_that_share_measure_each_other_others_the_final_model(site):
    run = 'rounds = 3\nfinal_evaluation = "sites"\ngains = true'
    policy = {
        "anna": f"{SHARE}\nreport_classes = 2\nrefuse_worse = true",
        "berta": f'{SHARE}\nreport_evaluation = false\nadopt = "auto"',
        "carla": f"{SHARE}\nreport_gain = true\nevaluation_noise = 0",
    }
    shared = site("shared", run=run, policy=policy)
    run_to_the_end(shared)
    found = run_command("coordinator", "evaluation", "--config", shared.settings)
    table = {row["data"]: row for row in found["sites"]["rows"]}
    assert found["round"] == 3
    assert found["sites"]["models"] == ["final", "anna", "berta", "carla"]
    assert set(table) == {"anna", "carla"}  # berta's policy reports nothing, and its model is evaluated by the others
    assert all(table[silo][model]["count"] > 0 for silo in table for model in found["sites"]["models"])
    assert [one["silo"] for one in found["silos"]] == ["anna", "carla"]
    assert {one["label"] for one in found["classes"]} <= set(shared.labels)
    assert sum(one["count"] for one in found["classes"]) <= found["all"]["count"]
    assert found["classes"], "anna reports classes of two clips and more"
    assert not list((shared.state / "runs" / "test" / "updates").iterdir())  # measured, and removed

    anna = shared.status("anna")
    own, used = (
        read_model(shared.folder / "anna" / "state" / name) for name in ("own.safetensors", "model.safetensors")
    )
    final = shared.final_model()
    assert anna.adopted == ("final" if params_sha256(used.params) == final else "own")
    assert "held-out clips right" in anna.adopted_why
    assert (own.round, shared.status("carla").adopted) == (3, "final")

    [gain] = found["gains"]["silos"]
    assert (gain["silo"], found["gains"]["median"]) == ("carla", gain["gain"])
    evaluated = run_command("agent", "evaluate", "--dir", shared.folder / "carla")
    assert evaluated["gain"]["gain"] == gain["gain"], "without noise the operator has the silo's own figure"

    berta = shared.status("berta")
    own, used = (
        read_model(shared.folder / "berta" / "state" / name) for name in ("alone.safetensors", "model.safetensors")
    )
    assert berta.adopted in ("own", "final", "tuned", "blend")
    assert (berta.adopted == "own") == (params_sha256(used.params) == params_sha256(own.params))
    evaluated = run_command("agent", "evaluate", "--dir", shared.folder / "berta")
    assert evaluated["gain"] == berta.gain, "the command finds the same held-out clips and the same own head"
    assert set(evaluated["classes"]) == set(shared.labels)
    assert len(evaluated["wrong"]) == evaluated["clips"] - evaluated["correct"]
    shown = CliRunner().invoke(app, ["status", "--dir", str(shared.folder / "berta")]).stdout
    assert f"gain of the final model over the own head: {100 * berta.gain['gain']:+.1f} points" in shown
    ledger = run_command("agent", "egress", "--dir", shared.folder / "berta")
    assert not [entry for entry in ledger["entries"] if entry.get("results")], "nothing of the comparison has left"


def test_without_the_silos_consent_only_the_final_model_is_measured(site):
    alone = site("alone", run='rounds = 2\nfinal_evaluation = "sites"', policy={"carla": SHARE})
    run_to_the_end(alone)
    found = run_command("coordinator", "evaluation", "--config", alone.settings)
    assert [one["silo"] for one in found["silos"]] == list(alone.silos)
    rows = {row["data"]: set(row) - {"data"} for row in found["sites"]["rows"]}
    assert rows == {"anna": {"final"}, "berta": {"final"}, "carla": {"final", "carla"}}
