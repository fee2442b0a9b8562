"""What the documents name exists: files of the repository, commands with their options, modules, targets of `make`."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from lancet_pipeline.cli import app

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "lancet_pipeline"
DOCUMENTS = sorted(
    [*PROJECT.glob("docs/**/*.md"), PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "mlflow/README.md"]
)
ROOMS = {folder.name for base in (PROJECT, PACKAGE) for folder in base.iterdir() if folder.is_dir()}


def code(text: str) -> list[str]:
    """Pieces of code of a Markdown text: spans in backticks, and lines of blocks without their comments."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()] + re.findall(r"^ {4}(\S.*)$", rest, re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]
    return spans + [re.sub(r"\s#.*", "", line) for line in lines]


def named_paths(piece: str) -> list[str]:
    """Words that name a file of the repository: below a folder of it, or with the ending of a source file."""
    words = [word.strip(".,;:()[]\"'") for word in piece.split()]
    plain = [word.partition("::")[0] for word in words if re.fullmatch(r"[\w./*:-]+", word) and "://" not in word]
    return [
        word
        for word in plain
        if ("/" in word and word.partition("/")[0] in ROOMS) or re.fullmatch(r"[a-z][\w/]*\.(py|sh|toml|yaml)", word)
    ]


def unknown_command(piece: str) -> str | None:
    """What is wrong with the `lancet` command of a piece of code; None where nothing is, or where it holds none."""
    found = re.match(r"(?:\w+=\S+ |time )*(?:\S*/)?lancet (.+)", piece)
    if not found:
        return None
    words, commands = found[1].split(), [get_command(app)]
    while words and hasattr(commands[0], "commands"):
        names = words.pop(0).split("|")
        subcommands = [getattr(command, "commands", {}).get(name) for command in commands for name in names]
        if not all(subcommands):
            return f"no command `{piece}`"
        commands = subcommands
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    unknown = set(re.findall(r"--[\w-]+", " ".join(words))) - options - {"--help"}
    return f"`{piece}` has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def document(request) -> Path:
    return request.param


def test_every_link_leads_to_a_file(document):
    targets = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (document.parent / t).exists()] == []


def test_every_file_that_is_named_exists(document):
    paths = {path for piece in code(document.read_text(encoding="utf-8")) for path in named_paths(piece)}
    places = (PROJECT, PACKAGE, document.parent)
    assert [p for p in sorted(paths) if not any(list(place.glob(p.rstrip("/"))) for place in places)] == []


def test_every_command_exists_with_its_options(document):
    pieces = code(document.read_text(encoding="utf-8"))
    assert [wrong for piece in pieces if (wrong := unknown_command(piece))] == []


def test_every_module_that_is_run_and_every_target_exists(document):
    text = " ".join(code(document.read_text(encoding="utf-8")))
    modules = set(re.findall(r"python -m ((?:benchmarks|lancet_pipeline)\.[a-z_.]+)", text))
    assert [module for module in sorted(modules) if find_spec(module.rstrip(".")) is None] == []
    targets = set(re.findall(r"^([\w.$()/-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z0-9]*)", text)) <= targets


@pytest.mark.parametrize(
    "piece",
    [
        "lancet nothing",
        "lancet judge nothing",
        "lancet keys create|nothing",
        "lancet run demo --nothing",
        "lancet bundles",
    ],
)
def test_a_command_that_is_not_there_is_found(piece):
    assert unknown_command(piece)


def test_a_file_that_is_not_there_is_read_as_a_path():
    assert named_paths("pytest lancet_pipeline/nothing.py tests/nothing/ nothing.yaml -s") == [
        *("lancet_pipeline/nothing.py", "tests/nothing/", "nothing.yaml")
    ]
