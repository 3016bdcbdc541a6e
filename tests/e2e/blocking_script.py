"""A script without asyncio, for test_workers.py: `python blocking_script.py CLUSTER`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import assert_type

from gaia.task.v1 import task_pb2

from gaia_grpc.client import BlockingJob, connect_blocking
from gaia_grpc.client.portal import Items
from gaia_grpc.errors import NotFoundError

with connect_blocking(sys.argv[1]) as client:
    worker = client.worker(name="script", concurrency=3)
    left = threading.Semaphore(0)

    @worker.task("double")
    def double(job: BlockingJob) -> bytes:
        job.checkpoint(b"begun", progress=0.5)
        number = int(job.payload)
        if number < 10:  # work that makes work
            client.tasks.enqueue("double", str(number + 10).encode())
        left.release()
        return str(2 * number).encode()

    def stop_when_done() -> None:
        for _ in range(20):
            left.acquire()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_done).start()
    for n in range(10):
        client.tasks.enqueue("double", str(n).encode(), idempotency_key=f"script-{n}")
    worker.run(signals=True)

    assert_type(client.tasks.list(), Items[task_pb2.Task])
    assert_type(client.tasks.stats(), task_pb2.GetQueueStatsResponse)
    results = [
        int(client.tasks.get(task.task_id).task.result)
        for task in client.tasks.list(task_type="double")
    ]
    sys.stdout.write(f"results {sorted(results)}\n")

    with client.alerts.listen(classroom_id="script") as alerts:
        with client.metrics.buffer(
            student_id="ana", app_name="math", classroom_id="script"
        ) as buffer:
            for _ in range(5):
                buffer.record("error")
        event = next(iter(alerts))
        sys.stdout.write(f"alert for {event.alert.student_id}\n")

    with client.locks.hold("report", owner="script", wait=5) as lock:
        lock.check()
        held = client.locks.get("report").lock.fencing_token == lock.token > 0
        sys.stdout.write(f"held {held} {0 < lock.lease_left <= 30}\n")

    try:
        client.tasks.get("t-000000999999")
    except NotFoundError as error:
        sys.stdout.write(f"{error.instance_reason}\n")
# gRPC keeps a thread of its own for the life of the process.
ours = [thread.name for thread in threading.enumerate() if thread.name.startswith(("gaia", "task"))]
sys.stdout.write(f"threads {ours}\n")
