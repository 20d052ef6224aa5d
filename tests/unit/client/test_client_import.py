"""What `import mien` brings along."""

import json
import subprocess
import sys
from typing import Any

HEAVY = {
    *("torch", "cv2", "PIL", "onnx", "onnxruntime", "scipy", "pydantic", "tqdm", "rich"),
    *("tritonclient", "mien_server"),
}


def in_fresh_interpreter(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_importing_mien_is_light() -> None:
    loaded = in_fresh_interpreter(
        "import json, sys, mien;"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    assert "mien" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_the_command_line_loads_pillow_only_to_draw() -> None:
    loaded = in_fresh_interpreter(
        "import json, sys, mien.cli;"
        "mien.cli.main(['--address', '127.0.0.1:1', 'detect', 'none.jpg']);"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    assert HEAVY.isdisjoint(loaded)


def test_an_array_needs_no_pillow() -> None:
    loaded = in_fresh_interpreter(
        "import json, sys, numpy; from mien.images import image_message;"
        "image_message(numpy.zeros((2, 2, 3), numpy.uint8));"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    assert HEAVY.isdisjoint(loaded)


def test_gevent_can_take_over_grpc_before_the_first_call() -> None:
    answer = in_fresh_interpreter(
        "import gevent.monkey; gevent.monkey.patch_all();"
        "import grpc.experimental.gevent as g; g.init_gevent();"
        "import json, gevent, mien\n"
        "def call():\n"
        "    try:\n"
        "        with mien.Client('127.0.0.1:1') as client: client.detect(b'photo')\n"
        "    except mien.Unavailable as error: return error.reason\n"
        "jobs = [gevent.spawn(call) for _ in range(3)]; gevent.joinall(jobs, timeout=30)\n"
        "print(json.dumps([job.value for job in jobs]))"
    )
    assert answer == ["SERVER_UNREACHABLE"] * 3
