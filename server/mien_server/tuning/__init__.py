"""Finds the settings with which one model answers most, within a limit on its 99th percentile.

How it goes:

- `candidates`: what a config.pbtxt can say of backend, precision, preferred batch size, queue delay and
  batches at once, as a grid; the model's own settings are one candidate more. Each pair of backend and
  precision is loaded once, with all the checks of a server's load, and dropped with its reason if it fails.
- `slots`: a candidate is a slot of the real scheduler on such a loaded network. Rows of random pixels go into
  it from callers in this process, each waiting for its answer: what is measured is queueing and computing,
  not decoding nor gRPC.
- `sweep`: the time is divided by successive halving. All candidates get a short measurement, at the number of
  callers that tells most; each further rung has a quarter of the candidates and as much time as the first, in
  rounds that alternate between them, at all numbers of callers that the limit leaves room for. Figures are
  medians over the rounds of a candidate's last rung. The highest rate within the limit wins; where rates are
  as good as equal, the lower median latency does.
- `rewriting`: the winner's settings, where they differ, go into the model's own text.
- `evidence`: everything that was measured, as JSON, a table and a picture.
"""

from typing import Literal, TypeAlias, get_args

Setting: TypeAlias = Literal["backend", "precision", "batch", "delay", "count"]
"""What a candidate may change."""

SETTINGS: tuple[Setting, ...] = get_args(Setting)
