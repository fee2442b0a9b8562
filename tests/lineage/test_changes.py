"""Looking at a study costs little, and reads content only when something may have changed and then held still."""

import json
import os

import pytest
from conftest import training_rows, write_jsonl

from lancet_pipeline.config.loading import load_study
from lancet_pipeline.config.study import DataSource, JudgeSettings
from lancet_pipeline.data.readers import read_samples, read_unchanged
from lancet_pipeline.data.schema import content_hash
from lancet_pipeline.errors import InputError
from lancet_pipeline.lineage.changes import Hub, Watch, fingerprint, from_json, known_versions, look, to_json

NO_HUB = Hub(lambda kind, name, revision: "commit")
NEW = Watch()


@pytest.fixture
def study_file(tiny_study):
    return tiny_study


def seen(study_file, hub=NO_HUB) -> str:
    return fingerprint(load_study(study_file), study_file, [], hub)


def looked(watch: Watch, study_file):
    study = load_study(study_file)
    return look(watch, lambda: seen(study_file), lambda: known_versions(study, []))


def settled(study_file, watch: Watch = NEW):
    """The second look at a change."""
    first = looked(watch, study_file)
    assert not first.versions
    return looked(first.watch, study_file)


@pytest.mark.parametrize("file", ["train.jsonl", "ood.jsonl", "tiny.yaml"])
@pytest.mark.parametrize("change", ["append", "touch", "replace", "remove"])
def test_every_change_of_a_file_changes_the_fingerprint(study_file, file, change):
    if (file, change) == ("tiny.yaml", "remove"):
        pytest.skip("a study without a file is no study")
    path, before = study_file.parent / file, seen(study_file)
    assert seen(study_file) == before
    if change == "append":
        path.write_text(path.read_text() + "\n")
    elif change == "touch":
        os.utime(path, ns=(1, 1))
    elif change == "replace":
        status = path.stat()
        copy = path.with_suffix(".new")
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(copy, path)
    else:
        path.unlink()
    assert seen(study_file) != before


def test_a_word_list_and_a_file_of_a_folder_count(study_file):
    study = load_study(study_file)
    words, folder = study_file.parent / "words.txt", study_file.parent / "train"
    words.write_text("sure")
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", training_rows())
    judge = JudgeSettings(name="lexicon", words=str(words))
    study = study.model_copy(
        update={
            "evaluation": study.evaluation.model_copy(update={"judge": judge}),
            "data": study.data.model_copy(update={"train": DataSource(path=str(folder))}),
        }
    )
    prints = [fingerprint(study, study_file, [], NO_HUB)]
    words.write_text("certainly")
    prints.append(fingerprint(study, study_file, [], NO_HUB))
    write_jsonl(folder / "b.jsonl", [{"prompt": "p", "response": "r"}])
    prints.append(fingerprint(study, study_file, [], NO_HUB))
    (folder / "notes.txt").write_text("not data")
    assert len(set(prints)) == 3
    assert fingerprint(study, study_file, [], NO_HUB) == prints[-1]


def test_data_that_prompts_are_told_apart_from_count(study_file):
    study, seen = load_study(study_file), study_file.parent / "seen.jsonl"
    write_jsonl(seen, [{"prompt": "p"}])
    probes = study.data.probes.model_copy(update={"apart_from": (str(seen),)})
    study = study.model_copy(update={"data": study.data.model_copy(update={"probes": probes})})
    before = fingerprint(study, study_file, [], NO_HUB)
    write_jsonl(seen, [{"prompt": "q"}])
    assert fingerprint(study, study_file, [], NO_HUB) != before


def test_the_hub_is_asked_seldom_and_its_silence_is_no_change(study_file):
    asked, answers = [], ["1" * 40]

    def ask(kind, name, revision):
        asked.append((kind, name, revision))
        return answers[0] if answers else 1 / 0

    study = load_study(study_file)
    source = DataSource(hub="owner/set", revision="main")
    study = study.model_copy(update={"data": study.data.model_copy(update={"train": source})})
    hub = Hub(ask)
    first = fingerprint(study, study_file, [], hub)
    assert fingerprint(study, study_file, [], hub) == first
    assert asked == [("dataset", "owner/set", "main")]
    answers.clear()
    hub.answers = {key: [commit, 0.0] for key, (commit, _) in hub.answers.items()}
    assert fingerprint(study, study_file, [], hub) == first
    assert len(asked) == 2
    answers.append("2" * 40)
    hub.answers = {key: [commit, 0.0] for key, (commit, _) in hub.answers.items()}
    assert fingerprint(study, study_file, [], hub) != first


