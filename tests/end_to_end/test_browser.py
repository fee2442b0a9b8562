"""The report, Dagster's and MLflow's pages in a real browser, on a finished tiny study; and the end of what serves them."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from command import copy_run, environment
from servers import ServerProcess, free_port, start

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = Path(__file__).parents[2] / ".venv" / "axe" / "package" / "axe.min.js"
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000"),
)
SCREENSHOTS = os.environ.get("LANCET_SCREENSHOTS")
"""A folder that takes a picture of each page, for a person to look at."""

pytestmark = [pytest.mark.browser, pytest.mark.slow]
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason=f"needs {AXE}: run `make axe`")


@pytest.fixture(scope="module")
def report(finished) -> str:
    """Address of the report."""
    return next((finished.home / "artifacts" / "tiny" / "audit_bundle").glob("*/bundle/report.html")).as_uri()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    started.set_script_timeout(180)
    yield started
    started.quit()


@pytest.fixture
def page(driver, report):
    """The report, just opened, in light colours."""
    driver.get("about:blank")  # ends what the browser's first page was still asking for
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    in_colours(driver, "light")
    driver.get(report)
    # ChromeDriver may answer before the page's script, its last element, has run.
    loaded = "return document.readyState === 'complete' && location.href === arguments[0]"
    WebDriverWait(driver, 30).until(lambda _: driver.execute_script(loaded, report), f"{report} does not load")
    return driver


def in_colours(driver, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def picture(driver, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def console_errors(driver) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requested(driver) -> list[str]:
    """Addresses that the page asked for since the log was last read."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def shown(driver, css: str, inside=None) -> list:
    return [element for element in (inside or driver).find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]


def serious_violations(driver) -> list[str]:
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run({resultTypes: ['violations']}).then((result) => done(result.violations.map("
        "(v) => [v.impact, v.id, v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary])), (e) => done([['error', `${e}`]]))"
    )
    return [violation for violation in found if violation[0] in ("serious", "critical", "error")]


def test_report_has_no_console_error_and_asks_the_network_for_nothing(page):
    for scheme in ("light", "dark"):
        in_colours(page, scheme)
        picture(page, f"report_{scheme}")
    page.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
    assert console_errors(page) == []
    asked = [url for url in requested(page) if not url.startswith(("data:", "about:"))]
    assert asked == [page.current_url]


def test_policy_of_the_report_lets_no_request_out(page):
    page.execute_script(
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image)"
    )
    refusals: list[str] = []

    def refused(_) -> bool:
        refusals.extend(message for message in console_errors(page) if "Content Security Policy" in message)
        return bool(refusals)

    WebDriverWait(page, 20).until(refused)
    assert "img-src data:" in refusals[0]


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["folded", "open"])
def test_axe_finds_no_serious_problem(page, scheme, state):
    in_colours(page, scheme)
    if state == "open":
        page.execute_script("for (const details of document.querySelectorAll('details')) details.open = true")
    assert serious_violations(page) == []


