import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lancet_pipeline.errors import IntegrityError
from lancet_pipeline.governance.decisions import FIRST, append_decision, decision_file, read_decisions

TEXTS = st.text(max_size=30)


def decide(home: Path, reason: str = "reviewed", **changes) -> dict:
    values = {"action": "promoted", "actor": "A. Reviewer", "model": "lancet-s", "version": 1, "bundle": "b" * 64}
    return append_decision(home, "s", reason=reason, gates={"harm_falls": True}, **{**values, **changes})


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> bytes:
    home = tmp_path_factory.mktemp("home")
    for number in range(5):
        decide(home, f"reason {number}\n“quoted”", version=number, action="registered" if number % 2 else "promoted")
    return decision_file(home, "s").read_bytes()


def reading(home: Path, content: bytes) -> list[dict]:
    path = decision_file(home, "s")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return read_decisions(home, "s")


def test_entries_come_back_in_order_and_chained(tmp_path):
    written = [decide(tmp_path, "first"), decide(tmp_path, "second", action="refused", expires=None)]
    assert read_decisions(tmp_path, "s") == written
    assert [entry["sequence"] for entry in written] == [1, 2]
    assert written[0]["previous"] == FIRST
    assert written[1]["previous"] == written[0]["hash"]


def test_no_log_is_no_decision(tmp_path):
    assert read_decisions(tmp_path, "s") == []


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory, log, data):
    position = data.draw(st.integers(0, len(log) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != log[position]))
    with pytest.raises(IntegrityError, match=r"line [1-6]"):
        reading(tmp_path_factory.getbasetemp(), log[:position] + bytes([byte]) + log[position + 1 :])


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(["actor", "reason", "model", "bundle", "time", "action", "study"]), text=TEXTS, data=st.data()
)
def test_an_entry_with_another_value_is_found_and_named(tmp_path_factory, log, field, text, data):
    lines = log.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    entry = json.loads(lines[number])
    if entry[field] == text:
        return
    lines[number] = json.dumps(entry | {field: text}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(IntegrityError, match=f"line {number + 1}: entry {number + 1} was edited"):
        reading(tmp_path_factory.getbasetemp(), b"\n".join(lines) + b"\n")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_entries_removed_doubled_or_moved_are_found(tmp_path_factory, log, data):
    lines = log.splitlines()
    order = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=8))
    content = b"".join(lines[number] + b"\n" for number in order)
    if order == list(range(len(order))):  # a whole log, or one whose end is missing: the registry's tag shows that
        assert len(reading(tmp_path_factory.getbasetemp(), content)) == len(order)
        return
    with pytest.raises(IntegrityError, match="removed, put in or moved"):
        reading(tmp_path_factory.getbasetemp(), content)


def test_an_entry_of_another_log_is_found(tmp_path, log):
    stranger = append_decision(
        tmp_path, "t", action="promoted", actor="a", reason="r", model="m", version=1, bundle="", gates={}
    )
    assert stranger["sequence"] == 1
    with pytest.raises(IntegrityError, match="belongs to study 't'"):
        reading(tmp_path, decision_file(tmp_path, "t").read_bytes())


def test_a_half_written_last_line_is_named_with_its_remedy_and_nothing_is_added(tmp_path, log):
    cut = log[:-40]
    with pytest.raises(IntegrityError, match=r"line 5: half-written.*delete this last line"):
        reading(tmp_path, cut)
    with pytest.raises(IntegrityError, match="half-written"):
        decide(tmp_path)
    assert decision_file(tmp_path, "s").read_bytes() == cut
    assert len(reading(tmp_path, cut[: cut.rindex(b"\n") + 1])) == 4
    assert decide(tmp_path)["sequence"] == 5


def test_decisions_of_several_processes_do_not_overwrite_each_other(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lancet_pipeline.governance.decisions import append_decision\n"
        "for n in range(10): append_decision(Path(sys.argv[1]), 's', action='refused', actor=sys.argv[2], reason='r',"
        " model='m', version=n, bundle='', gates={})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    entries = read_decisions(tmp_path, "s")
    assert len(entries) == 30
    assert {entry["actor"] for entry in entries} == set("abc")
