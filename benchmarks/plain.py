"""The plain forward pass in a process of its own, untouched by what we settle for ours (allocator, waiting threads).

python -m benchmarks.plain BATCH SIDE    # runs once for each line on stdin, and answers with a line
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Optional

from benchmarks.rounds import ROOT, SHARED


class PlainProcess:
    """Runs the plain pass on request: fp32, contiguous, eager, batch norm folded."""

    def __init__(self, batch: int, side: int) -> None:
        command = [sys.executable, "-m", "benchmarks.plain", str(batch), str(side)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __enter__(self) -> PlainProcess:
        return self

    def __call__(self) -> None:
        """Run it once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise SystemExit("the plain pass failed")

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._process.communicate()


def main() -> None:
    """Serve."""
    import torch

    from models.checkpoint import read_checkpoint
    from models.detector import build_model
    from models.fuse import fold_batch_norms

    batch, side = (int(text) for text in sys.argv[1:])
    model = fold_batch_norms(build_model(read_checkpoint(SHARED / "weights/yolov5n.pt")))
    images = torch.rand(batch, 3, side, side)
    with torch.inference_mode():
        for _ in sys.stdin:
            model(images)
            print(flush=True)


if __name__ == "__main__":
    main()
