"""Costs of nodes, and jobs that stop where they would cost too much and go on when they may."""

import json
import time
from pathlib import Path

import pytest

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.engine import bill
from manifpt.engine.bill import Bill
from manifpt.errors import ManifptError
from manifpt.outputs import claims

PRICES = {"CPU": 0.05, "GPU": 0.7}
KEY = "0" * 64


def test_nodes_cost_their_cpus_and_gpus_for_as_long_as_they_are_up():
    counted = Bill(PRICES)
    one, other = {"CPU": 16.0, "GPU": 1.0, "memory": 2.0**35}, {"CPU": 8.0}
    counted.count([one], 100.0)
    counted.count([one, other], 100.0 + 1800)
    counted.count([], 100.0 + 3600)
    assert counted.spent == pytest.approx((16 * 0.05 + 0.7 + 8 * 0.05) / 2)
    assert not counted.exceeded  # without a limit
    assert Bill(PRICES, 0.5, spent=0.5).exceeded


def test_a_limit_needs_a_price():
    with pytest.raises(ManifptError, match="--max-cost: needs --price-cpu-hour"):
        Bill({}, 3.0)


class Config(JobConfig):
    """Options of a job that waits."""

    output: str = ""


def waiting(config, tracked):
    with claims.claim(config.output, "attributions", KEY) as claim:
        if config.max_cost is not None and config.max_cost < 1:
            time.sleep(200)
        claim.publish({})
    return {"done": 1}


@pytest.mark.usefixtures("ray_session")
def test_a_job_stops_at_its_limit_and_goes_on_with_a_larger_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bill, "LOOK_SECONDS", 0.2)
    cost, output = Path(tmp_path, "out", "_cost.json"), f"{tmp_path}/out"
    # Nodes come with the work: a busy machine may be long in beginning it.
    up = [{"CPU": 4.0}]
    monkeypatch.setattr(bill.scaling, "nodes_up", lambda: up * claims.works_under(output))

    def code(most: str) -> int:
        # 4 CPUs at 360 cost 0.4 a second.
        flags = ["--output", output, "--price-cpu-hour", "360", "--max-cost", most]
        return job.main("waiting", Config, waiting, "Wait.", flags)

    assert code("0.5") == 2
    assert "with a larger --max-cost the same command goes on" in capsys.readouterr().err
    spent = json.loads(cost.read_text())["spent"]
    assert spent >= 0.5
    assert code("0.5") == 2  # a retry does not spend the same again
    assert json.loads(cost.read_text())["spent"] == spent
    assert code("1000") == 0
    assert not cost.exists()
    assert storage.read_json(f"{output}/manifest.json")["kind"] == "attributions"
