"""Reads a snapshot by gRPC, with the protocol from the server's reflection.

usage: reflect.py TARGET SNAPSHOT FILE [TOKEN]

FILE has the expected content. TOKEN is a file with the token of an account, which the calls show.
"""

import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Service:
    """A service. Its methods take the fields of the request."""

    def __init__(self, channel, pool, name, metadata=()):
        self._channel = channel
        self._metadata = metadata
        self._descriptor = pool.FindServiceByName(name)

    def call(self, method, **fields):
        descriptor = self._descriptor.methods_by_name[method]
        request = message_factory.GetMessageClass(descriptor.input_type)(**fields)
        response = message_factory.GetMessageClass(descriptor.output_type)
        make = self._channel.unary_stream if descriptor.server_streaming else self._channel.unary_unary
        path = f"/{self._descriptor.full_name}/{descriptor.name}"
        return make(path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString)(request, metadata=self._metadata)


def read(content, snapshot, offset, length):
    data = bytearray()
    for part in content.call("ReadSnapshot", snapshot=snapshot, offset_bytes=offset, length_bytes=length):
        assert part.offset_bytes == offset + len(data), (part.offset_bytes, offset, len(data))
        data += part.data if part.WhichOneof("content") == "data" else bytes(part.hole_bytes)
    return bytes(data)


def refused(code, service, method, **fields):
    try:
        service.call(method, **fields)
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error.details()
    raise AssertionError(f"{method} is not refused")


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def check_token(channel, pool, token):
    """Checks what only the bearer of the right token gets."""
    name = "varve.v1.SnapshotService"
    refused(grpc.StatusCode.UNAUTHENTICATED, Service(channel, pool, name), "ListSnapshots")
    head, secret = token.rsplit("_", 1)
    forged = f"{head}_{secret[::-1]}"
    for wrong in (forged, "", "x", token + "0"):
        service = Service(channel, pool, name, bearer(wrong))
        said = refused(grpc.StatusCode.UNAUTHENTICATED, service, "ListSnapshots")
        assert secret not in said and secret[::-1] not in said, said
    status = Service(channel, pool, "varve.v1.StatusService", bearer(token))
    refused(grpc.StatusCode.PERMISSION_DENIED, status, "GetStatus")


def main(target, snapshot, path, token_path=None):
    token = open(token_path).read().strip() if token_path else None
    metadata = bearer(token) if token else ()
    # Over a unix socket grpcio sends the path as the authority, percent-encoded, which servers
    # built on Rust's h2 refuse as malformed.
    options = [("grpc.default_authority", "localhost")] if target.startswith("unix:") else []
    with grpc.insecure_channel(target, options=options) as channel, open(path, "rb") as file:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        wanted = {f"varve.v1.{name}" for name in ("ContentService", "SnapshotService", "StatusService")}
        assert wanted | {"grpc.health.v1.Health"} <= names, names
        pool = DescriptorPool(database)

        health = Service(channel, pool, "grpc.health.v1.Health")
        for name in ("", *sorted(wanted)):
            assert health.call("Check", service=name).status == 1, name

        if token:
            check_token(channel, pool, token)
        else:
            status = Service(channel, pool, "varve.v1.StatusService").call("GetStatus")
            assert status.snapshots == 1 and len(status.store_id) == 32 and status.version, status

        snapshots = Service(channel, pool, "varve.v1.SnapshotService", metadata)
        (listed,) = snapshots.call("ListSnapshots").snapshots
        content = file.read()
        assert listed.name == snapshot and listed.size_bytes == len(content) and len(listed.root) == 32, listed
        assert dict(listed.tags) == {"a": "b"}, listed
        assert snapshots.call("GetSnapshot", snapshot=listed.id) == listed

        service = Service(channel, pool, "varve.v1.ContentService", metadata)
        for offset, length in ((0, 1), (4095, 8194), (8 << 20, 1 << 20), (len(content) - 7, 7)):
            assert read(service, snapshot, offset, length) == content[offset : offset + length], (offset, length)
        assert read(service, snapshot, 0, 0) == content

        said = refused(grpc.StatusCode.NOT_FOUND, snapshots, "GetSnapshot", snapshot="absent")
        assert "absent" in said, said
    print("all is as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
