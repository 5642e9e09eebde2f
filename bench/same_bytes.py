"""Proof that a change of the code leaves every byte as it was: two trees run the same scenarios, and all is compared.

    python -m bench.same_bytes --before COMMIT [--out FILE.json] [--only export training ...] [--after DIR]

The tree before is COMMIT, checked out for the time of the comparison; the tree after is this one with its uncommitted
changes, or the one in DIR. Both run at the same time as processes, and only through public interfaces: the console
entry points that each tree's pyproject.toml names, their options and JSON, files, keys of settings files, tables, and
the messages on the wire. So modules, classes and functions may have other names and places.

One row for each thing that is compared. Differences between two runs of the same code (times, random identifiers,
ports) are left out; same_bytes_normal.py lists them with the reasons. ``--before HEAD`` in a clean checkout compares
the tree with itself: every row must be the same. A row in which only sentences for people differ has the verdict
"words". Exit status 1 on any difference, with ``--but-words`` only on those in anything else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import machine
from .same_bytes_federation import CASES, demo, federation
from .same_bytes_normal import LEFT_OUT, WIRE_LEFT_OUT, WORDS
from .same_bytes_scenarios import ScenarioContext, commands, experiments, export, extraction, training
from .same_bytes_tree import FAILURES, Tree

ROOT = Path(__file__).resolve().parent.parent
Scenario = Callable[[ScenarioContext], Iterator[tuple[str, Any]]]
SCENARIOS: dict[str, Scenario] = {
    "commands": commands,
    "export": export,
    "extraction": extraction,
    "training": training,
    "federation": federation,
    "experiments": experiments,
    "demo": demo,
}
SHOWN, BEFORE = 30, 8  # characters of a value that differs; so many of them before it does
KEPT = 50  # differences of a row in the result
ABSENT = "(absent)"


@dataclass(frozen=True)
class Row:
    """One thing that was compared: where it differs, with the values before and after."""

    name: str
    values: int  # that it consists of
    differences: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # differences in sentences for people

    @property
    def verdict(self) -> str:
        return "DIFFERENT" if self.differences else "words" if self.words else "same"

    def line(self) -> str:
        """For people: with the first difference."""
        found = (*self.differences, *self.words)
        more = f"  (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{self.name:62} {self.values:6}  {self.verdict:9}  {found[0] if found else ''}{more}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """For the result's file."""
        listed = {"differences": list(self.differences[:KEPT]), "words": list(self.words[:KEPT])}
        return {"name": self.name, "verdict": self.verdict, "values": self.values, **listed}


def measure(commit: str, names: Sequence[str], cases: Sequence[str] = (), after: Path = ROOT) -> list[Row]:
    """Both trees through the scenarios ``names``, of federation the ``cases`` or all."""
    with tempfile.TemporaryDirectory(prefix="flamest-same-bytes-") as scratch:
        trees = [Tree("before", Path(scratch, "1")), Tree("after", Path(scratch, "2"))]
        for tree in trees:
            tree.parent.mkdir(parents=True)
            tree.work.mkdir()
        old, new = (tree.parent / "flamest" for tree in trees)
        _git("worktree", "add", "--detach", str(old), commit)
        try:
            new.symlink_to(after.resolve())
            with ThreadPoolExecutor(len(trees)) as pool:
                try:
                    records = list(pool.map(lambda tree: _records(ScenarioContext(tree, tuple(cases)), names), trees))
                except BaseException:  # Ctrl-C too: the other tree's processes would run on
                    for tree in trees:
                        tree.stop()
                    raise
        finally:
            _git("worktree", "remove", "--force", str(old))
    return compare(*records)


def _records(context: ScenarioContext, names: Sequence[str]) -> dict[str, Any]:
    """By name: everything that a tree's runs left. A scenario that breaks off has its reason in place of the rest."""
    tree, found = context.tree, dict[str, Any]()
    tree.check()
    for scenario in names:
        try:
            for name, record in SCENARIOS[scenario](context):
                found[f"{scenario}: {name}"] = record
                _say(f"{tree.name:6} {scenario}: {name}", record)
        except FAILURES as failed:
            found[f"{scenario}: to its end"] = failed
            _say(f"{tree.name:6} {scenario}", failed)
    return found


def _say(what: str, record: Any) -> None:
    """Report progress on standard error."""
    ended = f": {type(record).__name__}: {record}" if isinstance(record, Exception) else ""
    print(what + ended, file=sys.stderr, flush=True)


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    """A row for each name that either has; what could not be run counts as a difference."""
    rows = []
    for name in list(dict.fromkeys([*before, *after])):
        one, other = before.get(name, ABSENT), after.get(name, ABSENT)
        both = (("before", one), ("after", other))
        failed = [f"{which}: {type(it).__name__}: {it}" for which, it in both if isinstance(it, Exception)]
        found = list(_differences(one, other)) if not failed else []
        rows.append(
            Row(
                name,
                _size(one),
                tuple(failed) or tuple(f"{where or '/'}: {what}" for where, what in found if not _is_words(where)),
                tuple(f"{where}: {what}" for where, what in found if _is_words(where)),
            )
        )
    return rows


def _is_words(where: str) -> bool:
    return not WORDS.isdisjoint(where.split("/"))


def _differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(key, ABSENT), other.get(key, ABSENT), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list):
        for place, (left, right) in enumerate(itertools.zip_longest(one, other, fillvalue=ABSENT)):
            yield from _differences(left, right, f"{where}/{place}")
    elif type(one) is not type(other) or one != other:
        yield where, _apart(one, other)


def _apart(one: Any, other: Any) -> str:
    """Both values, long ones from shortly before the place where they part."""
    texts = [str(one), str(other)]
    shortest = min(map(len, texts))
    apart = next((place for place in range(shortest) if len({text[place] for text in texts}) > 1), shortest)
    return " -> ".join(_cut(text, max(apart - BEFORE, 0) if len(text) > SHOWN else 0) for text in texts)


def _cut(text: str, begin: int) -> str:
    end = begin + SHOWN
    return "…" * (begin > 0) + text[begin:end] + "…" * (end < len(text))


def _size(value: Any) -> int:
    """Number of single values in a record."""
    if isinstance(value, dict | list):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    return 1


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--after", type=Path, default=ROOT, metavar="DIR", help="a checkout; this one by default")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[], metavar="CASE", help="of federation")
    parser.add_argument("--but-words", action="store_true", help="sentences for people may differ")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree and the processes go
    began = time.monotonic()
    commit = _git("rev-parse", "--verify", f"{asked.before}^{{commit}}")
    rows = measure(commit, asked.only, asked.cases, asked.after)
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("same", "words", "DIFFERENT")}
    seconds = round(time.monotonic() - began, 1)
    print("\n".join(row.line() for row in rows))
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items()) + f", {seconds:.0f} s")
    if asked.out:
        figures = {
            "measured": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "before": commit,
            "seconds": seconds,
            "count": count,
            "left_out": {**LEFT_OUT, **{" ".join(key): sorted(value) for key, value in WIRE_LEFT_OUT.items()}},
            "rows": [row.as_json() for row in rows],
        }
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if count["DIFFERENT"] or (count["words"] and not asked.but_words) else 0)


if __name__ == "__main__":
    main()
