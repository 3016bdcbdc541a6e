"""One run: a cluster behind proxies, clients, a nemesis, and in the end every check.

run = Run(seed=7, seconds=60)
outcome = asyncio.run(run.execute(directory))
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gaia.cluster.v1 import cluster_pb2

from gaia_grpc.testing.injured import InjuredCluster
from gaia_grpc.testing.process import PROGRAM
from tests.chaos.caller import SETTING, Caller, Channels
from tests.chaos.end_checks import (
    check_availability,
    check_hygiene,
    check_linearizable,
    check_log,
    check_metrics,
    check_settings,
    check_streams,
)
from tests.chaos.faults import Stage
from tests.chaos.final_state import FinalState, read_final_state
from tests.chaos.history import History
from tests.chaos.log_record import LogRecord
from tests.chaos.nemesis import Injected, Nemesis, Plan, draw_plan, possible_faults
from tests.chaos.queue_checks import check_durable, check_intervals, check_once, check_tokens
from tests.chaos.streams import Listener, Source
from tests.chaos.witness import (
    Check,
    check_answers,
    check_effects,
    check_places,
    check_reads,
    check_real_time,
    replay,
)
from tests.chaos.workload import Consumer, Producer, SettingClients, TaskRegisters, Worker

SETTINGS = {
    "session.heartbeat_interval": "800ms",
    "session.degraded_after": "3s",
    "session.failed_after": "6s",
    "task.claim_timeout": "3s",
    "task.retry_base": "100ms",
    "metrics.window": "1h",
    "alert.cooldown": "0ms",
    "alert.exit_after": "2s",
}
"""Times of the guide, about a fifth as long; a window in which the whole run stays."""
BUGS = ("double-apply", "early-ack", "stale-reads")
"""Of `broken_peer`."""
SMALL_DISK_BYTES = 48 << 20
WARM_UP_S = 1.5
COOL_DOWN_S = 2.0
LEAST_OK_SHARE = 0.5
SNAPSHOT_SHARE = 0.6
"""Of the seeds in which peers make snapshots all the time."""
SETTLE_TIMEOUT_S = 40.0
WORKERS: tuple[tuple[str, type[Worker], int], ...] = (
    ("register", TaskRegisters, 2),
    ("setting", SettingClients, 3),
    ("producer", Producer, 2),
    ("consumer", Consumer, 3),
    ("source", Source, 2),
)


def broken_program(bug: str) -> tuple[str, ...]:
    """What Python runs for a peer with one of `BUGS`."""
    return ("-m", "tests.chaos.broken_peer", bug)


@dataclass(slots=True)
class Outcome:
    """What a run gives."""

    seed: int
    plan: Plan
    injected: list[Injected] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    snapshots_made: int = 0
    installs: int = 0
    """Snapshots that laggards received."""
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    """Why the run proves nothing: a fault without a trace, a cluster that did not come back."""

    @property
    def is_void(self) -> bool:
        """Whether nothing is wrong, but it did not meet what it planned."""
        found = [error for check in self.checks for error in check.violations]
        return bool(self.errors) and not found and all(e.startswith("void") for e in self.errors)

    @property
    def passed(self) -> bool:
        """Whether every planned fault really happened and every check passed."""
        return not self.errors and all(check.passed for check in self.checks)


class Run:
    """One seed. The schedule and the clients' choices come from it; the timing does not."""

    def __init__(
        self,
        seed: int,
        seconds: float,
        *,
        kinds: Sequence[str] | None = None,
        program: Sequence[str] = PROGRAM,
        snapshots: bool | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            seed: of everything that is drawn.
            seconds: how long faults are injected.
            kinds: only these faults; all that this machine can inject where None.
            program: what Python runs for a peer; another one shows that the checks find bugs.
            snapshots: whether peers make one every few seconds and keep little log before it, so
                that laggards must install them; drawn from the seed where None. Without them the
                whole log is known in the end.
        """
        possible, _ = possible_faults()
        names = [fault.kind for fault in possible]
        self.seconds = seconds
        self.plan = draw_plan(seed, seconds, kinds or names, swarm=kinds is None)
        self.history = History()
        self.record = LogRecord()
        self._draw = random.Random(f"run {seed}")
        self._stopping = asyncio.Event()
        self.snapshots = self._draw.random() < SNAPSHOT_SHARE if snapshots is None else snapshots
        small = "full disk" in self.plan.kinds
        nodes = ("n1", "n2", "n3")
        self.cluster = InjuredCluster(
            len(nodes),
            settings=SETTINGS,
            environment_of={
                node_id: self._environment(seed * 10 + number, keeps_all=number == seed % 3)
                for number, node_id in enumerate(nodes)
            },
            program=program,
            small_disks={self._draw.choice(nodes): SMALL_DISK_BYTES} if small else None,
        )
        self._open_files: Counter[str] = Counter()
        self._memory: Counter[str] = Counter()

    async def execute(self, directory: Path) -> Outcome:
        """Everything; the directory takes what a fault needs, and what a failure leaves."""
        outcome = Outcome(self.plan.seed, self.plan)
        began_at = time.monotonic()
        async with self.cluster:
            try:
                await self._execute(directory, outcome)
            finally:
                self.history.save(directory / "history.jsonl")
                for node_id, text in self._logs().items():
                    (directory / f"{node_id}.log").write_text(text, encoding="utf-8")
                    outcome.snapshots_made += text.count(" snapshot index=")
                    outcome.installs += text.count("snapshot_received")
        outcome.calls = self.history.counts()
        outcome.seconds = time.monotonic() - began_at
        return outcome

    async def _execute(self, directory: Path, outcome: Outcome) -> None:
        addresses = self.cluster.client_addresses
        stage = Stage(self.cluster, self._draw, directory, self._keep_log)
        nemesis = Nemesis(self.plan, stage, self.seconds)
        channels = [Channels(addresses) for _ in WORKERS]
        workers = self._make_workers(channels)
        listeners = [
            Listener(f"listener-{number}", addresses, self._fork(f"listener-{number}"))
            for number in range(3)
        ]
        first = await workers[0].caller.insist(
            "get_settings", SETTING, cluster_pb2.GetSettingsRequest()
        )
        initial = (first.answer["version"], first.answer["value"])
        direct = {node_id: self.cluster.address(node_id) for node_id in self.cluster.node_ids}
        try:
            async with asyncio.TaskGroup() as group:
                observing = asyncio.Event()
                group.create_task(self.record.watch(direct, observing))
                group.create_task(self._measure(observing))
                running = [group.create_task(worker.run()) for worker in workers]
                running += [
                    group.create_task(listener.run(self._stopping)) for listener in listeners
                ]
                await asyncio.sleep(WARM_UP_S)
                await nemesis.run()
                await asyncio.sleep(COOL_DOWN_S)
                self._stopping.set()
                await asyncio.wait(running)
                outcome.injected = nemesis.injected
                self._judge_validity(nemesis, outcome)
                if not any(fault.error for fault in nemesis.injected):
                    final = await self._settle(listeners)
                    observing.set()
                    exits = await asyncio.to_thread(self._end_peers)
                    outcome.checks = await asyncio.to_thread(
                        self._checks, nemesis, listeners, final, initial, exits
                    )
                observing.set()
        finally:
            for one in channels:
                await one.close()

    def _environment(self, hash_seed: int, *, keeps_all: bool) -> dict[str, str]:
        """Peers differ in all that must not matter: hash seed, time zone, when they snapshot.

        One keeps its whole log behind the snapshots, so that most of the content can be read in the
        end, unless it had to install a snapshot itself.
        """
        found = {"PYTHONHASHSEED": str(hash_seed), "TZ": f"X{hash_seed % 12}"}
        every, keep = self._draw.randint(60, 300), self._draw.choice((60, 100))
        if self.snapshots:
            found["GAIA_STORAGE_SNAPSHOT_EVERY_ENTRIES"] = str(every)
            found["GAIA_STORAGE_SNAPSHOT_KEEP_ENTRIES"] = str(10**6 if keeps_all else keep)
        return found

    # --- parts -----------------------------------------------------------------------------------

    def _fork(self, name: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {name}")

    def _make_workers(self, channels: Sequence[Channels]) -> list[Worker]:
        workers: list[Worker] = []
        for (name, kind, count), shared in zip(WORKERS, channels, strict=True):

            def make_caller(who: str, shared: Channels = shared) -> Caller:
                return Caller(who, shared, self.history, self._fork(who))

            workers += [
                kind(f"{name}{number}", make_caller, self._stopping) for number in range(count)
            ]
        return workers

    def _keep_log(self, node_id: str) -> None:
        disk = self.cluster.disks.get(node_id)
        directory = self.cluster.peer(node_id).data_dir if disk is None else disk.outside
        self.record.take_disk(node_id, directory)

    def _logs(self) -> dict[str, str]:
        former = self.cluster.former_logs
        return {
            node_id: former.get(node_id, "") + self.cluster.log(node_id)
            for node_id in self.cluster.node_ids
        }

    async def _measure(self, stopping: asyncio.Event) -> None:
        """Open files and memory of each peer, at their highest."""
        while not stopping.is_set():
            for node_id in self.cluster.answering:
                process = Path(f"/proc/{self.cluster.peer(node_id).pid}")
                try:
                    files = len(list((process / "fd").iterdir()))
                    pages = int((process / "statm").read_text(encoding="utf-8").split()[1])
                except (OSError, IndexError):
                    continue
                self._open_files[node_id] = max(self._open_files[node_id], files)
                size_bytes = pages * os.sysconf("SC_PAGE_SIZE")
                self._memory[node_id] = max(self._memory[node_id], size_bytes)
            await asyncio.sleep(0.5)

    def _judge_validity(self, nemesis: Nemesis, outcome: Outcome) -> None:
        for fault in nemesis.injected:
            if fault.error:
                outcome.errors.append(f"the cluster did not come back after {fault}")
            elif not fault.evidence:
                outcome.errors.append(f"void: {fault.kind} of {fault.target} left no trace")
        ok = sum(call.is_ok for call in self.history)
        if ok < LEAST_OK_SHARE * len(self.history):
            outcome.errors.append(f"void: only {ok} of {len(self.history)} calls succeeded")
        if not nemesis.injected:
            outcome.errors.append("void: no fault was injected")

    async def _settle(self, listeners: Sequence[Listener]) -> FinalState:
        """All peers together again: what each of them holds, and the listeners up to date."""
        await self.cluster.aio.heal()
        await self.cluster.aio.wait_applied_equal(SETTLE_TIMEOUT_S)
        final = await read_final_state(self.cluster)
        newest = max((events[-1][0] for events in final.events.values() if events), default=0)
        for listener in listeners:
            await listener.catch_up(newest)
            received = listener.received
            received.events = [event for event in received.events if event[0] <= newest]
        final.cut_events(newest)
        return final

    def _end_peers(self) -> dict[str, int]:
        """SIGTERM to all; then their disks tell what the log held."""
        exits = {}
        for node_id in self.cluster.node_ids:
            exits[node_id] = self.cluster.terminate(node_id)
            self._keep_log(node_id)
        self.record.settle()
        return exits

    def _checks(
        self,
        nemesis: Nemesis,
        listeners: Sequence[Listener],
        final: FinalState,
        initial: tuple[int, int],
        exits: Mapping[str, int],
    ) -> list[Check]:
        history, record = self.history, self.record
        tasks = next(iter(final.tasks.values()))
        replayed = replay(record, final.hash_index) if record.is_complete else None
        logs = self._logs()
        checks = [
            check_log(record, final.hashes, replayed.state_hash.hex() if replayed else ""),
            check_real_time(history),
            check_places(history, record),
            check_linearizable(history, initial),
            check_settings(history),
            check_durable(history, final.tasks),
            check_once(history, tasks),
            check_intervals(tasks),
            check_tokens(history),
            check_streams([one.received for one in listeners], final.events, final.operational),
            check_metrics(history.of("publish_metrics"), final.students),
            check_availability(history, nemesis.health),
            check_hygiene(logs, self._open_files, self._memory),
        ]
        if replayed is not None:
            checks += [
                check_answers(history, replayed),
                check_reads(history, record, replayed, initial),
                check_effects(history, record, replayed),
            ]
        orderly = Check("orderly end", detail=f"exit codes {dict(exits)}")
        orderly.violations += [f"{node} ended with {code}" for node, code in exits.items() if code]
        return [*checks, orderly]
