"""Rules about words: references lead somewhere, docstrings state, retired names do not come back.

The words are those of the field.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("base", "export", "runtime", "fedproto", "agent", "coordinator", "experiments", "api")
FOLDERS = (*PACKAGES, "bench", "examples", "release", "tests", "docs")
GENERATED = {"flamest_v1_pb2.py", "flamest_v1_pb2_grpc.py"}
EXEMPT = {"tests/test_words.py"}

# Names and phrases of earlier versions, with the name that took their place.
RETIRED = {
    r"\bwish(es)?\b|\bWishes\b|parse_wishes|NO_WISHES": "BackendOptions, parse_backend_options, options",
    r"(?<![\"{])\b(rungs?|ladder)\b(?!\")|\bRung\b|\bclimb(s|ed)?\b": "Candidate, rank_backends, backend candidates",
    r"\bContender\b|\bhold_contest\b|\bcontest\b|\bWAYS\b": "Measurement, benchmark, autotune",
    r"\bStanding\b|\bSettled\b": "TaskStatus, PrecisionPolicy, ResolvedPrecision",
    r"\bPatience\b|\bturnstiles?\b|\bTurnstile\b": "RetryPolicy, TransferLimiter",
    r"\bRunKeeper\b|\bLiveRun\b|\bModelShelf\b|\bAdmission\b": "RunService, ActiveRun, ModelStore, UpdateHandler",
    r"\btold_count\b|\btold_evaluation\b|\blooks_twice\b": "rounded_count, redact_evaluation, needs_two_passes",
    r"\bDescriber\b|\bRowWriter\b|\bBatchWriter\b|\bImageMemory\b": "Captioner, CrossAttentionCache",
    r"\bLanes\b|\blet_go\b|\bmust_be_unchanged\b": "PipelineOptions, release_frames, verify_unchanged",
    r"\bWorkshop\b|\bWorkplace\b|\bLesson\b|\b_School\b": "ExportContext, WorkerConfig, TrainJob, Distillation",
    r"\bFootage\b|\bfootage\b|\brivals?\b|\bRival\w*": "CalibrationClips, clips, baselines",
    r"\brooms\b|\b(which|what|each|this|every|only) room\b|rules of the house": "packages, rules",
    r"\bbecomes? of\b|\bTensorRT plans?\b": "outcome of, TensorRT engine",
    r"\bcut and blurred\b|\b_?blur(red)?\b": "clipped and noised",
    r"\banew\b|\bgo(es)? on from\b|\bmend(s|ed|ing)?\b": "again, resume from, fix",
    r"\bNOTES(\.md|[ ,:]+decision|:)|\bFACTS(\.md|:| has\b| says\b)": "docs/paper.md, reading N; or the fact itself",
    r"(?<![\w\"-])T[0-4][0-9]\b(?!:\d)": "the promise in words (docs/guarantees.md)",
}
QUESTIONS = ("What", "How", "Whether", "Who", "Whose", "Where", "Which", "Why")
PATH = re.compile(r"(?<![\w/.*{}-])((?:%s)/[\w./-]+\.(?:md|py|json|proto|toml|sh|yaml))" % "|".join(FOLDERS))  # noqa: UP031
NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\]\((?!https?:)([^)\s#]+)[^)\s]*\)")  # [text](path#heading) in Markdown
PLACEHOLDER = re.compile(r"[A-Z]{3,}")  # bench/results/NAME.json


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and text of every file of code, tests and documentation under ``root``."""
    found = [*root.glob("*.py"), *root.glob("*.md"), root / "pyproject.toml", root / "Makefile"]
    for folder in FOLDERS:
        found += [path for end in ("py", "md", "proto") for path in (root / folder).rglob(f"*.{end}")]
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        if path.is_file() and path.name not in GENERATED and name not in EXEMPT:
            yield name, path.read_text()


def missing_paths(root: Path) -> list[str]:
    """Return every path of the repository that code or documentation names and that does not exist."""
    return [
        f"{name}: {path}"
        for name, text in texts(root)
        for path in sorted(set(PATH.findall(text)))
        if not PLACEHOLDER.search(Path(path).stem) and not (root / path).exists()
    ]


def missing_tests(root: Path) -> list[str]:
    """Return every ``path::name`` of a test that code or documentation names and that is not in that file."""
    return [
        f"{name}: {path}::{test}"
        for name, text in texts(root)
        for path, test in sorted(set(NAMED_TEST.findall(text)))
        if not (root / path).is_file() or f"def {test}(" not in (root / path).read_text()
    ]


def dead_links(root: Path) -> list[str]:
    """Return the links of Markdown pages to files that do not exist."""
    return [
        f"{name}: {link}"
        for name, text in texts(root)
        if name.endswith(".md")
        for link in LINK.findall(text)
        if not (root / name).parent.joinpath(link).exists()
    ]


def bare_decisions(root: Path) -> list[str]:
    """Return the references to a decision that do not name its file."""
    return [
        f"{name}:{number}: {found}"
        for name, text in texts(root)
        for number, line in enumerate(text.splitlines(), 1)
        for found in re.findall(r"\b[Dd]ecisions? \d{3}\b|docs/decisions/\d{3}\b(?!-)", line)
    ]


