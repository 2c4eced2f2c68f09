"""What a run bears in one process: deadlines, quorum, clients that fail."""

import sys
from dataclasses import replace

import pytest
from kill_program import METHODS, experiment

from fedsparse.federated import Client, Experiment, Failures, RunError, StoppedError, faults, run
from fedsparse.methods import FedAvg


class Failing(FedAvg):
    """Clients 1 and 2 fail in round 1."""

    def begin(self, client: Client) -> None:
        if client.round == 1 and client.id > 0:
            raise RuntimeError("the sensor is broken")


class Spoilt(FedAvg):
    """Every client's loss is not finite."""

    def report(self, client: Client) -> dict:
        client.loss = float("nan")
        client.model.get_parameter("0.bias").data.fill_(float("inf"))
        return super().report(client)


def bearing(method: FedAvg, **settings: object) -> Experiment:
    return replace(experiment(method), failures=Failures(**settings))  # type: ignore[arg-type]


def test_clients_that_raise_are_dropped_and_named() -> None:
    seen: list[dict] = []
    assert run(bearing(Failing()), on_round=seen.append)["status"] == "complete"
    assert [len(record["dropped"]) for record in seen] == [0, 2, 0]
    assert seen[1]["dropped"][0] == {"client": 1, "reason": "RuntimeError: the sensor is broken"}
    assert (seen[1]["clients"], seen[1]["rejected"]) == ([0], [])


class Leaving(FedAvg):
    """Client 1 leaves in round 1."""

    def begin(self, client: Client) -> None:
        if client.round == 1 and client.id == 1:
            sys.exit(0)


def test_a_client_that_calls_exit_is_dropped_like_one_that_raises() -> None:
    seen: list[dict] = []
    assert run(bearing(Leaving()), on_round=seen.append)["status"] == "complete"
    assert [record["dropped"] for record in seen] == [[], [{"client": 1, "reason": "SystemExit: 0"}], []]


def test_a_quorum_that_is_missed_stops_the_run() -> None:
    run(bearing(Failing(), quorum=1 / 3))
    with pytest.raises(StoppedError, match="round 1 has 1 usable reports of 3, but needs 2; the last reason: .*sensor"):
        run(bearing(Failing(), quorum=0.34))


def test_reports_that_are_all_refused_are_the_runs_own_failure() -> None:
    with pytest.raises(RunError, match="not finite") as error:
        run(bearing(Spoilt()))
    assert not isinstance(error.value, StoppedError)


def test_a_client_that_is_late_is_left_out_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "0:1:train:slow=4")
    faults.planned.cache_clear()
    seen: list[dict] = []
    try:
        with pytest.raises(StoppedError, match="not done by the round's deadline"):
            run(bearing(METHODS["fedavg"], round_deadline=3.0), on_round=seen.append)  # type: ignore[arg-type]
    finally:
        monkeypatch.undo()
        faults.planned.cache_clear()
    assert [record["dropped"] for record in seen] == [[]], "round 0 was in time; in round 1 the first client was late"


@pytest.mark.parametrize("settings", [{"quorum": 1.5}, {"client_deadline": 0}, {"round_deadline": -1.0}])
def test_settings_are_held_against_their_ranges(settings: dict) -> None:
    with pytest.raises(ValueError, match="deadline that is not positive, or a quorum outside"):
        Failures(**settings)
