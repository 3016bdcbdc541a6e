"""The README's examples print what it says.

Every `gaia` command is run as printed, in its order, on a fresh cluster; every grpcurl command by
the same call through `buf curl`. Times, terms, indexes and hashes differ from run to run: they are
compared by their form.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from gaia.alert.v1 import alert_pb2
from gaia.classroom.v1 import classroom_pb2
from gaia.cluster.v1 import cluster_pb2
from gaia.lock.v1 import lock_pb2
from gaia.metrics.v1 import metrics_pb2
from gaia.session.v1 import session_pb2
from gaia.task.v1 import task_pb2

from gaia_grpc.client import presets
from gaia_grpc.testing import Cluster

pytestmark = pytest.mark.e2e

README = Path(__file__).resolve().parents[2] / "README.md"
ADDRESSES = ("127.0.0.1:50051", "127.0.0.1:50052", "127.0.0.1:50053")

SERVICES = [
    service
    for area in (
        alert_pb2,
        classroom_pb2,
        cluster_pb2,
        lock_pb2,
        metrics_pb2,
        session_pb2,
        task_pb2,
    )
    for service in area.DESCRIPTOR.services_by_name.values()
]


def examples() -> list[tuple[str, str]]:
    """(command, printed) of each `console` block, in order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", README.read_text(), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


@pytest.fixture(scope="module")
def fresh_cluster() -> Iterator[Cluster]:
    with Cluster(peers=3) as cluster:
        yield cluster


def on(cluster: Cluster, command: str) -> str:
    """The command with the README's addresses replaced by real ones."""
    for printed, real in zip(ADDRESSES, cluster.addresses, strict=True):
        command = command.replace(printed, real)
    return command


def run(cluster: Cluster, arguments: list[str]) -> str:
    tools = Path(sys.executable).parent
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "GAIA_CLUSTER": ",".join(cluster.addresses),
        "HOME": "/nonexistent",
        "BUF_CACHE_DIR": "/nonexistent",
    }
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=30, check=False, env=environment
    )
    return done.stdout + done.stderr


def as_buf_curl(command: str) -> list[str]:
    """The same call: `grpcurl -plaintext [-d JSON] ADDRESS METHOD|list`."""
    words = shlex.split(command)
    assert words[:2] == ["grpcurl", "-plaintext"]
    words = words[2:]
    data = ["-d", words[1]] if words[0] == "-d" else []
    address, method = words[-2:]
    base = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    if method == "list":
        return [*base, "--list-services", f"http://{address}"]
    return [*base, *data, f"http://{address}/{method}"]


