"""Speed and memory, measured by hand: ratios of interleaved rounds. Never part of the test run."""
