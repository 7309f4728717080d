"""The model of many GPUs: its arithmetic against counting by hand, and against two real ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.network import Network, Work, step
from benchmarks.ranks import MESSAGE, Measured, measure, summary
from benchmarks.scaling import Feed, Scaling, compute, cpu_nodes, pair_seconds, read_feed, store_bytes
from ito_ray.config.recipes import cc12m_vitb16
from ito_ray.errors import DataError

FLAT = Network(node_gbit=80.0, inside_gbyte=1e9, latency_us=0.0, gpus_per_node=1)
"""10 GB/s between any two GPUs."""


def test_bytes_through_a_card_are_counted_right() -> None:
    total = 40e9  # four nodes hold 10 GB each and want the other 30
    assert FLAT.all_gather(total, 4) == pytest.approx(3.0)
    assert FLAT.all_reduce(total, 4) == pytest.approx(6.0)
    assert FLAT.passed_round(total / 4, 4) == pytest.approx(3.0), "the same bytes, neighbour by neighbour"
    assert FLAT.all_gather(total, 1) == FLAT.all_reduce(total, 1) == FLAT.passed_round(total, 1) == 0.0


def test_gpus_of_a_node_share_its_card() -> None:
    network = Network(node_gbit=80.0, inside_gbyte=1000.0, latency_us=0.0, gpus_per_node=8)
    assert network.all_gather(40e9, 32) == pytest.approx(3.0), "four nodes, whatever is in them"
    assert network.all_gather(40e9, 8) == pytest.approx(7 / 8 * 40 / 1000), "one node uses no card"


def test_every_message_waits_for_its_first_byte() -> None:
    slow = Network(node_gbit=1e9, inside_gbyte=1e9, latency_us=1000.0, gpus_per_node=1)
    assert slow.all_gather(1.0, 5) == pytest.approx(4e-3)
    assert slow.all_reduce(1.0, 16) == pytest.approx(8e-3)


def test_features_are_those_that_the_method_gathers() -> None:
    cfg = cc12m_vitb16()
    work = Work(1e-3)
    assert (work.width, work.views, work.captions) == (cfg.model.embed_dim, cfg.data.views.count, cfg.data.captions)
    assert work.rows == 2 + 1 + 2
    assert work.features(3) == 3 * 5 * 512 * 4


def test_a_step_by_hand() -> None:
    work = Work(1e-3, parameters=0.25e9, overlap=0.5)
    found = step(work, FLAT, ranks=4, everyone=400)
    assert found.compute == pytest.approx(0.1)
    assert found.gradients == pytest.approx(2 * 3 / 4 * 1e9 / 10e9 - 0.5 * 2 / 3 * 0.1)
    features = 5 * 400 * 512 * 4 / 10e9
    assert found.gathered == pytest.approx(3 / 4 * features * 3), "once there, twice back"
    assert found.scattered == pytest.approx(3 / 4 * features * 2)
    assert found.losses == pytest.approx(4 * 2 * 8 * 100 * 400 * 512 / 19.5e12)
    assert found.efficiency() == pytest.approx(0.1 / (0.1 + found.losses + found.gradients + found.gathered))


def test_one_gpu_is_only_slowed_by_its_losses_and_more_gpus_by_more() -> None:
    alone = step(Work(1e-3), FLAT, 1, 64)
    assert alone.seconds() == alone.compute + alone.losses
    shares = [step(Work(1e-3), FLAT, ranks, 65_536).efficiency() for ranks in scaling.RANKS]
    assert shares == sorted(shares, reverse=True)


def _ingest(path: Path) -> Path:
    rounds = [
        {"tar": {"cpu_seconds": cpu, "samples": 100.0}, "parquet": {"cpu_seconds": 0.5, "samples": 100.0}}
        for cpu in (1, 2, 9)
    ]
    path.write_text(json.dumps({"rounds": rounds, "bytes_per_sample": 302_000.0}))
    return path


def test_data_nodes_follow_from_the_measured_cost_of_a_sample(tmp_path: Path) -> None:
    feed = read_feed(_ingest(tmp_path / "ingest.json"))
    assert feed == Feed(cpu_seconds=0.02, stored_bytes=302_000.0)
    assert cpu_nodes(Scaling(cpus_per_node=16), feed, samples_per_second=3200) == pytest.approx(4.0)
    rows, assumptions = compute(Scaling(ingest=tmp_path / "ingest.json", gpu_node_price=10.0, cpu_node_price=1.0))
    first = rows[0]
    few_pairs = next(one for one in rows if (one["ranks"], one["batch"]) == (256, 2048))
    assert scaling.most_lost(few_pairs).startswith("gradients 7"), "8 pairs a GPU hide little"
    assert few_pairs["step_seconds"] == pytest.approx(
        sum(few_pairs[f"{part}_seconds"] for part in ("compute", "losses", "gradients", "gathered"))
    )
    assert first["cpu_nodes"] == pytest.approx(first["samples_per_second"] * 0.02 / 32)
    assert first["cost"] == pytest.approx(10 * first["gpu_node_hours"] + first["cpu_node_hours"])
    assert first["gpu_node_hours"] == pytest.approx(160_000 * first["step_seconds"] / 3600)
    assert any("20.0 ms of a CPU" in one for one in assumptions)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other\.json is not what"):
        read_feed(tmp_path / "other.json")


def test_the_object_store_is_what_the_trainer_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ito_ray.runtime.feed import bytes_ahead

    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0})
    cfg = cc12m_vitb16()
    workers = cfg.train.workers.most
    assert store_bytes(Scaling(), 64.0, workers) == bytes_ahead(cfg, workers)


def test_seconds_of_a_pair_are_measured_or_assumed_and_say_so(tmp_path: Path) -> None:
    measured = {"setting": {"device": "cuda", "batch": 8}, "measured": {"ito": {"wall_seconds": [0.2, 0.1, 0.4]}}}
    path = tmp_path / "step.json"
    path.write_text(json.dumps(measured))
    assert pair_seconds(Scaling(step_cost=path)) == (0.2 / 8, "measured on cuda")
    measured["setting"] = {"device": "cpu", "batch": 8}
    measured["measured"] = {"ito": {"flops": 8 * 10**12, "wall_seconds": [9.0]}}
    path.write_text(json.dumps(measured))
    seconds, source = pair_seconds(Scaling(step_cost=path, tflops=100.0, utilisation=0.5))
    assert seconds == pytest.approx(0.02) and source.startswith("assumed: 1.000 TFLOP")
    assert pair_seconds(Scaling(pair_ms=3.0)) == (0.003, "given")
    path.write_text("[]")
    with pytest.raises(DataError, match="--step-cost"):
        pair_seconds(Scaling(step_cost=path))


def test_the_check_turns_measured_messages_into_a_network() -> None:
    measured = Measured(alone=1.0, together=1.5, message=0.102, latency=0.002, parameters=0)
    assert measured.network().all_reduce(MESSAGE, 2) == pytest.approx(0.102)
    assert measured.predicted(pairs=8, width=256) == pytest.approx(
        1.0 + 3 * 5 * 16 * 256 * 4 / 2 * 0.1 / MESSAGE + 0.005
    )
    assert math.isclose(summary(measured, 8)["predicted_to_measured"], measured.predicted(8, 256) / 1.5)


@pytest.mark.slow
def test_two_ranks_take_about_as_long_as_the_model_says() -> None:
    """Within a factor of four: others come and go between the readings. `python -m benchmarks.scaling` prints it."""
    assert 0.25 < summary(measure(pairs=2, repeats=3), 2)["predicted_to_measured"] < 4.0
