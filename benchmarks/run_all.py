"""All benchmarks, one after another, never two at once; the peer's are left out where it is not made.

python -m benchmarks.run_all
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peer import PEER
from benchmarks.rounds import ROOT

BENCHMARKS = ("forward", "engines", "inference", "startup", "pictures", "memory", "mining", "mining_aldd", "ordering")
WITH_PEER = ("against_peer", "loader", "training")


def main() -> None:
    """Run them; each prints its own table."""
    names = [*BENCHMARKS, *WITH_PEER] if (PEER / "made").is_file() else list(BENCHMARKS)
    for name in names:
        sys.stdout.flush()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=True)
    if len(names) == len(BENCHMARKS):
        print("the peer is not made (benchmarks/make_peer.sh makes it): not compared with it")


if __name__ == "__main__":
    main()