@pytest.mark.parametrize("seed", range(3))
def test_random_harmful_output_is_three_clicks_from_samples_tokens_pairs_and_corrected_answer(page, finished, seed):
    import pyarrow.parquet as pq

    folder = finished.home / "artifacts" / "tiny"
    traces = pq.read_table(next((folder / "output_traces").glob("*/traces.parquet"))).to_pylist()
    pairs = pq.read_table(next((folder / "pareto_pairs").glob("*/pairs.parquet"))).to_pylist()
    number = random.Random(seed).randrange(len(traces))
    chosen, clicks = traces[number], 0

    page.find_element(By.LINK_TEXT, "What was wrong").click()
    clicks += 1
    output = page.find_elements(By.CSS_SELECTOR, "#traces tbody")[number]
    assert chosen["sample_id"] in output.text
    assert chosen["response"] not in page.find_element(By.TAG_NAME, "main").text
    summary = output.find_element(By.TAG_NAME, "summary")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", summary)
    summary.click()
    clicks += 1

    text = output.text
    assert chosen["response"] in text
    assert chosen["corrected_response"] in text
    assert chosen["corrected_verdict"] in text
    behind = shown(page, ".behind > li", output)
    assert len(behind) == len(chosen["samples"]) > 0
    for item, sample in zip(behind, chosen["samples"], strict=True):
        assert sample["sample_id"] in item.text
        assert item.text.startswith(sample["role"])
        assert "Strongest tokens" in item.text
        assert shown(page, "mark", item), "no token is highlighted"
        partners = {
            pair[other]
            for one, other in (("preferred_id", "dispreferred_id"), ("dispreferred_id", "preferred_id"))
            for pair in pairs
            if pair[one] == sample["sample_id"]
        }
        linked = {link.text for link in shown(page, ".pairs a", item)}
        assert linked <= partners
        assert bool(linked) == bool(partners)
    picture(page, f"report_trace_{seed}")
    link = shown(page, ".about a", behind[0])[0]
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link)
    link.click()
    clicks += 1
    row = page.find_element(By.CSS_SELECTOR, "tr:target")
    assert chosen["samples"][0]["sample_id"] in row.text
    assert clicks == 3


def test_link_from_an_answer_unfolds_its_trace(page):
    link = page.find_element(By.LINK_TEXT, "What is behind it")
    target = page.find_element(By.CSS_SELECTOR, link.get_attribute("href").partition("#")[2].join("# ").strip())
    assert not shown(page, ".trace", target)
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", link)
    link.click()
    WebDriverWait(page, 10).until(lambda _: shown(page, ".trace", target))


def test_search_keeps_the_rows_that_hold_every_word(page):
    rows = page.find_elements(By.CSS_SELECTOR, "#driving tbody tr, #countering tbody tr, #neutral tbody tr")
    name = rows[0].find_element(By.TAG_NAME, "th").text
    field = page.find_element(By.ID, "driving-filter")
    assert page.find_element(By.CSS_SELECTOR, "label[for=driving-filter]").text == "Search the samples"
    field.send_keys(name)
    visible = [row for row in rows if row.is_displayed()]
    assert visible
    assert len(visible) < len(rows)
    assert all(name in row.get_attribute("textContent") for row in visible)
    assert (
        page.find_element(By.CSS_SELECTOR, "output[for=driving-filter]").text == f"{len(visible)} of {len(rows)} rows"
    )
    field.clear()
    field.send_keys("no such words anywhere")
    assert not [row for row in rows if row.is_displayed()]


def test_sorting_by_keyboard_orders_samples_and_keeps_traces_with_their_rows(page):
    def order(css: str) -> list[float]:
        return [float(cell.get_attribute("data-value")) for cell in page.find_elements(By.CSS_SELECTOR, css)]

    scores = "#driving tbody td:nth-child(2)"
    before = order(scores)
    head = page.find_elements(By.CSS_SELECTOR, "#driving thead th")[1]
    head.find_element(By.TAG_NAME, "button").send_keys("\n")
    assert order(scores) == sorted(before) != before
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element(By.TAG_NAME, "button").send_keys("\n")
    assert order(scores) == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"

    def outputs() -> list[tuple[str, str]]:
        bodies = page.find_elements(By.CSS_SELECTOR, "#traces tbody")
        return [
            (body.find_element(By.CSS_SELECTOR, "th .code").text, body.find_element(By.CSS_SELECTOR, ".unseen").text)
            for body in bodies
        ]

    page.find_element(By.CSS_SELECTOR, "#traces thead th:nth-child(2) button").send_keys("\n")
    kinds = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#traces tbody tr:first-child td:nth-child(2)")]
    assert kinds == sorted(kinds)
    assert len(set(kinds)) > 1
    assert all(name in fold for name, fold in outputs())