def retired_words(root: Path) -> list[str]:
    """Return every retired name in code, tests and documentation, with the name to use."""
    return [
        f"{name}:{number}: {found[0]!r}; use {instead}"
        for name, text in texts(root)
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in RETIRED.items()
        if (found := re.search(pattern, line))
    ]


def questioning_docstrings(root: Path) -> list[str]:
    """Return the docstrings that open with a question word instead of a verb or a noun phrase."""
    return [
        f"{name}:{node.body[0].lineno}: {docstring.split()[0]}"
        for name, text in texts(root)
        if name.endswith(".py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (docstring := ast.get_docstring(node))
        and docstring.split()[0].strip("'’s,").rstrip(".") in QUESTIONS
    ]


def long_test_names(root: Path) -> list[str]:
    """Return the names of tests that are longer than a dozen words."""
    return [
        f"{name}: {test}"
        for name, text in texts(root)
        if name.startswith("tests/")
        for test in re.findall(r"def (test_\w+)", text)
        if test.count("_") > 12
    ]


def listed_modules(architecture: str) -> set[str]:
    """Return the files that the section "Files" of ARCHITECTURE.md lists: folders end in a slash, files are below."""
    found, folder = set(), ""
    for line in architecture.partition("\n## Files\n")[2].splitlines():
        if line.startswith("      "):
            found.add(folder + line.split()[0])
        elif line.startswith("    "):
            folder = line.strip()
    return found


def entered_files(architecture: str) -> dict[str, list[str]]:
    """Return the files of each numbered walk in ARCHITECTURE.md; one without a folder is in the folder before it."""
    walks: dict[str, list[str]] = {}
    for title, text in re.findall(
        r"^## (An? [^\n]*: from [^\n]*)\n(.*?)(?=^## |\Z)", architecture, re.MULTILINE | re.DOTALL
    ):
        folder, found = "", walks.setdefault(title.split(":")[0], [])
        for name in re.findall(r"`([\w/]+\.py)`", text):
            folder = name.rpartition("/")[0] or folder
            found.append(f"{folder}/{name.rpartition('/')[2]}")
    return walks


def modules(root: Path) -> set[str]:
    """Return the source files of the packages, without generated ones and those that only start or mark a package."""
    return {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py", *GENERATED}
    }


def test_every_path_named_in_code_and_docs_exists():
    assert missing_paths(ROOT) == []


def test_every_test_that_a_page_names_is_in_its_file():
    assert missing_tests(ROOT) == []


def test_every_link_of_a_page_leads_to_a_file():
    assert dead_links(ROOT) == []


def test_every_reference_to_a_decision_names_its_file():
    assert bare_decisions(ROOT) == []


def test_no_retired_name_comes_back():
    assert retired_words(ROOT) == []


def test_no_docstring_opens_with_a_question_word():
    assert questioning_docstrings(ROOT) == []


def test_architecture_lists_every_module_and_no_other():
    assert listed_modules((ROOT / "ARCHITECTURE.md").read_text()) == modules(ROOT)


def test_each_walk_of_architecture_names_a_file_once():
    walks = entered_files((ROOT / "ARCHITECTURE.md").read_text())
    assert sorted(walks) == ["A clip", "An export", "An update"]
    for files in walks.values():
        assert len(files) > 20
        assert [name for name in files if files.count(name) > 1 or not (ROOT / name).is_file()] == []


def test_every_test_name_states_its_rule_in_a_dozen_words():
    assert long_test_names(ROOT) == []


def test_each_rule_of_words_finds_a_violation(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "agent").mkdir()
    (tmp_path / "docs" / "there.md").write_text(
        "see docs/there.md, agent/x.py and docs/gone.md, bench/results/NAME.json"
    )
    (tmp_path / "agent" / "x.py").write_text('"""Whether a clip counts."""\n\n\nclass Wishes:\n    """Shows T29."""\n')
    assert missing_paths(tmp_path) == ["docs/there.md: docs/gone.md"]
    (tmp_path / "docs" / "there.md").write_text("docs/decisions/001-x.md\nDecision 001, docs/decisions/002\n")
    assert bare_decisions(tmp_path) == ["docs/there.md:2: Decision 001", "docs/there.md:2: docs/decisions/002"]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_a_clip_counts():\n    pass\n")
    (tmp_path / "docs" / "named.md").write_text(
        "`tests/test_x.py::test_a_clip_counts`, `tests/test_x.py::test_a_clip`, `tests/test_y.py::test_a_clip_counts`"
    )
    assert missing_tests(tmp_path) == [
        "docs/named.md: tests/test_x.py::test_a_clip",
        "docs/named.md: tests/test_y.py::test_a_clip_counts",
    ]
    (tmp_path / "docs" / "named.md").unlink()
    (tmp_path / "tests" / "test_x.py").unlink()
    (tmp_path / "docs" / "links.md").write_text("[a](there.md#part) [b](https://example.org/x.md) [c](gone.md)")
    assert dead_links(tmp_path) == ["docs/links.md: gone.md"]
    assert [line.split(";")[0] for line in retired_words(tmp_path)] == ["agent/x.py:4: 'Wishes'", "agent/x.py:5: 'T29'"]
    assert questioning_docstrings(tmp_path) == ["agent/x.py:1: Whether"]
    assert (
        listed_modules("a/\n\n## Files\n\n    agent/\n      x.py      clips\n") == modules(tmp_path) == {"agent/x.py"}
    )
