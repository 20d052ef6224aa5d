"""OpenVINO without the part of it that reports its use.

`import openvino` also imports its model converter, and that alone sends an event to its makers' analytics,
asking nobody, and writes an identifier into the home folder. Nothing else of the package reports anything,
and nothing here needs the converter; without it the import takes a fifth of the time, too. Import openvino
from here only. tests/integration/test_no_telemetry.py watches what it does.
"""

import sys

# OpenVINO takes an ImportError for its answer and goes on.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # None is how imports are barred

import openvino  # noqa: E402
import openvino.frontend  # noqa: E402
import openvino.preprocess  # noqa: E402

__all__ = ["openvino"]
