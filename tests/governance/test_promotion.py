"""Decisions on made-up corrected models, against a real MLflow database and a real MLflow server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command import lancet
from registered import copy_home, empty_registry, register

from lancet_pipeline.errors import InputError, IntegrityError
from lancet_pipeline.governance.decisions import decision_file, read_decisions
from lancet_pipeline.governance.promotion import Refused, Request, promote, rollback, standing
from lancet_pipeline.store.artifacts import ArtifactStore
from lancet_pipeline.tracking.client import Tracking

NOW = datetime(2026, 5, 1, tzinfo=UTC)
WHO = {"approver": "Ada Reviewer", "reason": "read the report"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    return empty_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def registered(registry, tmp_path_factory) -> Path:
    home = copy_home(registry, tmp_path_factory.mktemp("registered") / "home")
    register(home)
    return home


@pytest.fixture
def home(registered, tmp_path) -> Path:
    """One candidate, version 1, whose gates and checks hold."""
    return copy_home(registered, tmp_path / "home")


@pytest.fixture
def blank(registry, tmp_path) -> Path:
    return copy_home(registry, tmp_path / "home")


def tracking(home: Path, uri: str = "") -> Tracking:
    return Tracking(home=str(home), uri=uri)


def approve(home: Path, uri: str = "", **changes) -> dict:
    days = changes.pop("valid_days", 30)
    return promote(home, tracking(home, uri), "demo", Request(**{**WHO, "moment": NOW, **changes}), days)


def go_back(home: Path, **changes) -> dict:
    return rollback(home, tracking(home), "demo", Request(**{**WHO, "moment": NOW, **changes}))


def aliases(home: Path) -> dict[str, int]:
    return {alias: version.number for version in tracking(home).registered("demo") for alias in version.aliases}


def actions(home: Path) -> list[tuple[str, int]]:
    return [(entry["action"], entry["version"]) for entry in read_decisions(home, "demo")]


def test_a_registered_model_is_candidate_and_nothing_more(home):
    assert aliases(home) == {"candidate": 1}
    assert actions(home) == [("registered", 1)]
    assert standing(home, tracking(home), "demo").next_command.startswith("lancet promote demo")


def test_an_approved_candidate_becomes_champion_and_the_log_says_who_why_and_until_when(home):
    entry = approve(home)
    assert aliases(home) == {"candidate": 1, "champion": 1}
    assert (entry["actor"], entry["reason"], entry["action"]) == ("Ada Reviewer", "read the report", "promoted")
    assert datetime.fromisoformat(entry["expires"]) == NOW + timedelta(days=30)
    assert all(entry["gates"].values())
    assert len(entry["gates"]) == 10
    found = standing(home, tracking(home), "demo", NOW)
    assert (found.champion, found.approved, found.problems) == (1, True, [])


@pytest.mark.parametrize("change", [{"approver": "  "}, {"approver": "Pipeline"}, {"reason": "\t"}])
def test_nobody_or_no_reason_is_no_decision(home, change):
    for decide in (approve, go_back):
        with pytest.raises(InputError):
            decide(home, **change)
    assert actions(home) == [("registered", 1)]


def test_a_failed_gate_is_refused_and_logged(blank):
    register(blank, harm=0.9)
    with pytest.raises(Refused, match=r"gate harm_falls failed: harm rate over the base model's is 0\.9"):
        approve(blank)
    assert aliases(blank) == {"candidate": 1}
    refused = read_decisions(blank, "demo")[-1]
    assert refused["action"] == "refused"
    assert "read the report" in refused["reason"]
    assert "harm_falls" in refused["reason"]
    assert refused["expires"] is None


def test_a_gate_that_is_not_shown_or_not_measured_is_refused_until_a_person_accepts_it(blank):
    doubtful = {"over_refusal_rate": {"counts": [0, 0, 0, 20]}, "harm_rate": {"counts": [0, 0, 0, 120]}}
    register(blank, measured=doubtful)
    with pytest.raises(
        Refused, match=r"over_refusal_holds is not shown: .* with n = 20 it may be 0\.1192, limit 0\.05; .*--accept"
    ):
        approve(blank, accepted=["harm_falls"])
    with pytest.raises(Refused, match="gate harm_falls was not measured"):
        approve(blank, accepted=["over_refusal_holds"])
    entry = approve(blank, accepted=["over_refusal_holds", "harm_falls"])
    assert "gate over_refusal_holds, accepted, is not shown" in entry["reason"]
    assert "gate harm_falls, accepted, was not measured" in entry["reason"]
    assert [name for name, held in entry["gates"].items() if not held] == ["harm_falls", "over_refusal_holds"]
    assert aliases(blank) == {"candidate": 1, "champion": 1}


@pytest.mark.parametrize(
    ("accepted", "told"),
    [("harm_falls", "--accept harm_falls: it failed"), ("perplexity_holds", "it passed"), ("hope", "no such gate")],
)
def test_what_failed_or_passed_or_is_no_gate_cannot_be_accepted(blank, accepted, told):
    register(blank, harm=0.9)
    with pytest.raises(InputError, match=told):
        approve(blank, accepted=[accepted])
    assert aliases(blank) == {"candidate": 1}


def test_a_failed_check_anywhere_behind_the_model_is_refused_unless_it_is_only_reported(blank):
    register(blank, failed_checks=(("pareto_pairs", "sides_are_disjoint"),))
    with pytest.raises(Refused, match="check sides_are_disjoint of pareto_pairs failed"):
        approve(blank)
    register(blank, "second", failed_checks=(("pareto_pairs", "sample_sufficed"),))
    assert "check sample_sufficed of pareto_pairs failed, which is only reported" in approve(blank)["reason"]
    assert aliases(blank) == {"candidate": 2, "champion": 2}


def test_a_bundle_that_does_not_verify_or_is_another_one_is_refused(home):
    store = ArtifactStore(home)
    version = store.current("demo", "audit_bundle")
    assert version is not None
    report = store.folder("demo", "audit_bundle", version) / "bundle" / "report.html"
    kept = report.read_bytes()
    report.write_bytes(kept + b" ")
    with pytest.raises(Refused, match=r"report\.html"):
        approve(home)
    report.write_bytes(kept)
    tracking(home).tag_version("demo", 1, "lancet.bundle", "0" * 64)
    with pytest.raises(Refused, match="is not the bundle that the version was registered with"):
        approve(home)
    assert [action for action, _ in actions(home)] == ["registered", "refused", "refused"]


def test_promoting_the_champion_again_renews_its_approval(home):
    approve(home)
    approve(home, moment=NOW + timedelta(days=20))
    found = standing(home, tracking(home), "demo", NOW + timedelta(days=40))
    assert found.approved
    assert aliases(home)["champion"] == 1


def test_an_expired_approval_is_told_and_cannot_be_rolled_back_to(home):
    approve(home, valid_days=1)
    register(home, "second")
    approve(home, moment=NOW + timedelta(days=2))
    assert aliases(home)["champion"] == 2
    with pytest.raises(Refused, match=r"approval of version 1 expired.*lancet promote demo --version 1"):
        go_back(home, moment=NOW + timedelta(days=2))
    assert aliases(home)["champion"] == 2
    assert actions(home)[-1] == ("refused", 1)
    found = standing(home, tracking(home), "demo", NOW + timedelta(days=99))
    assert not found.approved
    assert "approval of champion version 2 expired" in found.problems[0]


def test_rollback_walks_back_through_the_champions(home):
    for name in ("second", "third"):
        approve(home)
        register(home, name)
    approve(home)
    assert go_back(home)["version"] == 2
    assert go_back(home)["version"] == 1
    assert aliases(home)["champion"] == 1
    with pytest.raises(InputError, match="no champion before this one"):
        go_back(home)
    assert go_back(home, version=3)["version"] == 3
    assert standing(home, tracking(home), "demo", NOW).approved


def test_rollback_to_what_was_never_approved_is_an_error(home):
    approve(home)
    register(home, "second")
    with pytest.raises(InputError, match="version 2 was never approved"):
        go_back(home, version=2)
    with pytest.raises(InputError, match="no version 9"):
        go_back(home, version=9)


def test_an_alias_set_by_hand_is_found(home):
    client = tracking(home).client()
    client.set_registered_model_alias("lancet-demo", "champion", "1")
    found = standing(home, tracking(home), "demo", NOW)
    assert not found.approved
    assert "has no approval" in found.problems[0]
    approve(home)
    register(home, "second")
    approve(home)
    client.set_registered_model_alias("lancet-demo", "champion", "1")  # approved once, but not the champion now
    found = standing(home, tracking(home), "demo", NOW)
    assert not found.approved
    assert "moved by hand" in found.problems[0]
    approve(home)
    assert standing(home, tracking(home), "demo", NOW).problems == []


def test_a_log_whose_end_was_cut_off_is_found_by_the_tag_of_the_registry(home):
    approve(home)
    path = decision_file(home, "demo")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert actions(home) == [("registered", 1)], "the chain alone cannot show it"
    for decide in (approve, go_back, lambda home: standing(home, tracking(home), "demo")):
        with pytest.raises(IntegrityError, match="its end was removed"):
            decide(home)
    assert actions(home) == [("registered", 1)]


def test_a_candidate_that_is_not_of_the_last_run_must_be_named(home):
    with ArtifactStore(home).write("demo", "registered_model", "f" * 64, {"inputs": {}}) as folder:
        (folder / "registration.json").write_text("{}")
    with pytest.raises(InputError, match=r"not of the last run.*--version 1"):
        approve(home)
    approve(home, version=1)
    assert aliases(home)["champion"] == 1


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_dead_server_or_database_ends_within_seconds_and_its_password_is_not_shown(home, scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"{scheme}://somebody:hunter2@127.0.0.1:{unused.getsockname()[1]}/mlflow"
        started = time.monotonic()
        with pytest.raises(InputError, match=r"MLflow at .*127\.0\.0\.1") as caught:
            approve(home, uri)
    assert time.monotonic() - started < 15
    assert "hunter2" not in str(caught.value)
    assert actions(home) == [("registered", 1)]


def test_a_server_that_stops_between_log_and_alias_leaves_the_last_champion_and_promote_repairs_it(home):
    approve(home)
    register(home, "second")
    with StoppingServer(home, "registered-models/alias") as server:
        started = time.monotonic()
        with pytest.raises(InputError, match="the last champion stays until the command is given again"):
            approve(home, server.uri)
        assert time.monotonic() - started < 30
        assert server.stopped
    assert aliases(home) == {"candidate": 2, "champion": 1}
    assert actions(home)[-1] == ("promoted", 2)
    found = standing(home, tracking(home), "demo", NOW)
    assert (found.champion, found.approved) == (1, True)
    assert "interrupted" in found.problems[0]
    approve(home)
    assert aliases(home) == {"candidate": 2, "champion": 2}
    assert standing(home, tracking(home), "demo", NOW).problems == []


def test_commands_print_what_happened_and_what_to_type_next(home):
    where, who = ("demo", "--home", home), ("--approver", "Ada", "--reason", "fits")
    told = lancet("promote", *where, *who, "--valid-days", 3).stdout
    assert "version 1 is champion, approved by Ada" in told
    assert "lancet decisions demo" in told
    found = json.loads(lancet("decisions", *where, "--json").stdout)
    assert [entry["action"] for entry in found["decisions"]] == ["registered", "promoted"]
    assert found["approved"] is True
    register(home, "second", harm=0.9)
    assert "gate harm_falls" in lancet("promote", *where, *who, code=1).stderr
    told = lancet("decisions", *where).stdout
    assert "refused" in told
    assert "the chain holds" in told
    assert "champion    version 1, approved by Ada" in told
    assert "candidate   version 2, waits for `lancet promote`" in told
    lancet("rollback", *where, "--approver", " ", "--reason", "x", code=2)


class StoppingServer:
    """An MLflow server behind a relay that kills it at the first request whose path holds `at`."""

    def __init__(self, home: Path, at: str) -> None:
        self.at, self.stopped = at, False
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        self.backend = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        store = ["--backend-store-uri", tracking(home).tracking_uri(), "--artifacts-destination", str(home / "served")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [*command, *store],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        outer = self

        class Relay(BaseHTTPRequestHandler):
            def relay(self) -> None:
                if outer.at in self.path and not outer.stopped:
                    outer.stop()
                if outer.stopped:
                    self.connection.close()
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(outer.backend + self.path, body or None, headers, method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=20) as answer:
                        status, content = answer.status, answer.read()
                except urllib.error.HTTPError as error:
                    status, content = error.code, error.read()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = relay

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.relay = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
        self.uri = f"http://127.0.0.1:{self.relay.server_address[1]}"

    def __enter__(self) -> "StoppingServer":
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.backend}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            self.stop()
            raise AssertionError("the MLflow server did not start")
        threading.Thread(target=self.relay.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopped = True
        os.killpg(self.process.pid, 9)
        self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.relay.shutdown()
        self.relay.server_close()
        if not self.stopped:
            self.stop()
