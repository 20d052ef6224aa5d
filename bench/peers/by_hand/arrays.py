"""Types of arrays; nothing but NumPy, for Triton's Python backend has no OpenCV."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

CROP = 112
"""Side of an aligned face, in pixels."""
