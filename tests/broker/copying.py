"""A lab with a corpus that one of its pools has and the other lacks, and what its operator and its hosts do with it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from broker import catalogue, configs
from broker import store as stores
from broker.allocations import corpora
from broker.runners import carrier
from broker.runs.launching import Order
from broker.runs.runs import RunState
from projects.settings import Settings
from tests import forked
from tests.broker.lab import ADA, Lab, request_id
from tests.broker.supervised import admitted, attempt, supervised_by
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for
from trainer.contract import CorpusKind
from trainer.data import measure

HAS, LACKS = "has", "lacks"
SHORT = "steps=4, batch=2, micro_batch=2, sequence_length=32"
LEASE = 12.0


def songs(folder: Path) -> Path:
    """A corpus of two files, which is a pattern."""
    for name in ("a", "b/c"):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": f"{name}, verse {number}: the frog sat on the log. " * 9}) for number in range(40))
        path.write_text("\n".join(lines))
    (folder / "b" / "notes.txt").write_text("Not of the corpus.")
    return folder / "**" / "*.jsonl"


def add(lab: Lab, pool: str, path: Path, name: str = "songs", kind: CorpusKind = CorpusKind.TEXT) -> None:
    """Register what lies there, as `stoa corpus add` does."""
    measured, _ = measure.measure(kind, path, "text", None, lambda _: None, lambda _: None)
    with lab.db.write() as session:
        corpora.add(session, pool=pool, name=name, kind=kind, path=str(path), licence="MIT", measured=measured)


def projects(lab: Lab, runner: str = "local", options: Mapping[str, str] | None = None) -> int:
    """A project with hours on a pool that has a corpus and on one of a runner that lacks it."""
    project = lab.project()
    lab.pool(HAS)
    lab.pool(LACKS, runner=runner, options=options)
    for pool in (HAS, LACKS):
        lab.approve(lab.request(project, pool=pool, hours="10"), hours="10")
    return project


def propose(lab: Lab) -> None:
    """A recipe of that corpus."""
    values = yaml.safe_load(configs.built_in()["demo"])
    values["training"] |= {"evaluation_tokens": 128, "log_every": 1}
    values["data"] |= {"tokenizer": {"vocabulary": 320, "train_bytes": 10_000}, "held_out": 0.4}
    values["data"]["sources"] = [{"name": "songs", "corpus": "songs", "weight": 1, "licence": "MIT"}]
    with lab.db.write() as session:
        catalogue.propose_recipe(session, ADA, request_id(), name="ours", body=yaml.safe_dump(values))
        catalogue.accept(session, None, "ours", reason="Fine.")


def order(lab: Lab, project: int, pool: str, overrides: str = SHORT) -> Order:
    with lab.db.read() as session:
        allocation = session.connection().exec_driver_sql(
            "SELECT a.id FROM allocations a JOIN pools p ON p.id = a.pool_id WHERE p.name = '" + pool + "'"
        )
        return Order(project, "ours", "10m", overrides=overrides, allocation_id=int(allocation.scalar_one()))


def launch(lab: Lab, project: int, pool: str) -> int:
    asked = order(lab, project, pool)
    return lab.launch(project, recipe="ours", overrides=SHORT, allocation_id=asked.allocation_id)


def told(lab: Lab, conf: Settings) -> dict[str, str]:
    """The environment of a command line."""
    places = stores.environment(conf)
    return (
        bare()
        | places
        | {
            "STOA_ENV_FILE": "",
            "STOA_HOME": str(conf.home),
            "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        }
    )


def push(lab: Lab, conf: Settings, *options: str, pool: str = HAS) -> subprocess.CompletedProcess[str]:
    """What `stoa corpus push` answers."""
    return forked.run_module("cli.main", told(lab, conf), "corpus", "push", "songs", "--pool", pool, *options)


def pushed(lab: Lab, conf: Settings, data: Path) -> int:
    """A project as of `projects`, whose pools have or lack a corpus in `data` that is in the store."""
    project = projects(lab)
    add(lab, HAS, songs(data))
    propose(lab)
    assert push(lab, conf).returncode == 0
    return project


@contextmanager
def supervised(
    lab: Lab,
    conf: Settings,
    run: int,
    python: Path = Path(sys.executable),
    more: Mapping[str, str] | None = None,
    *,
    forks: bool = False,
) -> Iterator[tuple[Forked, int, Path]]:
    """A supervisor of the run's next attempt on the host of these settings."""
    token, folder = admitted(lab, conf.home, run, LEASE)
    places = stores.environment(conf) | dict(more or {})
    with supervised_by(lab, python, conf.home, LEASE, places, run, token, forks=forks) as supervisor:
        yield supervisor, token, folder


def trained(lab: Lab, conf: Settings, run: int) -> Path:
    """The folder of an attempt that has come to its end."""
    with supervised(lab, conf, run, forks=True) as (supervisor, token, folder):
        assert supervisor.wait(PATIENCE) == 0
    log = folder / "trainer.log"
    said = log.read_text() if log.exists() else attempt(lab, run, token).reason
    assert lab.run(run).state == RunState.FINISHED, said
    wait_for(lambda: (folder / carrier.DONE_FILE).exists(), "the carrier's end")
    return folder


def losses(folder: Path) -> list[tuple[int, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in found]
