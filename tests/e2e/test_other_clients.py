"""Clients that share no code with this project: Node.js, and `buf curl` through reflection."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from gaia_grpc.client import Client
from gaia_grpc.testing import Cluster

ROOT = Path(__file__).resolve().parents[2]
NODE_CLIENT = Path(__file__).parent / "node_client"
CACHE = ROOT / ".cache" / "node_client"


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """`npm ci` into a cache outside the tree; skipped where Node or the registry is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js or npm is not installed: the client in another language is not tested")
    wanted = (NODE_CLIENT / "package-lock.json").read_bytes()
    installed = CACHE / "package-lock.json"
    if not (CACHE / "node_modules").is_dir() or installed.read_bytes() != wanted:
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE_CLIENT / name, CACHE / name)
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=CACHE,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(CACHE, ignore_errors=True)
            pytest.skip(f"npm ci failed: {done.stderr.strip().splitlines()[-1:]}")
    return CACHE / "node_modules"


async def test_a_node_client_works_with_nothing_but_the_proto_files(
    cluster3: Cluster, client3: Client, node_modules: Path
) -> None:
    follower = cluster3.address(await cluster3.aio.follower())
    process = await asyncio.create_subprocess_exec(
        "node",
        str(NODE_CLIENT / "client.js"),
        str(ROOT / "protos"),
        follower,
        env={**os.environ, "NODE_PATH": str(node_modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, errors.decode()
    result = json.loads(output)
    task_id = result["work"].pop("task_id")
    assert result["work"] == {
        "same_task": True,
        "payload": "essay",
        "state": "TASK_STATE_COMPLETED",
    }
    assert result["refusal"] == "NOT_FOUND"
    assert result["alert"]["pattern"] == "excessive_errors"
    assert result["alert"]["student_id"] == "node-student"
    assert result["alert"]["through_sequence"] >= result["alert"]["sequence"] > 0
    assert (await client3.tasks.get(task_id)).task.result == b"A"


async def test_a_node_app_repeats_its_batches_after_a_leader_kill_and_they_count_once(
    cluster3: Cluster, client3: Client, node_modules: Path
) -> None:
    """The app that the README names for other languages: buffer, timer, retry, RetryInfo."""
    leader = await cluster3.aio.leader()
    addresses = [cluster3.address(leader), *cluster3.addresses]
    process = await asyncio.create_subprocess_exec(
        *("node", str(NODE_CLIENT / "metrics.js"), str(ROOT / "protos"), ",".join(addresses)),
        env={**os.environ, "NODE_PATH": str(node_modules)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def said() -> dict[str, Any]:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        answer: dict[str, Any] = json.loads(line)
        return answer

    try:
        first = await said()
        assert (first["buffered"], first["batches"]) == (50, 2)
        assert 1_000 <= first["took_ms"] < 2_500
        assert await said() == {"other_content": "ALREADY_EXISTS"}
        await cluster3.aio.kill(leader)
        process.stdin.write(b"go\n")
        last = await said()
        assert last["pending"] == 0
        assert last["counts"] == {
            "recorded": 180,
            "acknowledged": 180,
            "late": 0,
            "rejected": 0,
            "sampled": 0,
            "dropped": 0,
        }
        assert last["attempts"] > last["batches"], "the dead leader was asked first"
        status = status_pb2.Status(code=8)
        delay = duration_pb2.Duration(seconds=2, nanos=500_000_000)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        process.stdin.write(b"go\n" + base64.b64encode(status.SerializeToString()) + b"\n")
        assert await said() == {"retry_delay_ms": 2_500}
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    window = (await client3.metrics.aggregate("node-ben", "math")).aggregate
    assert {part.metric_type: part.count for part in window.metrics} == {
        "error": 3,
        "keypress": 177,
    }
    await cluster3.aio.heal()


def buf_curl(*arguments: str) -> str:
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not installed in this environment")
    done = subprocess.run(
        [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_lists_the_services_through_reflection(cluster3: Cluster, reflection: str) -> None:
    url = f"http://{cluster3.addresses[0]}"
    listed = buf_curl("--reflect-protocol", reflection, "--list-services", url).split()
    assert {
        "gaia.alert.v1.AlertService",
        "gaia.cluster.v1.ClusterService",
        "gaia.metrics.v1.MetricsService",
        "gaia.session.v1.SessionService",
        "gaia.task.v1.TaskService",
        "grpc.health.v1.Health",
    } <= set(listed)


def test_buf_curl_calls_a_method_through_reflection(cluster3: Cluster) -> None:
    base = f"http://{cluster3.addresses[0]}"
    body = json.dumps({"taskType": "curled", "priority": 2})
    answer: dict[str, Any] = json.loads(
        buf_curl("-d", body, f"{base}/gaia.task.v1.TaskService/EnqueueTask")
    )
    assert answer["task"]["taskType"] == "curled"
    assert answer["task"]["state"] == "TASK_STATE_PENDING"
    health: dict[str, Any] = json.loads(buf_curl("-d", "{}", f"{base}/grpc.health.v1.Health/Check"))
    assert health["status"] == "SERVING"
