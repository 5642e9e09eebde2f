"""A real federation ends with a calibrated model, which answers unknown; simulated, it ends with the same one."""

from __future__ import annotations

import msgspec
import numpy as np
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.processes import daemons, run_command, wait_until
from flamest.fedproto.calibration import is_known, probabilities
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import RunSettings

EXACT = "evaluation_noise = 0"
ENOUGH = 'rounds = 3\ncalibrate = true\nfinal_evaluation = "model"'


def run_to_the_end(site, *silos: str) -> None:
    with daemons() as start:
        server = site.start_coordinator(start, once=True)
        running = [site.start_silo(silo, start) for silo in silos or site.silos]
        done = lambda: all(one.process.poll() is not None for one in (server, *running))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *running])


def test_a_federation_ends_with_a_calibrated_model_that_answers_unknown(site):
    policy = {"anna": f"{EXACT}\nreport_classes = 4", "berta": "report_evaluation = false", "carla": EXACT}
    made = site("calibrated", run=ENOUGH, policy=policy)
    run_to_the_end(made)
    out = made.folder / "final.safetensors"
    taken = run_command("coordinator", "model", "--config", made.settings, "--out", out)
    model = read_model(out)
    found = run_command("coordinator", "evaluation", "--config", made.settings)["calibration"]
    assert (found["step"], found["silos"], found["temperature"]) == ("done", 2, model.calibration.temperature)
    assert model.calibration.clips == sum(made.status(silo).held_out for silo in ("anna", "carla")) == found["clips"]
    assert (taken["temperature"], taken["coverage"]) == (found["temperature"], 0.95)

    for silo in made.silos:  # whether it reports or not: too few clips are held out for a calibration of its own
        used = read_model(made.folder / silo / "state" / "model.safetensors")
        assert used.calibration == model.calibration
    trainer = HeadTrainer(model.head, threads=1)
    answer = lambda x: is_known(probabilities(trainer.logits(model.params, x), model.calibration), model.calibration)  # noqa: E731
    assert answer(made.store("anna").x).mean() > 0.9
    assert not answer(np.zeros((1, made.width), np.float32))[0], "between all classes"

    entries = run_command("agent", "egress", "--dir", made.folder / "carla")["entries"]
    sums, counts = [entry["counted"] for entry in entries if entry["what"] == "calibration"]
    assert (len(sums["lost"]), len(counts["counts"])) == (10, 29)
    assert sum(counts["counts"]) == counts["count"] == made.status("carla").held_out
    assert counts["temperature"] == model.calibration.temperature
    [declined, _] = [
        entry["counted"]
        for entry in run_command("agent", "egress", "--dir", made.folder / "berta")["entries"]
        if entry["what"] == "calibration"
    ]
    assert declined == {"temperature": 0.0}


def test_a_silo_that_never_reports_delays_the_calibration_by_a_deadline(site):
    made = site("late", min_silos=2, run=f"{ENOUGH}\ndeadline_s = 4", policy=dict.fromkeys(("anna", "carla"), EXACT))
    with daemons() as start:
        server = made.start_coordinator(start, once=True)
        berta = made.start_silo("berta", start)
        wait_until(
            lambda: made.status("berta").doing == "waiting", "berta's start", seconds=60, watched=[server, berta]
        )
        others = [made.start_silo(silo, start) for silo in ("anna", "carla")]
        two = lambda: made.status("berta").updates_sent >= 1 or made.status("anna").round >= 2  # noqa: E731
        wait_until(two, "an update of berta", seconds=60, watched=[server, *others])
        berta.process.kill()
        done = lambda: all(one.process.poll() is not None for one in (server, *others))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, *others])
    found = run_command("coordinator", "evaluation", "--config", made.settings)["calibration"]
    assert (found["step"], found["silos"]) == ("done", 2)


def test_with_too_few_clips_the_run_ends_without_calibration(site):
    made = site("few", run=ENOUGH, policy=dict.fromkeys(("anna", "berta", "carla"), "report_evaluation = false"))
    run_to_the_end(made)
    out = made.folder / "final.safetensors"
    taken = run_command("coordinator", "model", "--config", made.settings, "--out", out)
    assert (taken["temperature"], read_model(out).calibration) == (None, None)
    assert made.status("anna").adopted == "final"
    own = read_model(made.folder / "carla" / "state" / "model.safetensors").calibration
    assert own.silos == 0, "carla holds out enough clips to calibrate its own copy"


def test_a_run_without_it_has_the_settings_that_it_always_had():
    run = RunSettings("r", ("a", "b"), HeadSpec(4, 2, ()), 1, 1, 1.0, "f")
    assert b"calibrate" not in run.encode()
    assert b"calibrate" in msgspec.structs.replace(run, calibrate=True).encode()
