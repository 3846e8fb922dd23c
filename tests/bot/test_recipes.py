"""Every built-in recipe is launched from Discord, on small corpora under the names of the real ones."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from broker import configs
from broker.allocations import corpora, pools, requests
from broker.allocations.allocations import AllocationState
from broker.reviews import reviews
from broker.runs import runs
from broker.runs.runs import RunState
from sandbox.people import Channel
from tests.bot.conftest import Lab
from tests.corpora import gpus_for, stand_ins
from trainer.config import load_recipe, recipe_names
from trainer.contract import CorpusKind
from trainer.data import measure

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOURS = "50"
Shared = tuple[Lab, Channel]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def h100_lab(shared_lab: Shared, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A lab whose project has hours of a pool of H100s, on which all corpora of the recipes lie."""
    lab, channel = shared_lab
    now = datetime.now(UTC)
    lab.call(pools.add_pool, name="h100", gpu_type="H100", gpus=64, memory_gib=80)
    seconds, until = requests.parse_hours("1000"), now + timedelta(days=60)
    lab.call(pools.add_grant, pool="h100", sponsor="The Library", seconds=seconds, until=until)
    asked = {"pool": "h100", "hours": HOURS, "until": (now + timedelta(days=30)).date().isoformat()}
    ada, rosa = lab.actor("Ada"), lab.actor("Rosa")
    number = lab.call(requests.request, ada, "h100", project_id=1, justification="All recipes.", **asked)
    state = lab.call(reviews.approve, rosa, number, hours=HOURS, reason="Fine.")
    assert state == AllocationState.APPROVED
    for name, path in stand_ins(tmp_path_factory.mktemp("corpora")).items():
        register(lab, name, path)
    return lab, channel


def register(lab: Lab, name: str, path: Path) -> None:
    """What `stoa corpus add` does for a file of text."""
    measured, _ = measure.measure(CorpusKind.TEXT, path, "text", None, lambda _: None, lambda _: None)
    place = {"path": str(path), "licence": "", "measured": measured, "kind": CorpusKind.TEXT}
    lab.call(corpora.add, pool="h100", name=name, **place)


@pytest.mark.parametrize("name", recipe_names())
async def test_a_recipe_is_launched(h100_lab: Shared, name: str) -> None:
    lab, channel = h100_lab
    ada = lab.person("Ada")
    gpus = gpus_for(name)
    offer = await ada.command("run launch", channel=channel.id, recipe=name, time_limit="10m", gpus=gpus)
    assert offer.message is not None
    assert f"Launch {name} on {gpus} GPU" in offer.text
    assert "of `h100`?" in offer.text
    staged = ["**Stage 1** 460,000 steps", "**Stage 2** 18,000 steps"] if name == "comma-7b" else []
    assert re.findall(r"\*\*Stage \d\*\* [0-9,]+ steps", offer.text) == staged
    launched = await ada.press(offer.message, "Launch")
    assert "is queued" in launched.text, launched.text
    run = lab.call(runs.load, int(launched.text.split("Run ")[1].split()[0]))
    assert (run.recipe, run.state, run.gpus, run.overrides) == (name, RunState.QUEUED, gpus, {})
    recipe = load_recipe(name)
    assert run.total_steps == recipe.training.steps
    assert configs.read(run.config).stages == recipe.stages
    assert lab.call(runs.view, run.id).stages == ((460_000, 478_000) if name == "comma-7b" else ())
