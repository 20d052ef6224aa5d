"""Photos and messages damaged by chance, each by its number, so that any of them can be made again."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from tritonclient.grpc import service_pb2

from mien.v1 import face_pb2, gallery_pb2
from tests.crafted import exif, png, segment, tiff, with_segments

FACES = "/mien.v1.FaceService/"
GALLERIES = "/mien.v1.GalleryService/"
TRITON = "/inference.GRPCInferenceService/"
SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "person_a_1.jpg"
_LARGE = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\xff\xff",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\x80",
)


@cache
def once_failed() -> Mapping[str, bytes]:
    """Files that a server once failed on: they held a decoder, or memory. Always sent first, as they are."""
    flat = Image.new("RGB", (7000, 7000), (90, 10, 10))
    return {
        "strips that share bytes": tiff(6000, bytes(range(256)) * 32, strips=600, compression=4),
        "thousands of segments of EXIF": with_segments(*[segment(0xE1, b"Exif\0\0")] * 4000),
        "an orientation of millions of fractions": png(64, 64, exif(2_000_000, kind=5)),
        "one pixel wide": png(1, 1_000_000),
        "flat and large, WebP": _file(flat, "WEBP", lossless=True),
        "flat and large, PNG": _file(flat, "PNG"),
        "scans without end": _scans(90),
    }


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _scans(count: int) -> bytes:
    data = _file(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def crowd() -> bytes:
    """A request to embed fifty faces, which is as much as one batch may hold."""
    with Image.open(SAMPLE) as portrait:
        face = portrait.convert("RGB").resize((160, 200))
    photo = Image.new("RGB", (1600, 1000))
    for number in range(50):
        photo.paste(face, (160 * (number % 10), 200 * (number // 10)))
    request = face_pb2.EmbedRequest(
        image=face_pb2.Image(encoded=_file(photo, "JPEG")),
        selection=face_pb2.FaceSelection(policy=face_pb2.FACE_POLICY_ALL),
    )
    return request.SerializeToString()


@cache
def seeds() -> tuple[bytes, ...]:
    """Sound photos of every format that the server reads, small enough to be damaged in many places."""
    with Image.open(SAMPLE) as portrait:
        photo = portrait.convert("RGB").resize((180, 225))
    marked = Image.Exif()
    marked[0x0112] = 6
    return (
        _file(photo, "JPEG"),
        _file(photo, "JPEG", progressive=True, exif=marked),
        _file(photo.convert("CMYK"), "JPEG"),
        _file(photo.convert("L"), "PNG"),
        _file(photo.convert("P"), "PNG"),
        _file(photo.convert("RGBA"), "PNG"),
        _file(photo.convert("I;16"), "PNG"),
        _file(photo, "WEBP"),
        _file(photo.convert("RGBA"), "WEBP", lossless=True),
        _file(photo, "BMP"),
        _file(photo, "TIFF", compression="tiff_lzw"),
        _file(photo, "TIFF", compression="jpeg"),
        _file(photo.convert("1"), "TIFF", compression="group4"),
    )


def damaged(data: bytes, draw: Random) -> bytes:
    """The bytes with one to eight things done to them; most at the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        size = len(out)
        at = draw.randrange(min(size, 256) if draw.random() < 0.4 else size) if size else 0
        end = min(size, at + draw.choice((1, 2, 4, 16, 64, 1000)))
        match draw.randrange(7):
            case 0 if size:
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                out[at:end] = draw.randbytes(end - at)
            case 2:
                large = draw.choice(_LARGE)
                out[at : at + len(large)] = large
            case 3:
                del out[at:end]
            case 4:
                out[at:at] = out[at:end] * draw.choice((1, 2, 50))
            case 5:
                del out[end if draw.random() < 0.3 else size - size // 8 :]
            case _:
                other = draw.choice(seeds())
                start = draw.randrange(len(other))
                out[at:at] = other[start : start + draw.choice((4, 64, 4000))]
    return bytes(out)


def photo_call(number: int, seed: int) -> tuple[str, bytes]:
    """The method and the request of a damaged photo."""
    draw = Random(f"{seed} photo {number}")  # noqa: S311 - no secret
    known = tuple(once_failed().values())
    photo = known[number] if number < len(known) else damaged(draw.choice(seeds()), draw)
    image = face_pb2.Image(encoded=photo)
    match draw.randrange(7):
        case 0:
            crop = face_pb2.Image(aligned_face=face_pb2.AlignedFace(encoded=photo))
            return f"{FACES}Embed", face_pb2.EmbedRequest(image=crop).SerializeToString()
        case 1 | 2:
            return f"{FACES}Embed", face_pb2.EmbedRequest(image=image).SerializeToString()
        case 3:
            side = face_pb2.Subject(image=image)
            return f"{FACES}Verify", face_pb2.VerifyRequest(a=side, b=side).SerializeToString()
        case 4:
            return f"{FACES}Analyze", face_pb2.AnalyzeRequest(image=image).SerializeToString()
        case _:
            return f"{FACES}Detect", face_pb2.DetectRequest(image=image).SerializeToString()


def enrolling() -> tuple[tuple[str, bytes], ...]:
    """Calls that make two collections, of which one keeps crops, and enrol a face in each."""
    calls: list[tuple[str, Any]] = []
    for name, keeps in (("staff", True), ("guests", False)):
        make = gallery_pb2.CreateCollectionRequest(name=name, keep_crops=keeps)
        photo = face_pb2.Subject(image=face_pb2.Image(encoded=SAMPLE.read_bytes()))
        face = gallery_pb2.NewFace(subject=photo, person_id="ann", request_key=name)
        calls += [
            (f"{GALLERIES}CreateCollection", make),
            (f"{GALLERIES}Enrol", gallery_pb2.EnrolRequest(collection=name, faces=[face])),
        ]
    return tuple((path, request.SerializeToString()) for path, request in calls)


def _gallery_requests() -> Mapping[str, Any]:
    """Sound requests of every method of the galleries, by its name."""
    photo = face_pb2.Subject(image=face_pb2.Image(encoded=seeds()[0]))
    face = gallery_pb2.NewFace(subject=photo, person_id="bob", labels={"door": "one"})
    one = {"collection": "staff", "face_id": f"{1:016x}"}
    faces = [f"{number:016x}" for number in (1, 2)]
    return {
        "CreateCollection": gallery_pb2.CreateCollectionRequest(name="other", threshold=0.4),
        "ListCollections": gallery_pb2.ListCollectionsRequest(),
        "GetCollection": gallery_pb2.GetCollectionRequest(collection="staff"),
        "DeleteCollection": gallery_pb2.DeleteCollectionRequest(collection="other"),
        "Enrol": gallery_pb2.EnrolRequest(
            collection="guests", faces=[face], quality_policy=gallery_pb2.QUALITY_POLICY_ACCEPT
        ),
        "Identify": gallery_pb2.IdentifyRequest(
            collections=["staff", "guests"], subject=photo, top_k=3, labels={"door": "one"}
        ),
        "ListPersons": gallery_pb2.ListPersonsRequest(collection="staff", page_size=2),
        "GetPerson": gallery_pb2.GetPersonRequest(collection="staff", person_id="ann"),
        "ListFaces": gallery_pb2.ListFacesRequest(collection="guests", page_token="x"),  # noqa: S106
        "GetFace": gallery_pb2.GetFaceRequest(**one),
        "GetCrop": gallery_pb2.GetCropRequest(**one),
        "ExportFaces": gallery_pb2.ExportFacesRequest(collection="staff", page_size=9),
        "MoveFaces": gallery_pb2.MoveFacesRequest(
            collection="staff", face_ids=faces, person_id="eve"
        ),
        "DeleteFaces": gallery_pb2.DeleteFacesRequest(collection="staff", face_ids=faces),
        "DeletePerson": gallery_pb2.DeletePersonRequest(collection="guests", person_id="bob"),
        "Group": gallery_pb2.GroupRequest(collection="staff", threshold=0.4, min_faces=2),
        "Reembed": gallery_pb2.ReembedRequest(collection="staff", max_faces=10),
    }


@cache
def sound_messages() -> tuple[tuple[str, bytes], ...]:
    """Sound requests of every unary method that asks who calls, with their paths."""
    image = face_pb2.Image(encoded=seeds()[0])
    raw = face_pb2.Image(pixels=face_pb2.Pixels(height=8, width=8, data=bytes(192)))
    vector = face_pb2.Embedding(values=[0.5, 0.5, 0.5, 0.5], norm=1.0)
    options = face_pb2.FaceSelection(min_score=0.5, max_faces=3)
    infer = service_pb2.ModelInferRequest(model_name="sface", id="one")
    infer.inputs.add(name="face", datatype="UINT8", shape=[1, 3, 112, 112])
    infer.raw_input_contents.append(bytes(3 * 112 * 112))
    requests: Mapping[str, Callable[[], Any]] = {
        f"{FACES}Detect": lambda: face_pb2.DetectRequest(image=raw, selection=options),
        f"{FACES}Embed": lambda: face_pb2.EmbedRequest(image=image, selection=options),
        f"{FACES}Verify": lambda: face_pb2.VerifyRequest(
            a=face_pb2.Subject(embedding=vector), b=face_pb2.Subject(image=image), threshold=0.4
        ),
        f"{FACES}Analyze": lambda: face_pb2.AnalyzeRequest(
            image=image, analysers=[face_pb2.ModelRef(name="age", version=1)], selection=options
        ),
        f"{TRITON}ModelInfer": lambda: infer,
        f"{TRITON}ModelReady": lambda: service_pb2.ModelReadyRequest(name="sface", version="1"),
        f"{TRITON}ModelMetadata": lambda: service_pb2.ModelMetadataRequest(name="sface"),
        f"{TRITON}ModelConfig": lambda: service_pb2.ModelConfigRequest(name="sface"),
        f"{TRITON}ModelStatistics": lambda: service_pb2.ModelStatisticsRequest(name="sface"),
        f"{TRITON}ServerMetadata": service_pb2.ServerMetadataRequest,
        f"{TRITON}RepositoryIndex": service_pb2.RepositoryIndexRequest,
        f"{TRITON}RepositoryModelLoad": lambda: service_pb2.RepositoryModelLoadRequest(
            model_name="sface"
        ),
        f"{TRITON}RepositoryModelUnload": lambda: service_pb2.RepositoryModelUnloadRequest(
            model_name="sface"
        ),
        f"{TRITON}TraceSetting": lambda: service_pb2.TraceSettingRequest(model_name="sface"),
        f"{TRITON}LogSettings": service_pb2.LogSettingsRequest,
        **{
            f"{TRITON}{kind}SharedMemory{what}": getattr(
                service_pb2, f"{kind}SharedMemory{what}Request"
            )
            for kind in ("System", "Cuda")
            for what in ("Status", "Register", "Unregister")
        },
    }
    galleries = ((GALLERIES + name, request) for name, request in _gallery_requests().items())
    calls = (*((path, make()) for path, make in requests.items()), *galleries)
    return tuple((path, request.SerializeToString()) for path, request in calls)


def message_call(number: int, seed: int) -> tuple[str, bytes]:
    """The method and the bytes of a damaged request, or of one that belongs to another method."""
    draw = Random(f"{seed} message {number}")  # noqa: S311 - no secret
    path, request = draw.choice(sound_messages())
    if draw.random() < 0.1:
        path = draw.choice(sound_messages())[0]
    if draw.random() < 0.05:
        return path, draw.randbytes(draw.randrange(400))
    return path, damaged(request, draw)


def credential(name: str, known: Sequence[str]) -> tuple[str, bool]:
    """What the call of this name carries: a key or token, or in one case of four a damaged one.

    Returns:
        It, and whether it still holds. Never more than what may stand in metadata is damaged, and never only
        the last letters: some of a token's bits there mean nothing.
    """
    draw = Random(f"{name} credential")  # noqa: S311 - no secret
    good = draw.choice(known)
    if draw.random() < 0.75:
        return good, True
    at = draw.randrange(len(good) * 9 // 10)
    match draw.randrange(4):
        case 0:
            bad = good[:at]
        case 1:
            bad = good[:at] + ("a" if good[at] != "a" else "b") + good[at + 1 :]
        case 2:
            bad = good[:at] + "".join(draw.choices("abc.=_-{ ", k=draw.choice((1, 5, 3000)))) + "x"
        case _:
            bad = good * draw.choice((2, 5))
    return bad, False