def normal(text: str) -> str:
    """Without what differs from run to run."""
    rules = (
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
        (r'"(term|appliedIndex)": "\d+"', r'"\1": "N"'),
        (r'"clusterId": "[0-9a-f]{32}"', '"clusterId": "ID"'),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"^(n\d) +ADDRESS +\w+ +\d+ +n\d +\d+ +\d+ +[0-9a-f]{16} at \d+$", r"\1 PEER"),
        (r"leader n\d$", "leader NODE"),
        (r"^PEER .*", "PEER"),
        (r"^TIME .*EVENT.*", "EVENTS"),
    )
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text, flags=re.M)
    lines = [re.sub(r"  +", "  ", line.rstrip()) for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def as_json(text: str) -> object:
    return json.loads(normal(text).replace("\n", " "))


def test_there_are_examples_of_both_kinds() -> None:
    commands = [command for command, _ in examples()]
    assert sum(command.startswith("grpcurl ") for command in commands) >= 4
    assert sum(command.startswith("gaia call ") for command in commands) >= 5


def test_every_example_prints_what_the_readme_says(fresh_cluster: Cluster) -> None:
    """One test, since the examples build on each other."""
    for command, printed in examples():
        if command.startswith("grpcurl "):
            found = run(fresh_cluster, as_buf_curl(on(fresh_cluster, command)))
            if printed.startswith("{"):
                assert as_json(found) == as_json(printed), command
            else:
                assert found.split() == printed.split(), command
            continue
        found = run(fresh_cluster, shlex.split(on(fresh_cluster, command)))
        assert normal(found) == normal(printed), command


def test_what_is_not_served_yet_is_what_the_readme_says(fresh_cluster: Cluster) -> None:
    said = README.read_text().partition("answer UNIMPLEMENTED:")[2].partition("\n-")[0]
    unserved: set[str] = set()
    served: set[str] = set()
    with grpc.insecure_channel(fresh_cluster.addresses[0]) as channel:
        for service in SERVICES:
            for method in service.methods:
                code = code_of(channel, service.full_name, method.name)
                names = unserved if code is grpc.StatusCode.UNIMPLEMENTED else served
                names.add(f"{service.name}/{method.name}")
    for name in sorted(unserved):
        service_name, _, method_name = name.partition("/")
        assert method_name in said or service_name in said, name
    for name in sorted(served):
        assert not re.search(rf"\b{name.partition('/')[2]}\b", said), name


def code_of(channel: grpc.Channel, service: str, method: str) -> grpc.StatusCode:
    """The code that the method answers an empty request with."""
    call = channel.stream_stream(
        f"/{service}/{method}",
        request_serializer=lambda data: data,
        response_deserializer=lambda data: data,
    )
    answers = call(iter([b""]), timeout=10)
    try:
        next(iter(answers))
    except grpc.RpcError:
        return answers.code()
    finally:
        answers.cancel()
    return grpc.StatusCode.OK


async def test_the_sdk_example_runs(
    fresh_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    code = next(block for block in blocks if "Client.connect" in block)
    tree = ast.parse(on(fresh_cluster, code))
    tree.body.pop()  # asyncio.run: a loop runs already
    names: dict[str, object] = {}
    exec(compile(tree, "README.md", "exec"), names)  # the README's own code
    main = names["main"]
    assert callable(main)
    async with asyncio.timeout(30):
        await main()
    assert re.fullmatch(r"ben (excessive|repeated)_errors\n", capsys.readouterr().out)


def test_the_blocking_example_runs(fresh_cluster: Cluster) -> None:
    """As a script, twice: the second time the key is known."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    code = on(fresh_cluster, next(block for block in blocks if "essay-9" in block))
    printed = [run(fresh_cluster, [sys.executable, "-c", code]) for _ in range(2)]
    assert printed == ["False\n", "True\n"]


def test_the_example_of_an_app_runs(fresh_cluster: Cluster, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    code = on(fresh_cluster, next(block for block in blocks if "metrics.typing" in block))
    assert '"typing-metrics"' in code
    code = code.replace('"typing-metrics"', repr(str(tmp_path / "spool")))
    assert run(fresh_cluster, [sys.executable, "-c", code]) == "3\n"


def test_the_app_table_is_what_the_presets_send() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| those of any app", README.read_text(), re.M)
    )
    kinds = presets.App.__subclasses__()
    assert rows == {
        kind.__name__.removesuffix("App").lower(): ", ".join(kind.FIGURES) for kind in kinds
    }
    [any_app] = re.findall(r"^\| any \| +\| (.+) \|$", README.read_text(), re.M)
    assert tuple(re.sub(r" \(\w+\)", "", any_app).split(", ")) == presets.EVENTS


def test_the_example_that_waits_for_results_runs(fresh_cluster: Cluster) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    code = on(fresh_cluster, next(block for block in blocks if "client.tasks.run" in block))
    printed = run(fresh_cluster, [sys.executable, "-c", code])
    assert printed.startswith("{'points': 8}\nKeyError 2\n")
    assert "is a dead letter after 2 attempts" in printed


def test_the_test_cluster_example_runs(fresh_cluster: Cluster) -> None:
    """It stands for `with Cluster(peers=3)`: the same calls on the cluster that runs already."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    code = next(block for block in blocks if "with Cluster" in block)
    *imports, body = ast.parse(code).body
    assert isinstance(body, ast.With)
    exec(compile(ast.Module(body=imports, type_ignores=[]), "README.md", "exec"), {})
    module = ast.Module(body=body.body, type_ignores=[])
    exec(compile(module, "README.md", "exec"), {"cluster": fresh_cluster})
    fresh_cluster.heal()
