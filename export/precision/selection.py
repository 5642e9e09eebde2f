"""Choice of the products that stay in higher precision: those that cost most for their arithmetic, in fixed steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Shares of the multiply-adds with a weight that may stay in higher precision, tried one after the other. Fixed steps
# and rounded costs: costs that agree in the digits that count keep the same products, in the graph's order. Noise
# well below a hundredth of a cost (1e-6 of a cosine, where a block costs 1e-4) is mostly lost in rounding; at an edge
# between two roundings any noise can change the choice.
STEPS = (0.0, 0.03, 0.06, 0.10)
_DIGITS = 2  # of a cost that count


def kept_products(
    share: float, order: Sequence[str], work: Mapping[str, int], costs: Mapping[str, float]
) -> tuple[str, ...]:
    """The products of ``order`` to keep so that no more than ``share`` of all ``work`` is not int8, in that order.

    ``work``: multiply-adds of every product with a weight; those that are not in ``order`` are never int8. ``costs``:
    of each product of ``order`` (sensitivity.py).
    """
    total = sum(work.values())
    room = share * total - sum(count for name, count in work.items() if name not in order)
    kept = set()
    places = {name: index for index, name in enumerate(order)}
    for name in sorted(order, key=lambda name: (-_rounded(costs[name] / max(work[name], 1)), places[name])):
        if work[name] <= room and costs[name] > 0:
            kept.add(name)
            room -= work[name]
    return tuple(name for name in order if name in kept)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
