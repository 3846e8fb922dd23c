"""Publishing checkpoints, over the sandbox's Hub on a socket: in order, once, and again after what went wrong."""

import base64
import importlib.metadata
import json
import math
import os
import re
import shutil
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from PIL import Image
from pydantic import SecretStr
from rich import filesize
from safetensors.numpy import save_file
from sqlalchemy import text, update
from sqlmodel import col
from typer.testing import CliRunner

from broker import configs, publications
from broker.publications import Disk, Publication, Repository
from broker.publishing import disk, forgetting, metrics, model_card, publisher, tensorboard
from broker.publishing.hub import Hub as HubClient
from broker.publishing.hub import HubError
from broker.publishing.model_card import write_card
from broker.reports import run_details, run_plan
from broker.reports.run_details import RunDetails
from broker.runners import elsewhere
from broker.runners.staging import Staging, UnstartedError
from broker.runs import baselines, evaluations, folders, naming, runs
from broker.runs import results as results_of
from broker.runs.kinds.kind import Start, kind_of
from broker.runs.progress import Checkpoint, Ending, Progress, Result
from broker.runs.runs import Run
from broker.runs.series import Measured
from cli.main import app
from projects import lifecycle, people, updates
from projects.db.columns import utcnow
from projects.errors import DomainError, InvalidError, NotFoundError
from projects.people import Actor
from projects.projects import Project
from projects.record import record
from projects.settings import Settings, get_settings
from tests import forked
from tests.broker.copying import add as add_corpus
from tests.broker.lab import ADA, EMMY, GRACE, POOL, ROSA, STRANGER, Lab, request_id, settings
from tests.patience import PATIENCE, wait_for
from trainer import check
from trainer import config as trainer_config
from trainer.contract import CorpusKind
from trainer.tuning_config import LoraConfig

LAST = 4
AT_ONCE = 1e-12
"""Seconds of a pause that is over by the next try, however often it has doubled."""
PUBLISHED = {
    *("README.md", "how.json", "model.safetensors", "tokenizer.json"),
    *("metrics.jsonl", "data_manifest.json", "order.safetensors"),
}