def test_a_change_is_read_when_it_has_held_still_and_then_once(study_file):
    found = settled(study_file)
    assert found.versions == known_versions(load_study(study_file), [])
    assert looked(found.watch, study_file).reason == "nothing changed"
    write_jsonl(study_file.parent / "train.jsonl", training_rows()[:-1])
    first = looked(found.watch, study_file)
    write_jsonl(study_file.parent / "train.jsonl", training_rows()[:-2])
    still_moving = looked(first.watch, study_file)
    assert not still_moving.versions
    after = looked(still_moving.watch, study_file)
    assert after.versions["training_data"] != found.versions["training_data"]
    assert (found.watch.changes, after.watch.changes) == (1, 2)


def test_touched_content_has_the_versions_it_had(study_file):
    found = settled(study_file)
    (study_file.parent / "train.jsonl").touch()
    again = settled(study_file, found.watch)
    assert not again.versions
    assert again.reason.startswith("touched")
    assert again.watch.changes == 1


def test_content_that_changes_while_it_is_read_is_read_again_later(study_file):
    study = load_study(study_file)
    first = looked(Watch(), study_file)

    def read():
        known = known_versions(study, [])
        write_jsonl(study_file.parent / "train.jsonl", training_rows()[:-1])
        return known

    during = look(first.watch, lambda: seen(study_file), read)
    assert not during.versions
    assert looked(during.watch, study_file).versions == known_versions(study, [])


def test_invalid_content_is_told_once_and_read_again_when_it_changes(study_file):
    ood = study_file.parent / "ood.jsonl"
    whole = ood.read_text()
    ood.write_text(whole[:-9])
    broken = settled(study_file)
    assert "ood.jsonl: row 5: not JSON" in broken.problem
    assert "ends inside this row" in broken.problem
    later = looked(broken.watch, study_file)
    assert (later.problem, later.reason) == ("", broken.problem)
    ood.write_text(whole)
    assert settled(study_file, later.watch).versions


def test_what_is_remembered_survives_its_text(study_file):
    watches, hub = {"tiny": settled(study_file).watch}, Hub(NO_HUB.ask, {"dataset a@": ["c", 1.0]})
    read, again = from_json(to_json(watches, hub))
    assert read == watches
    assert again.answers == hub.answers
    for unreadable in (None, "", "[]", '{"studies": {"a": {"unknown": 1}}}'):
        assert from_json(unreadable)[0] == {}


def test_a_folder_is_one_table_of_all_its_files_and_messages_name_the_file(tmp_path):
    rows = [{"prompt": f"p{i}", "response": "r"} for i in range(6)]
    for cut, name in ((2, "one"), (5, "two")):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        write_jsonl(folder / "a.jsonl", rows[:cut])
        write_jsonl(folder / "b.jsonl", rows[cut:])
        (folder / "README.md").write_text("not data")
    one, two = (DataSource(path=str(tmp_path / name / "data")) for name in ("one", "two"))
    assert content_hash(read_samples(one, responses=True)) == content_hash(read_samples(two, responses=True))
    assert read_samples(one.model_copy(update={"rows": (0, 4)})).num_rows == 4
    write_jsonl(tmp_path / "one" / "data" / "c.jsonl", [{"prompt": "p7", "response": ""}])
    with pytest.raises(InputError, match=r"c\.jsonl: row 1: response is blank"):
        read_samples(one, responses=True)
    write_jsonl(tmp_path / "one" / "data" / "c.jsonl", rows[:1])
    with pytest.raises(InputError, match=r"c\.jsonl: row \d+: sample_id .* stands already in row \d+ of .*a\.jsonl"):
        read_samples(one, responses=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.parquet or \.jsonl file"):
        read_samples(DataSource(path=str(tmp_path / "empty")))


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path):
    """A pipe stands for a file that another process still writes: what is read is more than its size said."""
    path = tmp_path / "data.jsonl"
    os.mkfifo(path)
    if os.fork() == 0:
        path.write_text(json.dumps({"prompt": "p"}))
        os._exit(0)
    with pytest.raises(InputError, match="changed while it was read"):
        read_unchanged(path)
    os.wait()


def test_a_parquet_file_cut_short_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "p", "response": "r"}] * 50), path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 5, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"data\.parquet: not a readable Parquet file"):
            read_samples(DataSource(path=str(path)))
