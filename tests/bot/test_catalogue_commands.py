"""`/catalogue`: members propose recipes and datasets, admins decide in public, and data are prepared by a run."""

from typing import Any

import pytest

from bot import text
from broker.allocations import corpora, pools
from broker.allocations.units import Unit
from broker.runners.processes import Process
from broker.runs import attempts, leases, settlement
from broker.runs.progress import Ending, Progress
from broker.runs.series import Measured
from sandbox.people import Channel
from tests.bot.conftest import Lab
from trainer import contract
from trainer.config import RECIPES, recipe_names
from trainer.contract import CorpusKind

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEMO = (RECIPES / "demo.yml").read_text()
FOLDER = contract.Measured(files=2, bytes=1_300_000, tokens=40)


async def test_a_recipe_goes_from_a_file_to_a_run(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace, omar = lab.person("Ada"), lab.person("Grace"), lab.person("Omar")
    assert "(adopted)" in (await omar.command("stoa setup", admins="admin")).text

    bad = await grace.command("catalogue propose", what="recipe", file={"filename": "Ours.yml", "content": "x: ["})
    assert "A name in the catalogue" in bad.text
    bad = await grace.command("catalogue propose", what="recipe", file={"filename": "ours.yml", "content": "x: ["})
    assert bad.text.startswith("The recipe is not valid YAML")
    long = await grace.command("catalogue propose", what="recipe", file={"filename": "a.yml", "content": "é" * 17_000})
    assert long.text == "The file has 34,000 bytes; a recipe has at most 8,000."
    done = await grace.command("catalogue propose", what="recipe", file={"filename": "ours.yml", "content": DEMO})
    assert (done.text, done.ephemeral) == ("`ours` is proposed; an admin decides.", True)
    await lab.guild.wait_for("public-record", lambda m: "`ours`" in m.text and "Grace" in m.text)

    assert await omar.complete("catalogue accept", "name", "ou") == [("ours", "ours")]
    refused = await grace.command("catalogue accept", name="ours")
    assert refused.text.startswith("Only the admins can decide on the catalogue")
    missing = await omar.command("catalogue accept", name="nothing")
    assert missing.text == "The catalogue has no entry “nothing”."
    form = await omar.command("catalogue accept", name="ours")
    assert (form.title, [field.max_length for field in form.fields]) == ("Accept ours", [1000])
    accepted = await omar.submit(form, {"Reason": "Well made."})
    assert accepted.text.startswith("`ours` is accepted: everyone can use it.\n**Next** ")
    listed = (await ada.command("catalogue list")).text
    about = "-# 1.32M parameters, 410k tokens · cost not measured yet · python-docs, python-stdlib: PSF-2.0\n"
    assert listed.startswith(
        f"✅ `ours` recipe, accepted · proposed by Grace\n{about}-# Well made.\n📦 `demo` recipe, built in\n{about}"
    )
    assert listed.endswith("\n-# Page 1 of 1")
    assert "Nothing is in this state." in (await ada.command("catalogue list", state="retired")).text

    given: dict[str, Any] = {"recipe": "ours", "time_limit": "5m"}
    assert await grace.complete("catalogue prepare", "recipe", "", channel=channel.id) == [("ours", "ours")]
    built_in = await grace.command("catalogue prepare", channel=channel.id, recipe="demo", time_limit="5m")
    assert built_in.text == "“demo” is built in, and its data are on every host: there is nothing to prepare."
    prepared = await grace.command("catalogue prepare", channel=channel.id, **given)
    assert prepared.text.startswith(
        f"Run 1 will prepare the data of `ours`. It will cost {Unit.CORE.hours(300)} at most"
    )
    cancelled = await grace.agree(await grace.command("run cancel", run=1))
    assert cancelled.text == "Run 1 has been asked to stop; /catalogue prepare launches it again."
    await grace.command("catalogue prepare", channel=channel.id, **given)
    card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 2") and bool(m.thread_id))
    assert "### ⏳ Run 2 waits for its turn\nprepares the data of **ours** · queued by Grace on 1 core" in card.text
    await lab.guild.wait_for(
        card.thread_id or "", lambda m: "**Grace** launches run 2, which prepares the data of `ours`" in m.text
    )
    token = lab.call(attempts.admit, 2, (0,))
    lab.call(leases.claim, 2, token, host="here", lease_seconds=600)
    lab.call(leases.started, 2, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    lab.call(settlement.settle, 2, token, 36.0, Progress(0, 0), Ending(0), 3)
    told = "🏁 The data of `ours` is prepared (run 2), after 0.01 core-hours."
    await lab.guild.wait_for(channel.id, lambda m: m.text.startswith(told))
    over = await lab.guild.wait_for(channel.id, lambda m: m.id == card.id and "has finished" in m.text)
    assert "step" not in over.text
    assert await grace.complete("catalogue prepare", "recipe", "", channel=channel.id) == []
    launched = await lab.launch(channel, **given)
    assert "Run 3 is queued" in launched.text
    retired = await omar.submit(await omar.command("catalogue retire", name="ours"), {"Reason": "A better one came."})
    assert "is retired" in retired.text
    assert "There is no recipe" in (await ada.command("run launch", channel=channel.id, **given)).text


async def test_a_recipe_and_a_dataset_by_form(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    form = await ada.command("catalogue propose", what="dataset")
    fields = {"Name": "books", "Dataset": f"common/books@{COMMIT}", "Licence": "cc-by-4.0"}
    assert (await ada.submit(form, fields)).text == "`books` is proposed; an admin decides."
    form = await ada.command("catalogue propose", what="dataset")
    wrong = await ada.submit(form, {"Name": "words", "Dataset": "common/words", "Commit": "main", "Licence": "MIT"})
    assert wrong.text == "A dataset is taken at a commit: give its 40 hexadecimal digits, not a branch or a tag."
    form = await ada.command("catalogue propose", what="recipe")
    assert (
        await ada.submit(form, {"Name": "theirs", "Recipe": DEMO})
    ).text == "`theirs` is proposed; an admin decides."
    with_file = await ada.command("catalogue propose", what="dataset", file={"filename": "a.yml", "content": ""})
    assert with_file.text.startswith("A file is a recipe")
    declined = await omar.submit(await omar.command("catalogue decline", name="theirs"), {"Reason": "It is the demo."})
    assert declined.text == "`theirs` is declined."
    shown = (await ada.command("catalogue list", state="proposed")).text
    assert shown.startswith(
        f"🕓 `books` dataset, proposed · proposed by Ada\n-# `common/books` at {COMMIT[:8]} · CC-BY-4.0"
    )


async def test_members_see_what_lies_on_pools_and_launch_from_it(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    grace = lab.person("Grace")
    listed = (await grace.command("catalogue corpora")).text
    assert listed == "There are none yet. An operator registers corpora with `stoa corpus add`."
    given: dict[str, Any] = {"recipe": "pythia-14m-deduped", "time_limit": "5m"}
    lacking = await grace.command("run launch", channel=channel.id, **given)
    assert lacking.text.startswith("No pool has the data of “pythia-14m-deduped”")
    measured = contract.Measured(files=1, bytes=1_300_000, documents=12, tokens=40)
    place = {"path": "/data/secret.jsonl", "licence": "", "measured": measured, "kind": CorpusKind.TEXT}
    lab.call(corpora.add, pool="local", name="pile-deduplicated", **place)
    post = await lab.guild.wait_for("public-record", lambda m: "`pile-deduplicated`" in m.text)
    assert post.text.startswith(
        "📚 New on `local`: `pile-deduplicated` (text, 12 documents, 40 tokens, 1.3 MB, LicenseRef-Pile-Mixed)."
    )
    listed = (await grace.command("catalogue corpora", pool="local")).text
    assert listed == (
        "📚 `pile-deduplicated` on `local` · text\n-# 12 documents, 40 tokens, 1.3 MB · LicenseRef-Pile-Mixed"
    )
    assert "There is no pool" in (await grace.command("catalogue corpora", pool="none")).text
    assert ("pythia-14m-deduped", "pythia-14m-deduped") in await grace.complete(
        "run launch", "recipe", "14m", channel=channel.id
    )


async def test_tokenizers_and_prepared_data_are_listed_with_their_licences(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    lab.call(pools.add_pool, name="shelf", gpu_type="H200", gpus=8, runner="slurm")
    tokenizer = contract.Measured(files=1, bytes=2_100_000, vocabulary=50_277)
    of_two = contract.Measured(
        files=2, bytes=1_300_000, tokens=40, sources={"songs": "MIT", "poems": "CC0-1.0", "odes": "MIT"}
    )
    few = ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "MIT")
    of_many = of_two.model_copy(update={"sources": {f"source-{licence}": licence for licence in few}})
    for name, kind, licence, measured in (
        ("neox", CorpusKind.TOKENIZER, "Apache-2.0", tokenizer),
        ("verse", CorpusKind.PREPARED, "", of_two),
        ("works", CorpusKind.PREPARED, "", of_many),
    ):
        place = {"kind": kind, "path": f"/data/{name}", "licence": licence, "measured": measured}
        lab.call(corpora.add, pool="shelf", name=name, **place)
    assert (await lab.person("Grace").command("catalogue corpora", pool="shelf")).text.splitlines() == [
        "📚 `neox` on `shelf` · tokenizer",
        "-# 2.1 MB · Apache-2.0",
        "📚 `verse` on `shelf` · prepared",
        "-# 40 tokens, 1.3 MB · CC0-1.0, MIT",
        "📚 `works` on `shelf` · prepared",
        "-# 40 tokens, 1.3 MB · 0BSD, Apache-2.0, BSD-2-Clause, BSD-3-Clause and 2 more",
    ]
    post = await lab.guild.wait_for("public-record", lambda m: "`verse`" in m.text)
    assert post.text.startswith("📚 New on `shelf`: `verse` (prepared, 40 tokens, 1.3 MB, CC0-1.0, MIT).")


async def test_recipes_are_listed_with_what_one_chooses_them_by(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    answer = await lab.launch(channel, recipe="demo", time_limit="5m")
    run = int(answer.text.split("Run ")[1].split()[0])
    token = lab.call(attempts.admit, run, (1,))
    lab.call(leases.claim, run, token, host="here", lease_seconds=600)
    lab.call(leases.started, run, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    speed = Progress(0, 0, step=1, tokens=2048, points=[Measured("tokens_per_second", 1, 2048, 1024.0)])
    lab.call(leases.renew, run, token, 1.0, speed, lease_seconds=600)
    lab.call(pools.add_pool, name="depot", gpu_type="H200", gpus=8, runner="slurm")
    for name in ("pile", "pile-deduplicated", "common-pile"):
        place = {"kind": CorpusKind.PREPARED, "path": f"/data/{name}", "licence": "", "measured": FOLDER}
        lab.call(corpora.add, pool="depot", name=name, **place)

    first = await ada.command("catalogue list")
    assert first.ephemeral
    pages = [first.text, *[(await ada.command("catalogue list", page=page)).text for page in (2, 3)]]
    assert all(text.length(page) <= text.CARD for page in pages)
    assert "\n-# Page 1 of 2 · `page:2` shows the next" in pages[0]
    assert pages[1].endswith("\n-# Page 2 of 2")
    assert pages[2] == pages[1], "a page beyond the last is the last"
    found = "\n".join(pages[:2]).splitlines()
    built_in = [line.split("`")[1] for line in found if line.startswith("📦")]
    assert sorted(built_in) == recipe_names()
    assert built_in[:3] == ["demo", "pythia-14m", "pythia-14m-deduped"], "the smallest first"
    about = {name: found[found.index(f"📦 `{name}` recipe, built in") + 1] for name in built_in}
    # 409,600 tokens at 1,024 a second.
    assert about["demo"].endswith("about 0.111 core-hours on `local` · python-docs, python-stdlib: PSF-2.0")
    assert about["pythia-160m"] == (
        "-# 162M parameters, 300B tokens · cost not measured yet · pile (22 sources): LicenseRef-Common-Crawl, "
        "LicenseRef-PMC-Open-Access, LicenseRef-No-Licence and 9 more"
    )
