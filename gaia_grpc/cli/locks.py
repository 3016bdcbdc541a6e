"""`gaia locks`: leases with fencing tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption, LimitOption
from gaia_grpc.cli.output import (
    LOG_TIME,
    ListByDefault,
    print_cut_off,
    print_json,
    print_table,
    time_text,
)

app = typer.Typer(help="Leases with fencing tokens.", cls=ListByDefault, rich_markup_mode=None)


@app.command("list")
def list_locks(
    holder: Annotated[str, typer.Option("--holder", help="Only of this holder.")] = "",
    limit: LimitOption = 1_000,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """List the locks that are held, in the order of their names."""
    from gaia.lock.v1 import lock_pb2

    from gaia_grpc.cli.ask import ask_all

    request = lock_pb2.ListLocksRequest(holder=holder)
    found = ask_all(cluster, lambda peer: peer.locks.ListLocks, request, "locks", limit)
    if json_output:
        print_json(found)
        return
    print_table(
        ("LOCK", "HOLDER", "TOKEN", "WAITING", "LEASE", f"LEASE ENDS ({LOG_TIME}, UTC)"),
        (
            (
                lock.name,
                lock.holder,
                lock.fencing_token,
                lock.waiting,
                f"{lock.lease.ToMilliseconds() / 1000:g} s",
                time_text(lock.lease_expire_time),
            )
            for lock in found.locks
        ),
        "no locks are held",
    )
    print_cut_off(found, len(found.locks), " or --holder")


@app.command("get")
def get_lock(
    name: Annotated[str, typer.Argument(metavar="LOCK")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Show one lock."""
    from gaia.lock.v1 import lock_pb2

    from gaia_grpc.cli.ask import ask

    request = lock_pb2.GetLockRequest(name=name)
    lock = ask(cluster, lambda peer: peer.locks.GetLock, request).lock
    if json_output:
        print_json(lock)
        return
    if not lock.holder:
        print(f"nobody holds {name}")
        return
    print_table(
        ("FIELD", "VALUE"),
        (
            ("name", lock.name),
            ("holder", lock.holder),
            ("fencing token", lock.fencing_token),
            ("waiting", lock.waiting),
            ("lease", f"{lock.lease.ToMilliseconds() / 1000:g} s"),
            (f"acquired ({LOG_TIME}, UTC)", time_text(lock.acquire_time)),
            (f"lease ends ({LOG_TIME}, UTC)", time_text(lock.lease_expire_time)),
        ),
        "",
    )


@app.command("release")
def release_lock(
    name: Annotated[str, typer.Argument(metavar="LOCK")],
    holder: Annotated[str, typer.Option("--holder", help="Who holds it, as listed.")],
    token: Annotated[int, typer.Option("--token", min=1, help="Its token, as listed.")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Take a lock from its holder, who learns it with the next renewal.

    Holder and token must be the current ones, so that nobody who got it meanwhile loses it.
    """
    from gaia.lock.v1 import lock_pb2

    from gaia_grpc.cli.ask import ask

    request = lock_pb2.ReleaseLockRequest(name=name, holder=holder, fencing_token=token)
    lock = ask(cluster, lambda peer: peer.locks.ReleaseLock, request).lock
    if json_output:
        print_json(lock)
    elif lock.holder:
        print(
            f"{lock.holder}, who waited for it, holds {name} under the token {lock.fencing_token}"
        )
    else:
        print(f"nobody holds {name}")
