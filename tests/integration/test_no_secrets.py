"""A whole run with everything switched on, whose output has in it nothing that came in confidence."""

import io
import re
import signal
import socket
import ssl
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from PIL import Image
from tritonclient.grpc import service_pb2

from mien.v1 import face_pb2, gallery_pb2
from tests.conftest import LaunchServer
from tests.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame
from tests.integration.access_rig import EMBED, INFER, UNLOAD
from tests.integration.repository_rig import copy_repository, lighten
from tools.local_access import LocalAccess, bearer
from tools.local_server import open_channel

MARK = b"a-marker-of-a-photo-nobody-may-see"
DETECT, VERIFY = (EMBED.replace("Embed", name) for name in ("Detect", "Verify"))
GALLERY = "/mien.v1.GalleryService/"
LABEL = "what-only-a-label-says"
STREAM = INFER.replace("ModelInfer", "ModelStreamInfer")
EVERYTHING = ["--log-level", "debug", "--log-format", "json", "--access-log", "true"]


def marked(portrait: Path) -> Iterator[bytes]:
    """The portrait as files with a marker in them, sound and damaged, and what is no picture at all."""
    with Image.open(portrait) as picture:
        photo = picture.convert("RGB").resize((320, 400))
    exif = Image.Exif()
    exif[0x010E] = MARK.decode()
    exif[0x8298] = MARK.decode()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        photo.save(file, kind, exif=exif, **({"comment": MARK} if kind == "JPEG" else {}))
        data = file.getvalue()
        assert MARK in data
        yield data
        yield data[: len(data) * 2 // 3]
        at = data.index(MARK)
        yield data[: at - 12] + b"\xff" * 8 + data[at - 4 :]
    yield MARK
    yield b"GIF89a" + MARK * 3


def vectors(answer: bytes) -> list[float]:
    """The numbers of an embedding in an answer of Embed."""
    return list(face_pb2.EmbedResponse.FromString(answer).faces[0].embedding.values)


def use_gallery(call: Callable[[str, Any], bytes], photo: face_pb2.Image) -> list[bytes]:
    """Enrols a photo, looks for it, and has everything of it handed out: the crop, and the vector's bytes."""
    make = gallery_pb2.CreateCollectionRequest(name="staff", keep_crops=True)
    assert call("CreateCollection", make)
    subject = face_pb2.Subject(image=photo)
    face = gallery_pb2.NewFace(subject=subject, person_id="ann", labels={"note": LABEL})
    new = gallery_pb2.EnrolRequest(
        collection="staff", faces=[face], quality_policy=gallery_pb2.QUALITY_POLICY_ACCEPT
    )
    enrolled = gallery_pb2.EnrolResponse.FromString(call("Enrol", new)).results[0].face_id
    seek = gallery_pb2.IdentifyRequest(collections=["staff"], subject=subject)
    assert b"ann" in call("Identify", seek)
    assert LABEL.encode() in call("ListFaces", gallery_pb2.ListFacesRequest(collection="staff"))
    asked = gallery_pb2.GetCropRequest(collection="staff", face_id=enrolled)
    crop = gallery_pb2.GetCropResponse.FromString(call("GetCrop", asked)).crop.data
    given = gallery_pb2.ExportFacesRequest(collection="staff")
    faces = gallery_pb2.ExportFacesResponse.FromString(call("ExportFaces", given)).faces
    assert len(faces) == 1
    values = faces[0].embedding.values
    return [crop, struct.pack(f"<{len(values)}f", *values)]


def stray_byte(access: LocalAccess, address: str, key: str) -> bytes:
    """What comes of a key with a byte behind it that no gRPC client would send."""
    fields = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": EMBED.encode(),
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"authorization": f"Bearer {key}".encode() + b"\xff",
    }
    block = b"".join(
        b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    context = ssl.create_default_context(cadata=access.trusted.decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, block))
        connection.sendall(frame(DATA, END_STREAM, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer and (piece := connection.recv(4096)):
            answer += piece
    return answer


def pieces(secret: str, size: int) -> Iterator[str]:
    """All runs of so many letters of a secret, so that a part of it is found, too."""
    return (secret[at : at + size] for at in range(len(secret) - size + 1))


def test_nothing_secret_is_in_the_output_of_a_whole_run(
    launch_server: LaunchServer,
    model_repository_path: Path,
    tmp_path: Path,
    sample: Callable[[str], Path],
) -> None:
    access = LocalAccess(tmp_path)
    key_id, key = access.add_key("by key")
    revoked_id, revoked = access.add_key("revoked")
    access.revoke_key(revoked_id)
    good, ended = access.token(), access.token(exp=int(time.time()) - 600)
    forged = LocalAccess(_folder(tmp_path / "other")).token()
    wrong = [revoked, key[:-4] + "aaaa", key[:30], good[:-9], ended, forged, f"{key} {good}"]
    repository = lighten(copy_repository(model_repository_path, tmp_path / "models"))
    flags = [*EVERYTHING, *access.key_flags, *access.tls_flags]
    flags += ["--gallery-dir", str(tmp_path / "galleries")]
    numbers: set[float] = set()
    codes: set[str] = set()
    with (
        launch_server(*flags, repository=repository, trusted=access.trusted) as server,
        open_channel(server.address, access.trusted) as channel,
    ):

        def call(method: str, message: Any, credential: str, scheme: str = "Bearer") -> bytes:
            sent = (("authorization", f"{scheme} {credential}"), ("x-request-id", "known-by-name"))
            request = message if isinstance(message, bytes) else message.SerializeToString()
            untyped: Any = channel.unary_unary(method)
            try:
                answer: bytes = untyped(request, timeout=60, metadata=sent)
            except grpc.RpcError as error:
                codes.add(error.code().name)
                return b""
            codes.add("OK")
            return answer

        photos = [face_pb2.Image(encoded=data) for data in marked(sample("person_a_1"))]
        for credential, photo in zip([key, good] * len(photos), photos, strict=False):
            answer = call(EMBED, face_pb2.EmbedRequest(image=photo), credential)
            numbers.update(vectors(answer) if answer else [])
        vector = face_pb2.EmbedResponse.FromString(
            call(EMBED, face_pb2.EmbedRequest(image=photos[0]), key)
        )
        known = vector.faces[0].embedding
        aside = face_pb2.Embedding(values=[2 * v for v in known.values], model=known.model)
        numbers.update(aside.values)
        for other in (known, aside):
            sides = [face_pb2.Subject(embedding=known), face_pb2.Subject(embedding=other)]
            call(VERIFY, face_pb2.VerifyRequest(a=sides[0], b=sides[1]), good)
        crop = bytearray(MARK * (3 * 112 * 112 // len(MARK) + 1))[: 3 * 112 * 112]
        for side in (112, 111):
            infer = service_pb2.ModelInferRequest(model_name="sface", id="one")
            infer.inputs.add(name="face", datatype="UINT8", shape=[1, 3, side, side])
            infer.raw_input_contents.append(bytes(crop))
            for credential in (key, good):
                call(INFER, infer, credential)
        pixels = face_pb2.Pixels(height=112, width=112, data=bytes(crop))
        aligned = face_pb2.AlignedFace(pixels=pixels)
        call(EMBED, face_pb2.EmbedRequest(image=face_pb2.Image(aligned_face=aligned)), key)
        call(DETECT, MARK + b"\xff" * 9, key)
        crops = use_gallery(
            lambda name, message: call(GALLERY + name, message, access.key), photos[0]
        )
        for name in ("Enrol", "GetCrop", "ExportFaces"):
            call(GALLERY + name, b"\x0a\x05staff" + MARK, key)
            call(GALLERY + name, b"", forged)
        call(UNLOAD, service_pb2.RepositoryModelUnloadRequest(model_name="sface"), key)
        call(UNLOAD, service_pb2.RepositoryModelUnloadRequest(model_name="sface"), access.key)
        for credential in wrong:
            for method in (EMBED, UNLOAD):
                call(method, face_pb2.EmbedRequest(image=photos[0]), credential)
        call(EMBED, b"", key, "Basic")
        assert stray_byte(access, server.address, key)
        stream: Any = channel.stream_stream(STREAM)(
            iter([infer.SerializeToString()]), timeout=60, metadata=bearer(key)
        )
        assert len(list(stream)) == 1
        server.process.send_signal(signal.SIGHUP)
        with urllib.request.urlopen(server.metrics_url) as page:  # noqa: S310 - on loopback
            metrics = page.read().decode()
    assert re.search(r"^mien_tls_certificate_days_left \d", metrics, re.M)
    log = server.log.read_text()
    # What is looked for could have been found: all this did happen, and was logged.
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED"} <= codes
    expected = (
        "call answered",
        "call refused",
        "known-by-name",
        "by token",
        key_id,
        "token refused",
    )
    assert [each for each in expected if each not in log] == []
    assert len(numbers) > 200
    told = log + metrics
    for name, secret in (("key", key), ("revoked", revoked), ("admin", access.key)):
        assert not any(piece in told for piece in pieces(secret[18:], 12)), name
    for name, token in (("good", good), ("ended", ended), ("forged", forged)):
        assert not any(piece in told for part in token.split(".") for piece in pieces(part, 16)), (
            name
        )
    private = "".join((access.folder / "server.key").read_text().splitlines()[1:-1])
    assert "mien_server.audit" in log
    assert '"subject": "staff"' in log
    for raw in crops:
        at = len(raw) // 2
        for written in (raw[at : at + 8].hex(), repr(raw[at : at + 8])[2:-1]):
            assert written not in told
    for secret in (MARK.decode(), MARK.hex(), LABEL, private):
        assert not any(piece in told for piece in pieces(secret, 20))
    # The metrics have so many numbers that some begin alike.
    assert not [n for n in numbers if abs(n) > 0.01 and repr(abs(n))[:9] in log]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
