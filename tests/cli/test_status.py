"""`gaia status`: what a peer had no room for is shown."""

from __future__ import annotations

import pytest
from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.cli.status import _print_refused


def test_peers_that_refused_or_sampled_metrics_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(name: str, **counts: int) -> cluster_pb2.GetStatusResponse:
        metrics = cluster_pb2.MetricIngest(accepted_total=12_000, **counts)
        return cluster_pb2.GetStatusResponse(node_id=name, metrics=metrics)

    _print_refused([
        answer("n1"),
        answer("n2", refused_total=5_000, refused_call_total=50),
        answer("n3", sampled_total=30),
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    begin = "of the metrics since its start 12,000 were accepted"
    assert lines == [
        f"n2: {begin}, 5,000 refused (their senders keep them) and 0 sampled",
        f"n3: {begin}, 0 refused (their senders keep them) and 30 sampled",
    ]
