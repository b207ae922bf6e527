"""The first run of a file that nobody trusts, in a process of its own: started by formats.exported, asked on stdin.

Its last line on stdout is the answer, as JSON: the input's shape and the output's, or what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

MAX_BYTES = 24 << 30  # of address space


def main() -> None:
    """Answer one question."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.load(sys.stdin)
    sys.stdout.write(json.dumps(answer(asked)) + "\n")
    sys.stdout.flush()


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Run the file once."""
    import numpy as np

    from formats.runners import RUNNERS, openvino_core, openvino_xml
    from utils.errors import ConfigError, ExecutorError

    path = Path(asked["path"])
    try:
        shape = asked["shape"]
        if shape is None:
            read = openvino_core().read_model(openvino_xml(path))
            shape = [None if one.is_dynamic else one.get_length() for one in read.input(0).get_partial_shape()]
        sides = [batch or fallback for batch, fallback in zip(shape, (1, 3, asked["side"], asked["side"]))]
        run = RUNNERS[asked["runner"]](path, "fp32", 1)
        return {"shape": shape, "output": list(run(np.zeros(sides, np.float32)).shape)}
    except ConfigError as error:
        return {"missing": str(error)}
    except ExecutorError as error:
        return {"error": str(error) if str(path) in str(error) else f"{path}: {error}"}
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        lines = str(error).strip().splitlines()
        return {"error": f"{path}: {(lines[-1] if lines else type(error).__name__)[:200]}"}


if __name__ == "__main__":
    main()