@dataclass
class Hub:
    """A running Hub, and what a passer-by sees there."""

    url: str
    token: str

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.url, token=self.token)

    def fault(self, **fields: object) -> None:
        """Let requests fail."""
        body = json.dumps(fields).encode()
        with urllib.request.urlopen(f"{self.url}/sandbox/faults", data=body, timeout=PATIENCE) as answer:
            assert answer.status == 200

    def heal(self) -> None:
        """Let no request fail any more."""
        request = urllib.request.Request(f"{self.url}/sandbox/faults", method="DELETE")
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass

    def put(self, repo: str, branch: str, name: str, data: bytes) -> None:
        """Somebody edits a file; by git, as the client takes no README that is not UTF-8."""
        file = {"path": name, "content": base64.b64encode(data).decode(), "encoding": "base64"}
        lines = [{"key": "header", "value": {"summary": "An edit"}}, {"key": "file", "value": file}]
        request = urllib.request.Request(
            f"{self.url}/api/models/{repo}/commit/{branch}",
            data="\n".join(map(json.dumps, lines)).encode(),
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass

    def branches(self, repo: str) -> set[str]:
        return {branch.name for branch in self.api.list_repo_refs(repo).branches}

    def read(self, repo: str, name: str, branch: str) -> str:
        """A file's text, as anybody gets it, without a token."""
        with urllib.request.urlopen(f"{self.url}/{repo}/resolve/{branch}/{name}", timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text

    def commits(self, repo: str, branch: str) -> list[str]:
        """The titles of a branch's commits after the first, which makes the repository."""
        return [commit.title for commit in self.api.list_repo_commits(repo, revision=branch)][:-1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("sandbox")
    process = forked.module("sandbox", folder.with_suffix(".log"), os.environ, "--dir", str(folder))
    described = folder / "sandbox.json"
    wait_for(lambda: described.exists() or process.poll() is not None, "the sandbox")
    told = json.loads(described.read_text())
    yield Hub(told["hub"], told["hub_token"])
    process.terminate()
    process.wait(PATIENCE)


@pytest.fixture
def conf(hub: Hub, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a namespace of their own; what has failed may be tried again at once."""
    place = {"hub_endpoint": hub.url, "hub_token": hub.token, "hub_namespace": request_id()}
    yield settings(tmp_path, **place, lease_seconds=30, publish_retry_seconds=AT_ONCE)
    hub.heal()


@pytest.fixture
def run(lab: Lab) -> int:
    """A running run of four steps."""
    project = lab.project(title="Sinks of <attention>")
    lab.allocation(project)
    run = lab.launch(project, overrides=f"steps={LAST}")
    lab.start(run, 0)
    return run


def checkpoint(home: Path, step: int) -> Checkpoint:
    """A folder as the trainer leaves it, with nothing of a model in it but its shape."""
    folder = home / "attempt-1" / "checkpoints" / f"step{step}"
    (folder / "trainer").mkdir(parents=True)
    save_file({"weight": np.full((64, 64), step, np.float32)}, folder / "model.safetensors")
    place = {"dataset": "common/text", "revision": "0123456789abcdef" * 2}
    sources = [{"name": "python-docs", "licence": "PSF-2.0", "place": place, "train": {"tokens": 123456}}]
    save_file({"row": np.zeros((1, 8), np.int32)}, folder / "order.safetensors")
    files = {"order.safetensors": "xxh3:0"}
    (folder / "how.json").write_text(json.dumps({"step": step, "data": {"sources": sources}, "files": files}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"moments": np.zeros(64, np.float32)}, folder / "trainer" / "moments.safetensors")
    return Checkpoint(step, str(folder))


def measure(conf: Settings, *steps: int) -> None:
    """The trainer writes its measures."""
    (conf.home / "attempt-1").mkdir(exist_ok=True)
    lines = [json.dumps({"step": step, "tokens": 100 * step, "loss": 1 / step}) for step in steps]
    (conf.home / "attempt-1" / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write(lab: Lab, conf: Settings, run: int, *steps: int) -> None:
    """The trainer writes checkpoints, and its supervisor tells of them."""
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=[checkpoint(conf.home, step) for step in steps]))


def repo(conf: Settings, run: int) -> str:
    return f"{conf.hub_namespace}/p1-sinks-of-attention-run-{run}"


def publish(lab: Lab, conf: Settings, run: int) -> None:
    publisher.publish_waiting(conf, lab.db, run)


def waiting(lab: Lab) -> list[tuple[int, int]]:
    with lab.db.read() as session:
        return list(publisher.waiting(session))


def shown(lab: Lab, run: int) -> RunDetails:
    """What `/run show` says beyond the card."""
    with lab.db.read() as session:
        return run_details.details(session, runs.view(session, run))


def lapse(lab: Lab) -> None:
    """All leases run out."""
    with lab.db.write() as session:
        session.execute(text("UPDATE publications SET lease_until = '2020-01-01 00:00:00.000000'"))


def row(lab: Lab, run: int, step: int) -> Publication:
    with lab.db.read() as session:
        return session.get_one(Publication, (run, step))


def told(lab: Lab) -> list[tuple[int, bool, bool]]:
    """Step, first and final of each publication that the record tells of."""
    return [(payload["step"], payload["first"], payload["final"]) for payload in entries(lab)]


def entries(lab: Lab) -> list[dict[str, Any]]:
    """What the record tells of each publication."""
    with lab.db.read() as session:
        found = record.since(session, record.project_stream(1), 0)
    return [entry.payload or {} for entry in found if entry.kind == "checkpoint.published"]


def test_published_once_in_the_order_of_steps(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 2, 0, 1)
    assert waiting(lab) == [(run, 0)]
    publish(lab, conf, run)
    assert waiting(lab) == []
    assert told(lab) == [(0, True, False), (1, False, False), (2, False, False)]
    assert hub.commits(repo(conf, run), "main") == ["step 2", "step 1", "step 0"], "main follows"
    write(lab, conf, run, LAST)
    publish(lab, conf, run)
    publish(lab, conf, run)
    assert told(lab)[3:] == [(LAST, False, True)]
    assert hub.branches(repo(conf, run)) == {"main", "step0", "step1", "step2", "step4"}
    for branch, step in (("main", LAST), ("step0", 0), ("step1", 1), ("step2", 2), ("step4", LAST)):
        if branch != "main":
            assert hub.commits(repo(conf, run), branch) == [f"step {step}"]
        said = hub.read(repo(conf, run), "README.md", branch)
        assert f"Step {step} of {LAST}" in said
        files = set(hub.api.list_repo_files(repo(conf, run), revision=branch)) - {".gitattributes"}
        assert files == PUBLISHED, "the trainer's own stays here"
    links = lab.run(run).checkpoints
    assert [(link.step, link.url) for link in links] == [
        (step, f"{hub.url}/{repo(conf, run)}/tree/step{step}") for step in (0, 1, 2, LAST)
    ]


def test_the_card_says_how_and_by_whom(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    measure(conf, *range(1, 41))
    write(lab, conf, run, LAST)
    publish(lab, conf, run)
    said = hub.read(repo(conf, run), "README.md", f"step{LAST}")
    front = yaml.safe_load(said.split("---\n")[1])
    assert front == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stoa", "demo"],
        "datasets": ["common/text"],
    }
    assert r"# Sinks of \<attention\>: run" in said
    assert r"| python\-docs | PSF\-2\.0 | common/text at 0123456789ab | 123,456 |" in said
    assert "\n`data_manifest.json` holds their hashes. `order.safetensors` has the rows that each step since" in said
    assert "People: Ada (lead), Grace" in said
    assert "sponsored by The house" in said
    assert r"- Changed in it: steps = 4" in said
    assert f'from_pretrained("{repo(conf, run)}", revision="step{LAST}")' in said
    assert "| 4 | 400 | 0.2500 |" in said
    assert "| 5 | 500" not in said, "the curve ends at the checkpoint"
    assert "](loss.png)" in said
    picture = row(lab, run, LAST).folder + "/loss.png"
    assert (Path(picture).read_bytes()[:8], Image.open(picture).size) == (b"\x89PNG\r\n\x1a\n", (1000, 625))
    assert "loss.png" in hub.api.list_repo_files(repo(conf, run), revision=f"step{LAST}")
    measures = hub.read(repo(conf, run), "metrics.jsonl", f"step{LAST}").splitlines()
    assert [json.loads(line)["step"] for line in measures] == [1, 2, 3, 4]
    assert "events.out.tfevents.0.stoa" in hub.api.list_repo_files(repo(conf, run), revision="main")
    manifest = json.loads(hub.read(repo(conf, run), "data_manifest.json", f"step{LAST}"))
    assert manifest["sources"][0]["train"] == {"tokens": 123456}


def test_the_card_has_what_a_reader_of_the_hub_looks_for(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    points = [Measured("held_out", 0, 0, 7.5), Measured("held_out", 2, 200, 4.0), Measured("held_out", 3, 300, 3.0)]
    lab.renew(run, 1, 0, Progress(0, 0, points=points))
    written = checkpoint(conf.home, 2)
    how = Path(written.folder) / "how.json"
    halves = [
        {"name": name, "licence": "PSF-2.0", "place": {}, "weight": 0.5, "held_out": {"tokens": 100, "bytes": size}}
        for name, size in (("docs", 300), ("code", 500))
    ]
    told = {"step": 2, "tokens": 200, "code_version": "abc123", "code_commit": "c0ffee", "data": {"sources": halves}}
    how.write_text(json.dumps(told | {"code_commit": ""}))
    assert (shown(lab, run).code_commit, shown(lab, run).hub_commit) == (None, None), "there is no checkpoint yet"
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=[written]))
    assert (shown(lab, run).code_commit, shown(lab, run).hub_commit) == ("", None), "the code was in no checkout"
    how.write_text(json.dumps(told))
    with lab.db.write() as session:
        session.execute(update(Project).values(channel_url="https://discord.com/channels/1/2"))
        session.execute(update(Run).values(thread_url="https://discord.com/channels/1/3"))
    publish(lab, conf, run)
    (entry,) = entries(lab)
    assert [entry[key] for key in ("tokens", "held_out", "held_out_step")] == [200, "4.000", 2]
    refs = hub.api.list_repo_refs(repo(conf, run)).branches
    (commit,) = [branch.target_commit for branch in refs if branch.name == "step2"]
    assert (entry["code_commit"], entry["hub_commit"]) == ("c0ffee", commit)
    said = hub.read(repo(conf, run), "README.md", "step2")
    config = configs.read(lab.row(run).config)
    assert f"\n- Compute: 1 core of {POOL}, sponsored by " in said
    assert "\n- Record: https://discord.com/channels/1/3, the run's thread, where each post names its entry" in said
    assert "\n- Channel: https://discord.com/channels/1/2, where each post names its entry in the record\n" in said
    for row_of_card in (
        f"| Parameters | {check.parameters(config):,} |",
        "| Hardware | 1 core |",
        f"| Batch | {config.training.batch} sequences of {config.data.sequence_length} tokens |",
        f"| Peak learning rate | {config.optimizer.learning_rate:g} |",
        f"| Seed | {config.training.seed} |",
        # 4 nats, by ln 2 and the mean of 3 and 5 bytes a token.
        "| Held-out loss | 4.0000 nats per token, 1.4427 bits per byte, at step 2 |",
        "| Version of the trainer | abc123 |",
        "| Git commit of the trainer | c0ffee |",
    ):
        assert row_of_card in said
    assert rf"- Cite as: Sinks of \<attention\>, run {run}, step 2, by Ada, Grace." in said
    card = hub.api.model_info(repo(conf, run), revision="step2").card_data
    assert card is not None
    assert card.eval_results is not None
    (result,) = card.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", 4.0)
    assert card.language is None, "nothing says in which language the data are"

    assert shown(lab, run).mfu is None, "the trainer does not know the peak of these CPUs"
    lab.renew(run, 1, 0, Progress(0, 0, points=[Measured("mfu", 2, 200, 0.3), Measured("mfu", 3, 300, 0.4)]))
    details = shown(lab, run)
    assert (details.seed, details.code_version) == (config.training.seed, "abc123")
    assert details.perplexity == pytest.approx(math.e**3)
    assert details.bits_per_byte == pytest.approx(3 / math.log(2) / 4)
    assert details.mfu == 0.4
    assert f"```python\n{details.loading}\n```" in said, "the code of the card"
    how.write_text("[]")
    details = shown(lab, run)
    assert (details.code_version, details.bits_per_byte) == ("", None), "what is not known is not said"
    assert (details.code_commit, details.hub_commit) == ("c0ffee", commit), "the publication knows them too"

    with lab.db.write() as session:
        plan = run_plan.plan_fork(session, ADA, request_id(), run, 2, overrides="seed=7, steps=9", time_limit="5m")
    with lab.db.write() as session:
        forked = run_plan.confirm(session, ADA, plan.plan_id).run_id
    lab.start(forked, 1)
    (conf.home / "fork").mkdir()
    child = checkpoint(conf.home / "fork", 3)
    lab.renew(forked, 1, 0, Progress(0, 0, checkpoints=[child]))
    publish(lab, conf, forked)
    said = hub.read(repo(conf, forked), "README.md", "step3")
    assert f"- Forked from run {run} at step 2: `{repo(conf, run)}` at `step2`" in said
    card = hub.api.model_info(repo(conf, forked), revision="step3").card_data
    assert card is not None
    assert card.base_model == repo(conf, run)


def test_a_configuration_that_is_refused_today_stops_no_publication(
    lab: Lab, conf: Settings, hub: Hub, run: int
) -> None:
    with lab.db.write() as session:
        session.execute(text("UPDATE runs SET config = 'version: 1'"))
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    said = hub.read(repo(conf, run), "README.md", "step1")
    assert "| Hardware | 1 core |" in said
    assert "| Parameters |" not in said


def test_nothing_typed_becomes_markup_or_metadata(lab: Lab, conf: Settings, hub: Hub) -> None:
    ada = Actor(1, "---\nlicense: mit\n--- **Ada** <img src=x> [a](http://x)")
    project = lab.project(ada, title="A # title | with `all` of it: www.example.org")
    lab.allocation(project, lead=ada)
    run = lab.launch(project, ada)
    lab.start(run, 0)
    write(lab, conf, run, 0)
    publish(lab, conf, run)
    with lab.db.read() as session:
        name = session.get_one(Repository, run).name
    said = hub.read(name, "README.md", "step0")
    card = hub.api.model_info(name, revision="step0").card_data
    assert card is not None
    assert card["license"] == "apache-2.0"
    assert said.count("\n---\n") == 1
    assert r"# A \# title \| with \`all\` of it\: www\.example\.org: run" in said
    assert r"\-\-\- license\: mit \-\-\- \*\*Ada\*\* \<img src=x\> \[a\]\(http\://x\)" in said


def test_metrics_of_earlier_attempts_go_along(tmp_path: Path) -> None:
    for token, steps in ((1, range(1, 8)), (2, range(5, 12))):
        folder = tmp_path / f"attempt-{token}"
        folder.mkdir()
        lines = [json.dumps({"step": step, "loss": float(token)}) for step in steps]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "lo']))
    target = tmp_path / "out.jsonl"
    metrics.write(10, tmp_path / "attempt-2", -1, target)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in found] == [(n, 1.0 if n < 5 else 2.0) for n in range(1, 11)]


@pytest.mark.parametrize(("path", "status"), [("/api/repos/create", 500), ("/commit/", 503), ("/tree/", 403)])
def test_a_hub_that_fails_is_tried_again_later(
    lab: Lab, conf: Settings, hub: Hub, run: int, path: str, status: int
) -> None:
    write(lab, conf, run, 0, 1)
    hub.fault(path=path, status=status, times=40)
    publish(lab, conf.model_copy(update={"publish_retry_seconds": 600}), run)
    first = row(lab, run, 0)
    assert (first.url, first.lease_until, first.tries) == (None, None, 1)
    assert str(status) in first.error
    assert hub.token not in first.error
    assert (waiting(lab), told(lab)) == ([], []), "the next one waits for it too"
    publish(lab, conf, run)
    assert row(lab, run, 0).tries == 1
    with lab.db.write() as session:
        session.execute(update(Publication).values(not_before=utcnow()))
    hub.heal()
    assert waiting(lab) == [(run, 0)]
    publish(lab, conf, run)
    assert [step for step, *_ in told(lab)] == [0, 1]
    assert row(lab, run, 0).error == ""
    assert hub.commits(repo(conf, run), "step0") == ["step 0"]


def test_the_pauses_grow(lab: Lab, conf: Settings, run: int) -> None:
    place = {"hub_endpoint": "http://127.0.0.1:1", "hub_token": "x", "hub_namespace": "n"}
    away = settings(conf.home, **place, publish_retry_seconds=100)
    write(lab, conf, run, 0)
    for tries in range(1, 4):
        with lab.db.write() as session:
            session.execute(text("UPDATE publications SET not_before = '2020-01-01 00:00:00.000000'"))
        before = time.time()
        publish(lab, away, run)
        after = time.time()
        failed = row(lab, run, 0)
        assert failed.tries == tries
        assert "Connect" in failed.error
        pause = 100 * 2 ** (tries - 1)
        assert before + pause <= failed.not_before.timestamp() <= after + pause


def test_a_folder_that_cannot_be_read_is_tried_again_later(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0)
    how = Path(row(lab, run, 0).folder) / "how.json"
    whole = how.read_text()
    for broken in (lambda: how.write_text("{"), how.unlink):
        broken()
        publish(lab, conf, run)
        assert row(lab, run, 0).lease_until is None
    assert "No such file" in row(lab, run, 0).error
    how.write_text(whole)
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False)]
    write(lab, conf, run, 1)
    folder = Path(row(lab, run, 1).folder)
    with lab.db.read() as session:
        write_card(session, run, repo(conf, run), folder)
    (folder / "how.json").write_text("[]")
    publish(lab, conf, run)
    assert told(lab)[1:] == [(1, False, False)], "with its card written, it is published without what is not recorded"


@pytest.mark.parametrize("broken", ["{", '{"data": {"sources": [{}]}}'])
def test_one_broken_folder_does_not_keep_the_others(lab: Lab, conf: Settings, hub: Hub, run: int, broken: str) -> None:
    write(lab, conf, run, 0, 1)
    how = Path(row(lab, run, 0).folder) / "how.json"
    how.write_text(broken)
    for tries in range(1, publisher.LOST_AFTER + 1):
        assert waiting(lab) == [(run, 0)]
        publish(lab, conf, run)
        assert row(lab, run, 0).tries == tries
    assert lab.kinds(1)[-1] == "checkpoint.lost"
    assert waiting(lab) == [(run, 1)]
    publish(lab, conf, run)
    assert told(lab) == [(1, True, False)]
    assert (row(lab, run, 0).url, waiting(lab)) == (None, [])
    assert how.exists(), "somebody may mend it"
    with lab.db.read() as session:
        assert publications.kept(session, run) == [1], "nobody forks from it"


def test_a_hub_that_was_away_for_long_makes_no_folder_lost(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0)
    with lab.db.write() as session:
        session.execute(update(Publication).values(tries=publisher.LOST_AFTER + 9, error="HubError: away"))
    how = Path(row(lab, run, 0).folder) / "how.json"
    whole = how.read_text()
    how.unlink()
    publish(lab, conf, run)
    assert (row(lab, run, 0).tries, waiting(lab)) == (1, [(run, 0)])
    how.write_text(whole)
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False)]


def test_an_answer_that_was_lost_makes_no_second_commit(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0)
    hub.fault(path="/commit/", cut=True)
    publish(lab, conf, run)
    assert told(lab) == []
    assert hub.commits(repo(conf, run), "step0") == ["step 0"], "the Hub did it, and could not say so"
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False)]
    assert hub.commits(repo(conf, run), "step0") == ["step 0"]


def test_another_takes_over_from_a_publisher_that_died(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0, 1)
    with lab.db.write() as session:
        died = publisher.claim(session, run, conf)
    assert died is not None
    with lab.db.read() as session:
        write_card(session, run, died.repo, died.folder)
    HubClient(conf).publish(died.repo, "step0", died.folder, "step 0")  # and then its power went out

    assert waiting(lab) == [], "it is leased"
    publish(lab, conf, run)
    assert told(lab) == []
    lapse(lab)
    assert waiting(lab) == [(run, 0)]
    with lab.db.write() as session:
        assert publisher.claim(session, run, conf) is not None
    with lab.db.write() as session:
        publisher.fail(session, died, "late", pause_seconds=1)
        publisher.finish(session, died, publisher.Uploaded("https://elsewhere"))
    assert (told(lab), waiting(lab), row(lab, run, 0).error) == ([], [], ""), "another holds it now"
    lapse(lab)
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False), (1, False, False)]
    assert hub.commits(repo(conf, run), "step0") == ["step 0"]


def test_publishers_at_once_publish_once(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0, 1, 2)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: publish(lab, conf, run), range(3)))
    publish(lab, conf, run)
    assert [step for step, *_ in told(lab)] == [0, 1, 2]
    assert [hub.commits(repo(conf, run), f"step{step}") for step in range(3)] == [["step 0"], ["step 1"], ["step 2"]]


def test_a_long_upload_keeps_its_lease(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0)
    short = conf.model_copy(update={"lease_seconds": 2.0})
    hub.fault(path="/preupload/", status=500, times=3)  # the client tries again after 1, 2 and 4 seconds
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(publish, lab, short, run)
        wait_for(lambda: row(lab, run, 0).lease_until is not None, "the first lease")
        first = row(lab, run, 0).lease_until
        assert first is not None
        wait_for(lambda: utcnow() > first, "its end")
        assert waiting(lab) == []
        assert not uploading.done()
        uploading.result()
    assert (told(lab), row(lab, run, 0).lease) == ([(0, True, False)], 1)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", ["/preupload/", "/commit/", "/api/repos/create"])
def test_a_hub_that_asks_to_wait_is_heeded_by_the_publishers_own_pause(
    lab: Lab, conf: Settings, hub: Hub, run: int, path: str, status: int
) -> None:
    write(lab, conf, run, 0)
    hub.fault(path=path, status=status, retry_after=900)
    before = utcnow()
    publish(lab, conf, run)
    assert utcnow() < before + timedelta(seconds=900), "the task does not sleep"
    waits = row(lab, run, 0)
    assert (waits.tries, waits.lease_until) == (1, None)
    assert waits.not_before >= before + timedelta(seconds=900)
    assert "asks to wait 900 s" in waits.error
    with lab.db.write() as session:
        session.execute(update(Publication).values(not_before=utcnow()))
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False)]


def test_a_token_that_is_refused_is_told_to_the_admins_once(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    revoked = conf.model_copy(update={"hub_token": SecretStr("hf_revoked")})
    write(lab, conf, run, 0)
    for _ in range(3):
        publish(lab, revoked, run)
    assert row(lab, run, 0).tries == 3
    with lab.db.read() as session:
        entries = record.since(session, record.LAB, 0)
    failures = [entry.payload for entry in entries if entry.kind == "part.failed" and entry.payload]
    assert [(failure["part"], "STOA_HUB_TOKEN" in failure["error"]) for failure in failures] == [
        ("publishing to the Hub", True)
    ]
    publish(lab, conf, run)
    assert told(lab) == [(0, True, False)]


def log_steps(folder: Path, steps: range, loss: float = 1.0) -> None:
    """An attempt's trainer logs these steps."""
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "tokens": {step}, "loss": {loss}}}\n' for step in steps)


def test_each_checkpoint_has_the_metrics_since_the_one_before(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    log_steps(conf.home / "attempt-1", range(1, 4))
    write(lab, conf, run, 0, 2)
    publish(lab, conf, run)
    log_steps(conf.home / "attempt-1", range(4, 7))
    write(lab, conf, run, LAST)
    publish(lab, conf, run)
    steps = {
        step: [
            json.loads(line)["step"]
            for line in hub.read(repo(conf, run), "metrics.jsonl", f"step{step}").split("\n")[:-1]
        ]
        for step in (0, 2, LAST)
    }
    assert steps == {0: [], 2: [1, 2], LAST: [3, 4]}
    said = hub.read(repo(conf, run), "README.md", f"step{LAST}")
    assert "holds every measured step since step 2" in said
    assert "| 1 | 1 | 1.0000 |" in said, "the table is of the whole run"


def test_the_work_for_a_checkpoint_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """Lines before it are not read again, and neither the losses nor the memory grow with them."""
    attempt, target = tmp_path / "attempt-1", tmp_path / "out.jsonl"
    log_steps(attempt, range(1, 50_001))
    size = (attempt / "metrics.jsonl").stat().st_size
    tracemalloc.start()
    points = metrics.write(50_000, attempt, -1, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.8 * size
    assert (points[0].step, points[-1].step, len(points) <= metrics.MOST_LOSSES) == (1, 50_000, True)
    assert target.read_text().count("\n") == 50_000
    with (attempt / "metrics.jsonl").open("r+b") as file:  # who read it again would find nothing
        file.write(b"\0" * size)
    log_steps(attempt, range(50_001, 50_011))
    points = metrics.write(50_005, attempt, 50_000, target)
    assert [json.loads(line)["step"] for line in target.read_text().splitlines()] == list(range(50_001, 50_006))
    assert (points[0].step, points[-1].step) == (1, 50_005)
    log_steps(tmp_path / "attempt-2", range(50_004, 50_009), loss=2.0)
    points = metrics.write(50_008, tmp_path / "attempt-2", 50_005, target)
    assert [json.loads(line)["step"] for line in target.read_text().splitlines()] == [50_006, 50_007, 50_008]
    assert [(point.step, point.value) for point in points[-6:]] == [
        *((step, 1.0) for step in (50_003,)),
        *((step, 2.0) for step in range(50_004, 50_009)),
    ]
    assert points[0].step == 1


def test_a_checkpoint_is_noted_once(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0)
    with lab.db.write() as session:
        publications.add(session, run, 0, "another folder")
    assert row(lab, run, 0).folder == str(conf.home / "attempt-1" / "checkpoints" / "step0")


def test_a_hub_that_is_down_for_a_day_costs_nothing(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    for hour, (path, status, cut) in enumerate(
        [("/create", 500, False), ("/refs", 429, False), ("/commit", 500, True)]
    ):
        write(lab, conf, run, hour)  # the run does not wait
        hub.fault(path=path, status=status, cut=cut, times=1000)
        for _ in range(8):
            publish(lab, conf, run)
    assert (lab.run(run).checkpoints, row(lab, run, 0).tries) == ((), 24)
    assert lab.run(run).delayed == "The checkpoint of step 0 is not on the Hub yet, after 24 tries; it is tried again."
    assert lab.kinds(1).count("checkpoint.delayed") == 1, "told once, not at each try"
    hub.heal()
    publish(lab, conf, run)
    assert [step for step, *_ in told(lab)] == [0, 1, 2]
    assert [hub.commits(repo(conf, run), f"step{step}") for step in range(3)] == [["step 0"], ["step 1"], ["step 2"]]
    assert lab.run(run).delayed == ""


def held_run(lab: Lab) -> tuple[int, int]:
    """A project that holds its releases back, and a running run of it."""
    project = lab.proposal(title="Sinks of attention")
    with lab.db.write() as session:
        lifecycle.join(session, GRACE, project, min_people=2)
        told_of = {"goal": "g", "plan": "p", "compute": "c", "release": "r"}
        lifecycle.scope(session, ADA, project, **told_of, release_policy="held", licence="MIT", min_people=2)
    lab.allocation(project)
    run = lab.launch(project, overrides=f"steps={LAST}")
    lab.start(run, 0)
    return project, run


def upload(conf: Settings, claimed: publisher.Claimed) -> None:
    """What a publisher sends once it has claimed a checkpoint."""
    hub = HubClient(conf)
    for branch in (f"step{claimed.step}", "main"):
        hub.publish(claimed.repo, branch, claimed.folder, "late", private=claimed.private)


def test_a_release_decided_during_an_upload_opens_the_repository(lab: Lab, conf: Settings, hub: Hub) -> None:
    project, run = held_run(lab)
    write(lab, conf, run, 0)
    with lab.db.write() as session:
        claimed = publisher.claim(session, run, conf)
    assert claimed is not None
    assert claimed.private
    with lab.db.write() as session:
        updates.release(session, ROSA, project, "It is safe.")
    publish(lab, conf, run)
    upload(conf, claimed)
    with lab.db.write() as session:
        publisher.finish(session, claimed, publisher.Uploaded("https://here"))
    publish(lab, conf, run)
    assert not hub.api.model_info(repo(conf, run)).private
    assert lab.kinds(1).count("checkpoints.released") == 1
    assert waiting(lab) == []


@pytest.mark.parametrize("late", ["finish", "fail"])
def test_a_publisher_that_comes_late_closes_nothing_for_good(lab: Lab, conf: Settings, hub: Hub, late: str) -> None:
    project, run = held_run(lab)
    write(lab, conf, run, 0)
    with lab.db.write() as session:
        claimed = publisher.claim(session, run, conf)
    assert claimed is not None
    lapse(lab)
    publish(lab, conf, run)
    with lab.db.write() as session:
        updates.release(session, ROSA, project, "It is safe.")
    publish(lab, conf, run)
    assert not hub.api.model_info(repo(conf, run)).private
    upload(conf, claimed)
    assert hub.api.model_info(repo(conf, run)).private
    with lab.db.write() as session:
        if late == "finish":
            publisher.finish(session, claimed, publisher.Uploaded("https://here"))
        else:
            publisher.fail(session, claimed, "late", pause_seconds=1)
    publish(lab, conf, run)
    assert not hub.api.model_info(repo(conf, run)).private


def test_held_checkpoints_are_private_until_reviewers_release_them(lab: Lab, conf: Settings, hub: Hub) -> None:
    project, run = held_run(lab)
    write(lab, conf, run, 0)
    publish(lab, conf, run)
    assert lab.kinds(1)[-1] == "checkpoint.published"
    assert hub.api.model_info(repo(conf, run)).private
    with pytest.raises(urllib.error.HTTPError, match="401"):
        hub.read(repo(conf, run), "README.md", "step0")
    assert waiting(lab) == []

    with lab.db.write() as session:
        updates.release(session, ROSA, project, "It is safe.")
    assert waiting(lab) == [(run, publisher.VISIBILITY)]
    hub.fault(path="/settings", status=503)
    publish(lab, conf, run)
    assert "checkpoints.released" not in lab.kinds(1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: publish(lab, conf, run), range(2)))
    assert lab.kinds(1).count("checkpoints.released") == 1
    assert "\nlicense: mit\n" in hub.read(repo(conf, run), "README.md", "step0")
    assert waiting(lab) == []

    with lab.db.write() as session:
        session.execute(update(Project).values(release_policy="held"))
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    assert hub.api.model_info(repo(conf, run)).private, "held again, all of it"
    assert lab.kinds(1)[-2:] == ["checkpoints.withheld", "checkpoint.published"]


def test_a_publisher_without_a_token_says_so(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, 0)
    publish(lab, conf.model_copy(update={"hub_token": settings(conf.home).hub_token}), run)
    assert "401" in row(lab, run, 0).error


def forget(lab: Lab, actor: Actor, *texts: str) -> forgetting.Forgotten:
    with lab.db.write() as session:
        return forgetting.forget(session, None, str(actor.discord_id), "They asked for it.", texts)


def test_the_cards_of_who_is_forgotten_are_written_anew(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    measure(conf, *range(1, 5))
    write(lab, conf, run, 1, 2)
    publish(lab, conf, run)
    write(lab, conf, run, LAST)
    lab.project(STRANGER, "Another question")
    with lab.db.read() as session:
        write_card(session, run, repo(conf, run), Path(row(lab, run, LAST).folder))
        assert forgetting.find(session, None, str(GRACE.discord_id)).repositories == [f"{hub.url}/{repo(conf, run)}"]
        assert forgetting.find(session, None, str(STRANGER.discord_id)).repositories == []
    before = {branch: hub.read(repo(conf, run), "README.md", branch) for branch in ("main", "step1", "step2")}
    hub.put(repo(conf, run), "step2", "README.md", before["step2"].encode() + b"\nNot UTF-8: \xfc\n")
    done = forget(lab, GRACE)
    assert done.repositories == [f"{hub.url}/{repo(conf, run)}"]
    assert f"what they said stays in the history there until somebody deletes it: {hub.url}" in forgetting.told(
        done.repositories
    )
    assert waiting(lab)
    publish(lab, conf, run)
    assert waiting(lab) == []
    assert hub.read(repo(conf, run), "README.md", "step1") == before["step1"].replace("Grace", people.NAMELESS)
    assert hub.commits(repo(conf, run), "step1") == ["model card updated", "step 1"]
    edited = hub.read(repo(conf, run), "README.md", "step2")
    assert edited == f"{before['step2'].replace('Grace', people.NAMELESS)}\nNot UTF-8: \ufffd\n", "all else stays"
    for branch in ("main", f"step{LAST}"):
        assert "Grace" not in hub.read(repo(conf, run), "README.md", branch), "also what was only about to be published"
    assert "People: Ada (lead)" in hub.read(repo(conf, run), "README.md", "main")
    publish(lab, conf, run)
    assert len(hub.commits(repo(conf, run), "step1")) == 2, "once"


def test_cards_are_written_anew_once_the_hub_takes_them(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    forget(lab, GRACE)
    hub.fault(method="POST", path="/commit/", status=500)
    publish(lab, conf, run)
    assert waiting(lab), "it is tried again"
    hub.heal()
    publish(lab, conf, run)
    assert waiting(lab) == []
    assert "Grace" not in hub.read(repo(conf, run), "README.md", "step1")
    assert "Grace" not in hub.read(repo(conf, run), "README.md", "main")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_card_never_tells_of_another_step_than_the_weights_beside_it(
    lab: Lab, conf: Settings, hub: Hub, run: int, when: str
) -> None:
    class Meanwhile(HubClient):
        """Another publisher uploads the next step before or after the card of `main` is read."""

        def read(self, repo: str, branch: str, name: str) -> tuple[str, str] | None:
            found = super().read(repo, branch, name) if when == "after" else None
            if branch == "main":
                publish(lab, conf, run)
            return found or super().read(repo, branch, name)

    write(lab, conf, run, 1)
    publish(lab, conf, run)
    write(lab, conf, run, 2)
    forget(lab, GRACE)
    with nullcontext() if when == "before" else pytest.raises(HubError, match="412"):
        forgetting.renew_cards(lab.db, Meanwhile(conf), run)
    publish(lab, conf, run)
    assert waiting(lab) == []
    main = hub.read(repo(conf, run), "README.md", "main")
    assert main == hub.read(repo(conf, run), "README.md", "step2")
    assert "\nStep 2 of" in main
    assert "Grace" not in main


def test_a_run_from_a_model_of_the_hub_fetches_it_as_anybody_may(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 0)
    how = Path(row(lab, run, 0).folder) / "how.json"
    base = {"name": "EleutherAI/pythia-160m@step143000", "licence": "cc-by-4.0"}
    how.write_text(json.dumps(json.loads(how.read_text()) | {"base": base}))
    publish(lab, conf, run)
    card = hub.read(repo(conf, run), "README.md", "step0")
    assert "base_model: EleutherAI/pythia-160m\n" in card
    assert "license: cc-by-4.0\n" in card  # the project has another
    assert r"- Base: EleutherAI/pythia\-160m\@step143000, whose licence is cc\-by\-4\.0" in card

    with pytest.raises(InvalidError, match=r"base is '/etc/models@0', and must be a model of the Hub at a revision"):
        lab.recipe("from-a-place", "like: demo\nbase: /etc/models@0\n")
    chats = conf.home / "chats.jsonl"
    chats.write_text('{"prompt": "la", "completion": " la"}\n')
    add_corpus(lab, POOL, chats, "chats", CorpusKind.INSTRUCTIONS)
    source = "{name: chats, corpus: chats, weight: 1, licence: MIT}"
    data = f"data: {{kind: instructions, sources: [{source}]}}"
    lab.recipe("tuned", f"like: demo\nbase: {repo(conf, run)}@step0\n{data}\nlora: {{rank: 4}}\n")
    tuned = lab.row(lab.launch(1, recipe="tuned"))
    elsewhere.bring_models(conf, tuned)
    [fetched] = (conf.home / "hub_copies").glob("*/*")
    assert {path.name for path in fetched.iterdir()} >= {"model.safetensors", "tokenizer.json", "README.md"}
    assert not [path for path in fetched.iterdir() if path.is_dir()]
    attempt = conf.runs_dir / str(tuned.id) / "attempt-1"
    attempt.parent.mkdir(parents=True)
    told = kind_of(tuned).command(Start(conf, lab.db, tuned, attempt))
    assert told[-2:] == ["--base", str(fetched)]
    written = trainer_config.load(Path(told[1]))
    assert (written.data.kind, written.data.sources[0].path) == ("instructions", str(chats))
    assert written.lora == LoraConfig(rank=4)
    disk.tidy(conf, lab.db)
    assert fetched.is_dir(), "a run that has not ended starts from it"
    lab.cancel(tuned.id)
    measured = baseline(lab, f"{repo(conf, run)}@step0", tasks="arc_easy, sciq", limit=7)
    disk.tidy(conf, lab.db)
    assert fetched.is_dir(), "a run that has not ended evaluates it"
    takes = sum(path.stat().st_size * (3 if path.suffix == ".safetensors" else 1) for path in fetched.iterdir())
    assert kind_of(measured).command(Start(conf, lab.db, measured, attempt)) == [
        *("eval", str(fetched), "--tasks=arc_easy,sciq", "--out", str(attempt), "--limit=7")
    ]
    lab.cancel(measured.id)
    disk.tidy(conf, lab.db)
    assert not fetched.exists()

    with pytest.raises(OSError, match=rf"the disk has no room for .+, which takes {filesize.decimal(takes)}$"):
        elsewhere.bring_models(conf.model_copy(update={"disk_floor_gib": 1e9}), tuned)


def baseline(lab: Lab, model: str, **asked: Any) -> runs.Run:
    """An evaluation of a model of the Hub that Ada asks for."""
    with lab.db.write() as session:
        receipt = baselines.launch(session, ADA, request_id(), 1, model=model, **{"tasks": "arc_easy"} | asked)
    return lab.row(receipt.run_id)


def test_a_model_that_nobody_may_read_or_that_the_trainer_cannot_costs_nothing(
    lab: Lab, conf: Settings, hub: Hub, run: int
) -> None:
    model = f"{conf.hub_namespace}/bert"
    hub.api.create_repo(model)
    for name in ("main", "unreadable"):
        hub.api.create_branch(model, branch=name, exist_ok=True)
    hub.put(model, "main", "config.json", b'{"architectures": ["BertForMaskedLM"]}')
    hub.put(model, "unreadable", "config.json", b"[" * 10**5)
    refusals = {
        f"{model}@main": f"{model} is a BertForMaskedLM, which the trainer cannot read; it reads GPTNeoXForCausalLM",
        f"{model}@unreadable": f"{model} has no config.json of a model of transformers",
        f"{model}@step7": f"the Hub has no revision step7 of {model}",
        f"{conf.hub_namespace}/none@main": "that everybody may read",
    }
    for asked, said in refusals.items():
        with pytest.raises(DomainError, match=said):
            elsewhere.bring_models(conf, baseline(lab, asked))
    hub.fault(path="resolve/main/config", status=403, code="GatedRepo")
    measured = baseline(lab, f"{model}@main")
    with pytest.raises(NotFoundError, match="bert is gated on the Hub: its owners let only some people read it"):
        elsewhere.bring_models(conf, measured)
    HubClient(conf).show(model, private=True)
    with pytest.raises(NotFoundError, match=f"the Hub has no model {model} that everybody may read"):
        elsewhere.bring_models(conf, measured)  # though the lab's own token would do
    assert not list((conf.home / "hub_copies").glob("*/*"))

    attempt = folders.own(conf, measured.id, measured.request_id) / "attempt-1"
    attempt.mkdir()
    staging = Staging(conf, lab.db, lambda waits: True, lambda work: work())
    with pytest.raises(UnstartedError, match="it could not be started: the Hub has no model") as refused:
        staging.stage(measured, 1, attempt, 1, in_store=False)
    assert not refused.value.ending.transient
    lab.settle(measured.id, lab.start(measured.id, 1), 0, refused.value.ending)
    assert (lab.run(measured.id).state, lab.run(measured.id).spent) == (runs.RunState.FAILED, 0)


def test_an_evaluation_reads_what_is_on_the_hub_alone_as_anybody_may(
    lab: Lab, conf: Settings, hub: Hub, run: int
) -> None:
    write(lab, conf, run, 0, 1)
    publish(lab, conf, run)
    told = Path(row(lab, run, 0).folder)
    files = {path.name: path.read_bytes() for path in told.iterdir() if path.is_file()}
    shutil.rmtree(told)
    with lab.db.write() as session:
        session.execute(update(Publication).where(col(Publication.step) == 0).values(disk=Disk.GONE))
        evaluation = evaluations.launch(session, ADA, "ask", run, tasks="heldout", steps="0", time_limit="10m").run_id
    of_anybody = conf.model_copy(update={"hub_token": SecretStr("")})
    away = of_anybody.model_copy(update={"hub_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(OSError, match=f"step 0 of {repo(conf, run)} cannot be fetched from the Hub: "):
        elsewhere.bring(away, lab.db, lab.row(evaluation), pytest.fail, begins=True)
    elsewhere.bring(of_anybody, lab.db, lab.row(evaluation), pytest.fail, begins=True)
    [fetched] = (conf.home / "hub_copies").glob("*/checkpoints/*")
    assert fetched.name == "step0"
    attempt = conf.runs_dir / str(evaluation) / "attempt-1"
    told_trainer = kind_of(lab.row(evaluation)).command(Start(conf, lab.db, lab.row(evaluation), attempt))
    assert told_trainer[:2] == ["eval", str(fetched)]
    found = {path.name: path.read_bytes() for path in fetched.iterdir() if path.is_file()}
    assert found.items() >= {name: data for name, data in files.items() if name in PUBLISHED - {"README.md"}}.items()
    assert not [path for path in fetched.iterdir() if path.is_dir()]

    disk.tidy(conf, lab.db)
    assert fetched.is_dir(), "a run that has not ended reads it"
    full = of_anybody.model_copy(update={"disk_floor_gib": 1e9, "home": conf.home / "full"})
    with pytest.raises(OSError, match="the disk has no room for step 0 of"):
        elsewhere.bring(full, lab.db, lab.row(evaluation), pytest.fail, begins=True)
    lab.cancel(evaluation)
    disk.tidy(conf, lab.db)
    assert not fetched.exists()

    with lab.db.write() as session:
        session.get_one(Repository, run).private = True
        with pytest.raises(NotFoundError, match="has no checkpoint of step 0 here or open on the Hub; the nearest"):
            evaluations.launch(session, ADA, "held", run, tasks="heldout", steps="0", time_limit="10m")


def test_a_fork_starts_from_what_is_on_the_hub_with_the_optimizers_state_where_that_is_kept(
    lab: Lab, conf: Settings, hub: Hub
) -> None:
    project = lab.project(title="Sinks of <attention>")
    lab.allocation(project)
    lab.recipe("kept", "like: demo\ncheckpoints: {keep_state: [2]}\n")
    run = lab.launch(project, recipe="kept", overrides=f"steps={LAST}")
    lab.start(run, 0)
    write(lab, conf, run, 1, 2)
    publish(lab, conf, run)
    branches = [branch.name for branch in hub.api.list_repo_refs(repo(conf, run)).branches]
    assert sorted(branches) == ["main", "step1", "step2", "step2-state"]
    files = set(hub.api.list_repo_files(repo(conf, run), revision="step2-state")) - {".gitattributes"}
    assert files == {"trainer/moments.safetensors"}

    def planned(step: int) -> run_plan.Preview:
        with lab.db.write() as session:
            return run_plan.plan_fork(session, ADA, request_id(), run, step)

    assert not planned(1).quote.is_afresh, "all of it is on this disk"
    moments = (Path(row(lab, run, 2).folder) / "trainer" / "moments.safetensors").read_bytes()
    for step in (1, 2):
        shutil.rmtree(row(lab, run, step).folder)
        with lab.db.write() as session:
            disk.mark(session, run, step, Disk.GONE)
    with pytest.raises(NotFoundError, match="has no checkpoint of step 3 here or open on the Hub; it has: 1, 2"):
        planned(3)
    for step, is_afresh in ((1, True), (2, False)):
        plan = planned(step)
        assert plan.quote.is_afresh == is_afresh
        with lab.db.write() as session:
            fork = run_plan.confirm(session, ADA, plan.plan_id).run_id
        elsewhere.bring(conf, lab.db, lab.row(fork), pytest.fail, begins=True)
        attempt = conf.runs_dir / str(fork) / "attempt-1"
        attempt.parent.mkdir(parents=True)
        told = kind_of(lab.row(fork)).command(Start(conf, lab.db, lab.row(fork), attempt))
        origin, _, at = told[told.index("--fork") + 1].partition("@")
        fetched = Path(origin) / "checkpoints" / f"step{at}"
        assert (fetched / "model.safetensors").is_file()
        assert (fetched / "trainer").is_dir() != is_afresh
    assert (fetched / "trainer" / "moments.safetensors").read_bytes() == moments
    # A host that was cut off between the two parts fetches what is missing.
    shutil.rmtree(fetched / "trainer")
    elsewhere.bring(conf, lab.db, lab.row(fork), pytest.fail, begins=True)
    assert {path.name for path in fetched.parent.iterdir()} == {"step1", "step2"}
    assert (fetched / "trainer" / "moments.safetensors").read_bytes() == moments


def test_what_an_evaluation_has_measured_is_on_the_card_of_its_step(
    lab: Lab, conf: Settings, hub: Hub, run: int
) -> None:
    write(lab, conf, run, 1, 2)
    measure(conf, 1, 2)
    lab.renew(run, 1, 0, Progress(0, 0, points=[Measured("held_out", 0, 0, 4.0)]))
    publish(lab, conf, run)
    before = hub.read(repo(conf, run), "README.md", "step1")
    with lab.db.write() as session:
        evaluation = evaluations.launch(session, ADA, "ask", run, tasks="arc_easy", steps="2", time_limit="9m").run_id
    token = lab.start(evaluation, 1)
    results = [
        Result(2, "arc_easy", "acc", 0.4375, 0.0125, 99, 5, "1.0"),
        Result(2, "arc_easy", "acc_norm", 0.5, None, 99, 5),
    ]
    lab.renew(evaluation, token, 1, Progress(0, 0, results=results))
    lab.settle(evaluation, token, 1, Ending(0))
    assert waiting(lab)
    publish(lab, conf, run)
    said = hub.read(repo(conf, run), "README.md", "step2")
    assert r"- Evaluated: arc\_easy acc 0.4375 ± 0.0125" in said
    assert r"- Evaluated: arc\_easy acc\_norm 0.5000" in said
    for branch in ("step2", "main"):
        assert "- All results: `results/step2.json`" in hub.read(repo(conf, run), "README.md", branch)
        said = json.loads(hub.read(repo(conf, run), "results/step2.json", branch))
        assert said["step"] == 2
        assert said["lm_eval"] == importlib.metadata.version("lm_eval")
        assert said["seeds"] == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
        about = {"measured_by": evaluation, "kind": "evaluate", "task": "arc_easy", "documents": 99, "shots": 5}
        about |= {"metric": "acc", "value": 0.4375, "stderr": 0.0125, "version": "1.0"}
        assert said["results"][0] == about
        assert said["results"][1]["stderr"] is None
        lines = hub.read(repo(conf, run), "metrics.jsonl", branch).splitlines()
        of_tasks = [line for line in map(json.loads, lines) if "task" in line]
        shared = {"step": 2, "task": "arc_easy"}
        assert of_tasks == [
            shared | {"metric": "acc", "value": 0.4375, "stderr": 0.0125},
            shared | {"metric": "acc_norm", "value": 0.5, "stderr": None},
        ]
        assert json.loads(lines[0]) == {"step": 2, "tokens": 200, "loss": 0.5}, "the run's own come first"
        place = f"{hub.url}/{repo(conf, run)}/resolve/{branch}/events.out.tfevents.1.stoa"
        with urllib.request.urlopen(place, timeout=PATIENCE) as answer:
            points = {"arc_easy/acc": [Measured("acc", 2, 0, 0.4375)], "arc_easy/acc_norm": [Measured("", 2, 0, 0.5)]}
            assert answer.read() == tensorboard.encode(points)
    assert len(hub.commits(repo(conf, run), "step2")) == 2, "the card and the results are one commit"
    publish(lab, conf, run)
    assert len(hub.commits(repo(conf, run), "step2")) == 2
    card = hub.api.model_info(repo(conf, run), revision="step2").card_data
    assert card is not None
    assert card.eval_results is not None
    told = [(result.dataset_type, result.metric_type, result.metric_value) for result in card.eval_results]
    assert told == [("held-out", "loss", 4.0), ("arc_easy", "acc", 0.4375), ("arc_easy", "acc_norm", 0.5)]
    assert hub.read(repo(conf, run), "README.md", "step1") == before, "it is of another step"
    assert hub.commits(repo(conf, run), "step1") == ["step 1"]

    def again(value: float) -> None:
        """Step 1 is evaluated too, or anew."""
        with lab.db.write() as session:
            results_of.save(session, evaluation, run, [Result(1, "arc_easy", "acc", value, None, 99, 5), *results])
            publications.renew_cards(session, [run], at_once=True)
        publish(lab, conf, run)
        told = [json.loads(line) for line in hub.read(repo(conf, run), "metrics.jsonl", "step1").splitlines()]
        assert told[1:] == [{"step": 1, "task": "arc_easy", "metric": "acc", "value": value, "stderr": None}]

    again(0.25)
    write(lab, conf, run, 4)
    publish(lab, conf, run)
    again(0.375)
    acc = [Measured("acc", 1, 0, 0.375), Measured("acc", 2, 0, 0.4375)]
    found = HubClient(conf).read_bytes(repo(conf, run), "main", "events.out.tfevents.1.stoa")
    assert found is not None
    assert found[0] == tensorboard.encode({"arc_easy/acc": acc, "arc_easy/acc_norm": [Measured("", 2, 0, 0.5)]})
    commits = len(hub.commits(repo(conf, run), "main"))
    again(0.375)
    assert len(hub.commits(repo(conf, run), "main")) == commits, "nothing is written twice"


def test_a_branch_that_somebody_has_deleted_stays_deleted(lab: Lab, conf: Settings, hub: Hub, run: int) -> None:
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    hub.api.delete_branch(repo(conf, run), branch="step1")
    forget(lab, GRACE)
    publish(lab, conf, run)
    assert waiting(lab) == []
    assert hub.branches(repo(conf, run)) == {"main"}
    assert "Grace" not in hub.read(repo(conf, run), "README.md", "main")


def test_a_project_that_names_a_person_has_its_cards_written_anew(
    lab: Lab, conf: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.join(lab.project(STRANGER, "Another question"), EMMY)
    project = lab.project(title="Does Stranger dream?")
    lab.allocation(project)
    run = lab.launch(project, name="Wide")
    lab.start(run, 0)
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    with lab.db.read() as session:
        found = forgetting.find(session, None, str(STRANGER.discord_id))
        name = session.get_one(Repository, run).name
    assert found.repositories == [f"{hub.url}/{name}"]
    forget(lab, STRANGER, *(place.key for place in found.mentions.texts if "title" in place.where))
    publish(lab, conf, run)
    assert "Stranger" not in hub.read(name, "README.md", "main").split("\n- Recipe")[0]
    monkeypatch.setenv("STOA_DATABASE_URL", lab.db.url.render_as_string(hide_password=False))
    monkeypatch.setenv("STOA_ENV_FILE", "")
    get_settings.cache_clear()
    queued = str(lab.kinds(project).index("run.queued") + 1)
    try:
        acts = ["remove", str(project), "question"], ["redact", f"project:{project}", queued]
        said = [CliRunner().invoke(app, ["record", *act, "--why", "A slip."]) for act in acts]
    finally:
        get_settings.cache_clear()
    for one in said:
        assert one.output.splitlines()[1:] == [forgetting.told([f"{hub.url}/{name}"])]
    publish(lab, conf, run)
    assert "\n\\[removed\\]\n" in hub.read(name, "README.md", "main"), "in the place of the question"


def test_the_cards_of_a_run_follow_its_words(lab: Lab, conf: Settings, hub: Hub) -> None:
    lab.project(STRANGER, "Another question")
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project, name="Stranger's own", tags="tiny")
    lab.start(run, 0)
    write(lab, conf, run, 1)
    publish(lab, conf, run)
    with lab.db.read() as session:
        address = session.get_one(Repository, run).name

    def card() -> tuple[str, str, list[str]]:
        """The title, the run's name and the tags on the cards of the step's branch and of the main one."""
        publish(lab, conf, run)
        assert waiting(lab) == []
        said, main = (hub.read(address, "README.md", branch) for branch in ("step1", "main"))
        assert said == main
        title, name = (re.search(line, said, re.MULTILINE) for line in (r"^# (.*): run", r"^- Name: (.*)$"))
        return title[1] if title else "", name[1] if name else "", yaml.safe_load(said.split("---\n")[1])["tags"][2:]

    assert card() == ("Sinks of attention", "Stranger's own", ["tiny"])
    with lab.db.read() as session:
        found = forgetting.find(session, None, str(STRANGER.discord_id))
    assert found.repositories == [f"{hub.url}/{address}"]
    forget(lab, STRANGER, *(place.key for place in found.mentions.texts if place.where.startswith("name")))
    assert card() == ("Sinks of attention", f"{people.NAMELESS}'s own", ["tiny"])
    with lab.db.write() as session:
        naming.rename(session, ADA, run, name="Wide", tags="rope")
    assert card() == ("Sinks of attention", "Wide", ["rope"])
    for branch in ("step1", "main"):
        said = hub.read(address, "README.md", branch)
        hub.put(address, branch, "README.md", said.replace("- rope\n", "- rope\n- english\n").encode())
    with lab.db.write() as session:
        session.execute(update(Repository).values(tries=3, not_before=utcnow() + timedelta(hours=1)))
    with lab.db.write() as session:
        naming.rename(session, ADA, run, name="Wider", tags="alibi")
    assert waiting(lab) == [], "the Hub's pause goes on"
    with lab.db.write() as session:
        redacted = forgetting.redact(session, None, f"project:{project}", len(lab.kinds(project)), "A slip.")
    assert redacted == [f"{hub.url}/{address}"]
    assert card() == ("Sinks of attention", r"\[removed\]", ["english"]), "what somebody added stays"
    with lab.db.write() as session:
        forgetting.redact(session, None, f"project:{project}", 1, "A slip.")
    assert card()[0] == r"\[removed\]"


def test_a_card_that_somebody_has_written_themselves_is_left_alone(lab: Lab, run: int) -> None:
    with lab.db.read() as session:
        assert model_card.renewed(session, run, "a/b", "# Mine\n\nBy Grace.\n") == "# Mine\n\nBy Grace.\n"


def test_a_card_that_does_not_say_the_tags_of_its_run_loses_all_that_may_be_such_tags(lab: Lab, run: int) -> None:
    said = "---\ntags:\n- stoa\n- demo\n- old\n- In Latin\n---\n# x\nStep 1 of 4. Each checkpoint is a branch\n\n## y\n"
    with lab.db.read() as session:
        renewed = model_card.renewed(session, run, "a/b", said)
    assert renewed.startswith("---\ntags:\n- stoa\n- demo\n- In Latin\n---\n")
