"""`gaia call`: any RPC of a running peer, by what the peer itself says it serves (reflection)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, parse_cluster
from gaia_grpc.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.descriptor_pool import DescriptorPool

DEFAULT_TIMEOUT_S = 10.0


def call(
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="[SERVICE/METHOD]",
            help="For example TaskService/EnqueueTask; a service alone lists its methods, "
            "nothing lists the services.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Argument(
            metavar="[JSON]",
            help="The request: JSON, @FILE, or - for stdin; bytes are base64. "
            "Where the method takes a stream, an array of requests.",
        ),
    ] = "{}",
    cluster: ClusterOption = DEFAULT_CLUSTER,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.1, help="Seconds; a stream of answers ends quietly then."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="End a stream after so many answers.")
    ] = None,
) -> int:
    """Call any RPC through reflection and print the answer as JSON."""
    import grpc

    from gaia_grpc.cli.rpc import open_channel, require_peer, to_command_error

    with open_channel(require_peer(parse_cluster(cluster))) as channel:
        try:
            services, pool = _reflect(channel)
            if method is None:
                print("\n".join(services))
                return 0
            service_name, _, method_name = method.replace("/", " ").strip().partition(" ")
            service = pool.FindServiceByName(_full_name(service_name, services))
            if not method_name:
                print("\n".join(f"{service.full_name}/{each.name}" for each in service.methods))
                return 0
            _call(channel, _find_method(service, method_name), _read(data), timeout, count)
        except grpc.RpcError as error:
            raise to_command_error(error) from error
    return 0


def _reflect(channel: grpc.Channel) -> tuple[list[str], DescriptorPool]:
    """The services of a peer and a pool that fetches their descriptors from it."""
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    database = ProtoReflectionDescriptorDatabase(channel)
    services = sorted(database.get_services())
    # protobuf takes anything with the two Find methods as a fallback database.
    return services, DescriptorPool(database)


def _full_name(name: str, services: Sequence[str]) -> str:
    if name in services:
        return name
    matches = [service for service in services if service.rpartition(".")[2] == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{name} is ambiguous: {', '.join(matches)}")
    raise NotFoundError(f"no service {name}; there are {', '.join(services)}")


def _find_method(service: ServiceDescriptor, name: str) -> MethodDescriptor:
    found = service.methods_by_name.get(name)
    if found is None:
        known = ", ".join(method.name for method in service.methods)
        raise NotFoundError(f"{service.name} has no method {name}; it has {known}")
    return found


def _read(data: str) -> Any:
    """The JSON value that the argument stands for."""
    if data == "-":
        data = sys.stdin.read()
    elif data.startswith("@"):
        try:
            data = Path(data[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no UTF-8 text"
            raise ConfigError(f"{data[1:]}: {reason}") from error
    try:
        return json.loads(data)
    except ValueError as error:
        raise ConfigError(f"the request is no JSON: {error}") from error


def _call(
    channel: grpc.Channel,
    method: MethodDescriptor,
    data: Any,
    timeout_s: float | None,
    count: int | None,
) -> None:
    """Makes the call and prints each answer as it comes. Raises `grpc.RpcError`."""
    from google.protobuf import json_format, message_factory

    request_type = message_factory.GetMessageClass(method.input_type)
    response_type = message_factory.GetMessageClass(method.output_type)

    def parse(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ConfigError(f"the request is no {method.input_type.name}: not a JSON object")
        try:
            return json_format.ParseDict(value, request_type())
        except json_format.ParseError as error:
            raise ConfigError(
                f"the request is no {method.input_type.name}: {_parse_text(error)}"
            ) from error

    path = f"/{method.containing_service.full_name}/{method.name}"
    requests = data if isinstance(data, list) and method.client_streaming else [data]
    shape = f"{_stream(method.client_streaming)}_{_stream(method.server_streaming)}"
    stub = getattr(channel, shape)(
        path,
        request_serializer=request_type.SerializeToString,
        response_deserializer=response_type.FromString,
    )
    parsed = [parse(value) for value in requests]
    limit_s = timeout_s or (None if method.server_streaming else DEFAULT_TIMEOUT_S)
    outcome = stub(iter(parsed) if method.client_streaming else parsed[0], timeout=limit_s)
    answers = _until(outcome, count) if method.server_streaming else [outcome]
    for answer in answers:
        print(json_format.MessageToJson(answer), flush=True)


def _parse_text(error: Exception) -> str:
    """What protobuf says of a bad request, without the Python in it."""
    text = str(error).split("\n", 1)[0].strip()
    rules = (
        (r'^Message type "([\w.]+\.)?(\w+)" has no field named "(\w+)".*', r"\2 has no field \3"),
        (r"invalid literal for int\(\) with base 10: ", "not an integer: "),
        (r"could not convert string to float: ", "not a number: "),
        (r"expected string or bytes-like object, got '?\w+'?", "not a string"),
        (r"Failed to parse (\w+) field: ", r"\1: "),
        (r"\.+$", ""),
    )
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    known = re.search(r"Available Fields\(except extensions\): \"\[(.*)\]\"", str(error))
    return f"{text}; it has {known[1].replace(chr(39), '')}" if known else text


def _stream(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _until(stream: Any, count: int | None) -> Iterator[Any]:
    """The answers of a stream, until `count` of them or the deadline that the user set."""
    import grpc

    seen = 0
    try:
        for answer in stream:
            yield answer
            seen += 1
            if seen == count:
                stream.cancel()
                return
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return
        raise
