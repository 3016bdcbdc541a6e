"""`gaia backup` and `gaia restore`: the whole state in one file, and a new cluster out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption, parse_cluster
from gaia_grpc.cli.output import print_plain_json
from gaia_grpc.errors import ConfigError, StorageDamagedError, UnavailableError

if TYPE_CHECKING:
    from gaia_grpc.recovery import Recovered

TIMEOUT_S = 600.0


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the backup goes.")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            help="Out of the directory of a peer that does not run, instead of a cluster.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Write everything that the cluster knows into one checked file, while it runs."""
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; --force replaces it")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file.absolute().parent} is no directory")
    if data_dir is not None:
        from gaia_grpc.recovery import back_up_directory

        found = back_up_directory(data_dir, file.absolute())
    else:
        found = _download(parse_cluster(cluster), file.absolute())
    _tell("backup", found, file, json_output)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `gaia backup`.")],
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="For the new cluster's first peer."),
    ] = None,
    node_id: Annotated[str, typer.Option("--node-id", help="Name of that peer.")] = "n1",
    peer_listen: Annotated[
        str, typer.Option("--peer-listen", metavar="HOST:PORT", help="Its address for peers.")
    ] = "127.0.0.1:50151",
    check: Annotated[
        bool, typer.Option("--check", help="Only verify the file; nothing is written.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Found a new cluster of one peer that holds what the backup holds; others join it."""
    from gaia_grpc.config import split_address
    from gaia_grpc.recovery import restore_directory, verify_backup

    if check == (data_dir is not None):
        raise ConfigError("one of --data-dir DIR and --check is needed, and not both")
    if data_dir is None:
        with _told_about_a_file():
            found = verify_backup(file.absolute())
        _tell("verified", found, file, json_output)
        return
    split_address(peer_listen)
    with _told_about_a_file():
        found = restore_directory(file.absolute(), data_dir, node_id, peer_listen)
    _tell("restored", found, file, json_output)
    if not json_output:
        print(
            f"start it:  gaia serve --node-id {node_id} --peer {node_id}={peer_listen} "
            f"--peer-listen {peer_listen} --listen HOST:PORT --data-dir {data_dir}\n"
            "then other peers with --join and an empty --data-dir, each added by "
            "`gaia peers add ID=HOST:PORT`"
        )


@contextmanager
def _told_about_a_file() -> Iterator[None]:
    """Damage in a backup has another remedy than damage in the directory of a peer."""
    try:
        yield
    except StorageDamagedError as error:
        what = str(error).partition("; ")[0]
        raise StorageDamagedError(
            f"{what}; this backup can't be trusted and nothing was restored: take another copy of "
            "it, or an earlier one"
        ) from error


def _download(addresses: list[str], file: Path) -> Recovered:
    """Lets the leader take a snapshot, and fetches it."""
    import grpc
    from gaia.cluster.v1 import cluster_pb2, cluster_pb2_grpc

    from gaia_grpc.cli.rpc import open_channel, peer_statuses, require_peer, to_command_error
    from gaia_grpc.recovery import save_backup

    require_peer(addresses)
    answers = peer_statuses(addresses, 2.0)
    leader = next((each.leader_address for each in answers.values() if each and each.writable), "")
    if not leader:
        raise UnavailableError(
            "no leader with a majority of the peers; stop a peer and use --data-dir to save what "
            "its directory holds"
        )
    try:
        with open_channel(leader) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            stub.TakeSnapshot(cluster_pb2.TakeSnapshotRequest(), timeout=TIMEOUT_S)
            stream: Any = stub.DownloadSnapshot(
                cluster_pb2.DownloadSnapshotRequest(), timeout=TIMEOUT_S
            )
            head = next(stream).file
            return save_backup(file, head.index, head.term, head.sha256, _pieces(stream))
    except grpc.RpcError as error:
        raise to_command_error(error) from error


def _pieces(stream: Any) -> Iterator[bytes]:
    for message in stream:
        yield message.data


def _tell(what: str, found: Recovered, file: Path, json_output: bool) -> None:
    if json_output:
        print_plain_json(
            {
                "file": str(file),
                "clusterId": found.cluster_id,
                "sourceClusterId": found.source_cluster_id,
                "index": str(found.index),
                "term": str(found.term),
                "stateHash": found.state_hash.hex(),
                "sha256": found.sha256.hex(),
                "sizeBytes": str(found.size_bytes),
            }
        )
        return
    print(
        f"{what} {file}: cluster {found.source_cluster_id} up to entry {found.index} of term "
        f"{found.term}, {found.size_bytes:,} bytes, state hash {found.state_hash.hex()[:16]}"
    )
    if found.cluster_id != found.source_cluster_id:
        print(f"the new cluster is {found.cluster_id}")
