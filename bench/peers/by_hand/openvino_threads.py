"""gRPC threads and OpenVINO.

    python -m bench.peers.by_hand.openvino_threads --port 8101 --graphs FOLDER --hint LATENCY

OpenVINO's own tuning is its hint. LATENCY gives each call all cores, so that a lone one is fastest;
THROUGHPUT gives each of as many calls as there are cores one of them. Neither is best at every number of
callers, so the benchmark runs both.
"""

import argparse

from bench.peers.by_hand.openvino_networks import OpenVinoNetworks
from bench.peers.by_hand.service import serve


def load(options: argparse.Namespace) -> OpenVinoNetworks:
    return OpenVinoNetworks(options.graphs, options.canvas, PERFORMANCE_HINT=options.hint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--hint", choices=["LATENCY", "THROUGHPUT"], default="THROUGHPUT")
    serve(load, parser)
