"""Random mining: uniform, fixed by seed and line."""

from __future__ import annotations

from mining.mining_random import uniform


def test_a_line_has_one_number_for_a_seed() -> None:
    assert uniform(0, "/in/a.jpg") == uniform(0, "/in/a.jpg")
    assert uniform(0, "/in/a.jpg") != uniform(1, "/in/a.jpg")
    assert uniform(0, "/in/a\udcff.jpg") != uniform(0, "/in/a.jpg")


def test_numbers_are_uniform() -> None:
    numbers = sorted(uniform(7, f"/in/{n}.jpg") for n in range(4000))
    assert numbers[0] >= 0 and numbers[-1] < 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded once in a thousand draws, and this draw is fixed.
    assert max(abs(number - k / 4000) for k, number in enumerate(numbers)) < 1.95 / 4000**0.5