def test_on_paper_harmful_text_stays_folded_and_the_rest_is_open(page):
    counts = (
        "[document.querySelectorAll('details:not(.harm)').length,"
        " document.querySelectorAll('details:not(.harm)[open]').length,"
        " document.querySelectorAll('details.harm').length,"
        " document.querySelectorAll('details.harm[open]').length]"
    )
    page.execute_script(f"window.addEventListener('beforeprint', () => {{ window.printed = {counts}; }})")
    before = page.execute_script(f"return {counts}")
    page.execute_cdp_cmd("Page.printToPDF", {})
    plain, plain_open, harm, harm_open = page.execute_script("return window.printed")
    assert plain_open == plain > before[1]
    assert harm > 0 == harm_open
    assert page.execute_script(f"return {counts}") == before


# What a shell without job control does to the jobs that it starts in the background.
IGNORING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Pages:
    """The command that serves both, and their addresses."""

    command: ServerProcess
    dagster: str
    mlflow: str


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory) -> Iterator[Pages]:
    """Dagster and MLflow on a copy of the finished home."""
    root = tmp_path_factory.mktemp("served")
    study, home = copy_run(finished.study, finished.home, root)
    dagster, mlflow = free_port(), free_port()
    ui = [sys.executable, "-m", "lancet_pipeline.cli", "ui", "--home", home]
    command = [sys.executable, "-c", IGNORING, *ui, "--dagster-port", dagster, "--mlflow-port", mlflow]
    settings = environment(LANCET_STUDIES=str(study.parent), DO_NOT_TRACK="1")
    server = start(command, settings, f"http://127.0.0.1:{dagster}", "/server_info", root / "log")
    try:
        yield Pages(server, server.url, f"http://127.0.0.1:{mlflow}")
    finally:
        for process in session(server.process.pid):
            process.kill()


def open_page(driver, address: str, *texts: str) -> None:
    """Open a page of an application and wait until it shows every text."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(address)
    in_colours(driver, "light")

    def shows_all(_) -> bool:
        body = driver.execute_script("return document.body.innerText")
        return all(text in body for text in texts)

    WebDriverWait(driver, 90).until(shows_all, f"{address} does not show {texts}")


def test_dagster_shows_the_graph_of_the_study(driver, pages):
    open_page(driver, f"{pages.dagster}/asset-groups", "Global asset lineage", "influence", "selection", "governance")
    picture(driver, "dagster_groups")
    group = f"{pages.dagster}/locations/lancet_pipeline.definitions/asset-groups/influence/lineage"
    open_page(driver, group, "linfac_factors", "influence_scores", "output_traces", "2 / 2 Passed")
    picture(driver, "dagster_graph")
    assert console_errors(driver) == []


def test_dagster_shows_the_checks_of_the_corrected_model(driver, pages, finished):
    manifest = next((finished.home / "artifacts" / "tiny" / "corrected_model").glob("*/manifest.json"))
    names = [check["name"] for check in json.loads(manifest.read_text())["checks"]]
    assert names
    open_page(driver, f"{pages.dagster}/assets/corrected_model?view=checks", *names)
    picture(driver, "dagster_checks")
    assert console_errors(driver) == []


def test_mlflow_shows_the_metrics_of_the_run(driver, pages, finished):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished.home / 'mlflow' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, order_by=["attributes.start_time DESC"])[0]
    address = f"{pages.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    open_page(driver, address, "influence_scores/samples", "output_traces/outputs")
    picture(driver, "mlflow_run")
    # MLflow asks a server without accounts who is signed in, and is told that there is no such page.
    known = re.compile(r"/users/current\b.*404")
    assert [message for message in console_errors(driver) if not known.search(message)] == []


def test_servers_started_where_sigint_is_ignored_end_whole(pages):
    command = pages.command
    assert len(session(command.process.pid)) > 3
    for asking in (signal.SIGTERM, signal.SIGHUP):  # a shell that ends may ask twice
        command.process.send_signal(asking)
        time.sleep(0.2)
    assert command.process.wait(timeout=50) == 0
    assert [" ".join(process.cmdline()) for process in session(command.process.pid)] == []
    assert "Traceback" not in command.log.read_text()


def session(leader: int) -> list[psutil.Process]:
    """Living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
