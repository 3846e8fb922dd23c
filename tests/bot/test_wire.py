"""What passes between bot and sandbox is judged when each test of this folder ends; without a judge, this says so."""

from tests.absent import absent
from tests.bot.conftest import Lab, wire_problems
from tests.discord_openapi import DESCRIPTION_ENV, DiscordJudge


async def test_the_wire_is_judged(lab: Lab, judge: DiscordJudge | None) -> None:
    if judge is None:
        absent("Discord's API description", f"not at {DESCRIPTION_ENV} nor in ../shared/discord")
    await lab.start_bot()
    await lab.guild.wait_for("public-record", lambda m: "record 2" in m.text)
    assert wire_problems(lab, judge) == []
    for name, right, wrong in [
        ("exchanges", '"content": "', '"contents": "'),
        ("exchanges", '"status": 200, "response": {', '"status": 400, "response": {"message": "", "code": 50006, '),
        ("exchanges", '"allowed_mentions": {"parse": []', '"allowed_mentions": {"parse": ["users"]'),
        ("exchanges", '"allowed_mentions": {"parse": []', '"allowed_mentions": {"parse": [], "users": ["7"]'),
        ("dispatches", '"timestamp": "', '"timestamps": "'),
    ]:
        journal = lab.root / "sandbox" / f"{name}.jsonl"
        good = journal.read_text()
        journal.write_text(good.replace(right, wrong))
        found = wire_problems(lab, judge)
        journal.write_text(good)
        assert found, wrong
