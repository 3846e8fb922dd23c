"""Entries about runs, sweeps and checkpoints: `run.…`, `sweep.…`, `checkpoint.…` and `checkpoints.…`.

A run trains; or it prepares a recipe's data, and its entries have `prepares`; or it generates a text from a checkpoint,
and its entries have `sample`; or it evaluates or studies checkpoints, or runs a program on one, and its entries have
`evaluation`, `study` or `program`; or it evaluates a model of the Hub, and its entries have `baseline`. The entries of
a sweep's runs have `sweep`.
"""

from collections.abc import Mapping

from bot import text
from bot.delivery.entry_text.phrases import LONGEST_QUOTE, by, line, unit, why
from bot.delivery.entry_text.registry import Payload, entry
from broker.runs.entries import MEASURES, NOT_TRAINED

GO_ON = MEASURES - {"program"} | {"baseline"}
"""The keys of entries about a run that goes on with what is left once it was interrupted."""
MOST_LISTED = 6
"""Tasks and steps that are named one by one."""
MOST_RESULTS = 1200
"""The longest text of results, in characters."""


@entry("run.queued")
def queued(p: Payload) -> str:
    if "sample" in p and "prompt" in p:
        return f"✍️ {by(p)} asks for {_sample(p)}, which continues:\n{text.block(p['prompt'], LONGEST_QUOTE)}"
    if "sample" in p:
        return f"✍️ The last checkpoint of run {p['run']} will write a short text, {_sample(p)}."
    if p.keys() & MEASURES:
        it = _measuring(p)
        launched = f"{it[0].upper()}{it[1:]} is queued" if p.get("by") is None else f"{by(p)} launches {it}"
        within = text.duration(p["time_limit"])
        return f"📐 {launched}: {_tasks(p)} on {_steps(p)}, in at most {within}. It waits for its turn."
    if "baseline" in p:
        return (
            f"📐 {by(p)} launches run {p['run']}, which evaluates {_model(p)} on {_tasks(p)}, in at most "
            f"{text.duration(p['time_limit'])}. It waits for its turn."
        )
    if "prepares" in p:
        return (
            f"🗂️ {by(p)} launches run {p['run']}, which prepares the data of {_prepared(p)} for every later run of that "
            f"recipe, in at most {text.duration(p['time_limit'])}. It waits for its turn."
        )
    if "sweep" in p:
        return f"⏳ {_run(p)} is queued, with {line(_assigned(p['overrides']))}."
    return f"🚀 {by(p)} launches run {p['run']}{_called(p)}: {_order(p)}"


@entry("run.forked")
def forked(p: Payload) -> str:
    return f"🔱 {by(p)} forks run {p['run']}{_called(p)} from step {p['from_step']:,} of run {p['parent']}: {_order(p)}"


@entry("run.starting")
def starting(p: Payload) -> str:
    return f"🛫 {_run(p)} is starting; {unit(p).hours(p['reserved'])} reserved."


@entry("run.started")
def started(p: Payload) -> str:
    again = f" again (attempt {p['attempt']})" if p["attempt"] > 1 else ""
    if "from_step" in p:
        step = p["from_step"]
        again += ", from its first step: there was no checkpoint yet" if step is None else f", from step {step:,}"
    return f"▶️ {_run(p)} is running{again}."


@entry("run.requeued")
def requeued(p: Payload) -> str:
    goes_on = "resume from its last checkpoint" if trains(p) else "start over"
    goes_on = "go on with what is left" if p.keys() & GO_ON else goes_on
    return f"🔁 {_run(p)} was interrupted and will {goes_on}.{why(p)}"


@entry("run.stopping")
def stopping(p: Payload) -> str:
    if p.get("stops_as") == "queued":
        return f"🔀 {_run(p)} makes way for {_other(p)}: it writes a checkpoint, and waits for its turn again."
    what = "pause" if p.get("stops_as") == "paused" else "stop"
    first = "" if not trains(p) else "; it writes a checkpoint first"
    return f"✋ {by(p)} asks {_run(p).lower()} to {what}{first}.{why(p)}"


@entry("run.preempted")
def preempted(p: Payload) -> str:
    when = f"when {unit(p).plural} are free"
    return f"🔀 {_run(p)} was preempted for {_other(p)}; it continues from step {p['step']:,} {when}."


@entry("run.paused")
def paused(p: Payload) -> str:
    return f"⏸️ {_run(p)} is paused{_at_step(p)}, after {_spent(p)}.{why(p)}"


@entry("run.resumed")
def resumed(p: Payload) -> str:
    start = "from the beginning" if p.keys() & {"prepares", "program"} else f"from step {p['step']:,}"
    start = "with what is left" if p.keys() & GO_ON else start
    return (
        f"⏯️ {by(p)} resumes {_run(p).lower()} {start}, on {unit(p).count(p['gpus'])} for at most "
        f"{text.duration(p['time_limit'])}. It waits for its turn.{why(p)}"
    )


@entry("run.named")
def named(p: Payload) -> str:
    now = text.named_now(p["name"], p["tags"].split())
    return f"🏷️ {by(p)} changes the name or tags of {_run(p).lower()}, which {now}."


@entry("run.spiked")
def spiked(p: Payload) -> str:
    return f"📈 {_run(p)}: the loss jumped to **{p['loss']}** at step {p['step']:,}, from about {p['usual']}."


@entry("run.extended")
def extended(p: Payload) -> str:
    return f"⏳ {by(p)} extends the time limit of {_run(p).lower()} by {text.duration(p['seconds'])}."


@entry("run.refunded")
def refunded(p: Payload) -> str:
    ended = (
        f"attempt {p['attempt']} made way" if p.get("preempted") else f"a machine fault ended attempt {p['attempt']}"
    )
    since = f" since its last {'results' if p.keys() & GO_ON else 'complete checkpoint'}"
    since = "" if "program" in p else since
    return f"↩️ {_run(p)} is refunded {unit(p).hours(p['seconds'])}, all that it spent{since}: {ended}.{why(p)}"


@entry("run.finished")
def finished(p: Payload) -> str:
    if "sample" in p and "prompt" in p:
        asked = f"✍️ {_titled(p)}\nThe prompt:\n{text.block(p['prompt'], LONGEST_QUOTE)}"
        return f"{asked}\nThe model continues:\n{text.block(p['text'], LONGEST_QUOTE)}"
    if "sample" in p:
        return f"✍️ {_titled(p)}\n{text.block(p['text'], LONGEST_QUOTE)}"
    if p.keys() & MEASURES:
        said = f"\n{text.block(p['text'], LONGEST_QUOTE)}" if "program" in p and p.get("text") else ""
        return f"📐 **{_run(p)}** · {_tasks(p)}, after {_spent(p)}{_results(p)}{said}"
    if "baseline" in p:
        return f"📐 **{_run(p)}** · {_model(p)} on {_tasks(p)}, after {_spent(p)}{_results(p)}"
    if "prepares" in p:
        return f"🏁 The data of {_prepared(p)} is prepared (run {p['run']}), after {_spent(p)}."
    return f"🏁 {_run(p)} is finished{_at_step(p)}, after {_spent(p)}."


@entry("run.failed")
def failed(p: Payload) -> str:
    comes = "\n**Next** Read its log, or launch it again as it was, with the buttons below." if trains(p) else ""
    return f"❌ {_run(p)} has failed, after {_spent(p)}.{why(p)}{comes}"


@entry("run.timed_out")
def timed_out(p: Payload) -> str:
    comes = "\n**Next** `/run fork` goes on from its last checkpoint, with another time limit." if trains(p) else ""
    return f"⏱️ {_run(p)} reached its time limit{_at_step(p)}, after {_spent(p)}.{comes}"


@entry("run.cancelled")
def cancelled(p: Payload) -> str:
    return f"✋ {_run(p)} is cancelled, after {_spent(p)}.{why(p)}"


@entry("sweep.launched")
def sweep_launched(p: Payload) -> str:
    shared = f", all with {line(_assigned(p['overrides']))}" if p["overrides"] else ""
    return (
        f"🚀 {by(p)} launches sweep {p['sweep']}: {text.count(len(p['runs']), 'run')} of recipe "
        f"{text.code(p['recipe'], 60)} over {text.code(p['points'], 300)}{shared}, each on "
        f"{unit(p).count(p['gpus'])} for at most {text.duration(p['time_limit'])}; "
        f"{unit(p).hours(p['cost'])} at most in all."
    )


@entry("sweep.stopping")
def sweep_stopping(p: Payload) -> str:
    what = "pause" if p["stops_as"] == "paused" else "stop"
    return f"✋ {by(p)} asks sweep {p['sweep']} to {what}: {text.count(p['count'], 'run')}."


@entry("sweep.resumed")
def sweep_resumed(p: Payload) -> str:
    return f"⏯️ {by(p)} resumes sweep {p['sweep']}: {text.count(p['count'], 'run')}."


@entry("sweep.ended")
def sweep_ended(p: Payload) -> str:
    ends = ", ".join(f"{count} {state}" for state, count in p["ends"].items())
    best = ""
    if "best" in p:
        best = f" The best is run {p['best']}, {line(p['point'])}, with a {p['measure']} of **{p['value']}**."
    return f"🏁 Sweep {p['sweep']} is over, after {_spent(p)}: {ends}.{best}"


@entry("run.preparing")  # kept for the records that have entries of this older kind
def preparing(p: Payload) -> str:
    return f"🗂️ Run {p['run']} prepares the data of {text.code(p['recipe'], 60)} for every later run of that recipe."


@entry("checkpoint.published")
def checkpoint(p: Payload) -> str:
    which = "The first checkpoint" if p.get("first") else "The last checkpoint" if p.get("final") else "A checkpoint"
    held = ", held back until reviewers release it" if p.get("held") else ""
    return f"📦 {which} of run {p['run']} is on the Hub{held}: [step {p['step']}]({p['url']})"


def checkpoint_line(p: Payload, *, names_run: bool = False) -> str:
    """A published checkpoint as a line of the index in its thread; older entries know no tokens and no loss."""
    parts = [f"[step {p['step']:,}]({p['url']})"]
    if names_run:
        parts.insert(0, f"run {p['run']}")
    if "tokens" in p:
        parts.append(f"{p['tokens']:,} tokens")
    if "held_out" in p:
        at = "" if p["held_out_step"] == p["step"] else f" at step {p['held_out_step']:,}"
        parts.append(f"held-out {p['held_out']}{at}")
    if p.get("final"):
        parts.append("the last one")
    if p.get("held"):
        parts.append("held back until reviewers release it")
    return " · ".join(parts)


@entry("checkpoint.delayed")
def checkpoint_delayed(p: Payload) -> str:
    return (
        f"⏳ The checkpoint of step {p['step']:,} of run {p['run']} is not on the Hub yet, after "
        f"{text.count(p['tries'], 'try', 'tries')}. It stays on disk and is tried again; the run goes on."
    )


@entry("checkpoint.lost")
def checkpoint_lost(p: Payload) -> str:
    return (
        f"💔 The checkpoint of step {p['step']:,} of run {p['run']} cannot be read, after "
        f"{text.count(p['tries'], 'try', 'tries')}, and is not published. Later checkpoints are."
    )


@entry("checkpoints.released")
def checkpoints_released(p: Payload) -> str:
    return f"🔓 The checkpoints of run {p['run']} are open to everyone: [{p['count']} on the Hub]({p['url']})"


@entry("checkpoints.withheld")
def checkpoints_withheld(p: Payload) -> str:
    return f"🔒 The checkpoints of run {p['run']} are held back until reviewers release them."


def trains(p: Payload) -> bool:
    """Whether an entry is about a run that trains, and not about one of another kind."""
    return not p.keys() & NOT_TRAINED


def _run(p: Payload) -> str:
    """What the entry is about, at the beginning of a sentence."""
    about = f"Run {p['run']} of sweep {p['sweep']}" if "sweep" in p else f"Run {p['run']}"
    if p.keys() & MEASURES:
        return _measuring(p).capitalize()
    return _sample(p).capitalize() if "sample" in p else about


def _sample(p: Payload) -> str:
    """A sample by its number under its run; older entries have none."""
    nth = f"sample {p['nth']}" if "nth" in p else "a sample"
    return f"{nth} of run {p['run']}" + (f" of sweep {p['sweep']}" if "sweep" in p else "")


def _measuring(p: Payload) -> str:
    """An evaluation, a study or a program by its number under its run."""
    [kind] = p.keys() & MEASURES
    sweep = f" of sweep {p['sweep']}" if "sweep" in p else ""
    return f"{kind} {p['nth']} of run {p['run']}{sweep} (run {p[kind]})"


def _tasks(p: Payload) -> str:
    """The tasks of an evaluation, the analyses of a study, or the name of a program with its parameters; of many, the
    first ones and a count."""
    tasks = p["tasks"] if "tasks" in p else p["analyses"]
    named = ", ".join(text.code(task, 60) for task in tasks[:MOST_LISTED])
    if given := ", ".join(f"{name}={value}" for name, value in p.get("parameters", {}).items()):
        named += f" with {line(given)}"
    if more := len(tasks[MOST_LISTED:]):
        named += f" and {more} more"
    return f"{named}, with the pairs {text.code(p['pairs'], 60)}" if p.get("pairs") else named


def _steps(p: Payload) -> str:
    """The steps that an evaluation, a study or a program is about; of many, the first and the last."""
    steps = [f"{step:,}" for step in p["steps"]]
    if len(steps) > MOST_LISTED:
        return f"{len(steps)} checkpoints, from step {steps[0]} to {steps[-1]}"
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps)}"


def _results(p: Payload) -> str:
    """What was measured, a line a task and metric with its values by step; a model of the Hub may have none."""
    found: dict[tuple[str, str], list[str]] = {}
    for task, metric, step, value, stderr in p["results"]:
        error = "" if stderr is None else f" ±{stderr:.4f}"
        at = f" at step {step:,}" if step or "baseline" not in p else ""
        found.setdefault((task, metric), []).append(f"{value:.4f}{error}{at}")
    lines = [f"{task} {metric}: {', '.join(values)}" for (task, metric), values in found.items()]
    rest = f"\nand {text.count(p['more_results'], 'more result')}" if p["more_results"] else ""
    return f"\n{text.block(chr(10).join(lines), MOST_RESULTS)}{rest}" if lines else ""


def _titled(p: Payload) -> str:
    """A finished sample, with how it was drawn."""
    step = f"step {p['from_step']:,}" if "from_step" in p else "its last checkpoint"
    drawn = f" · temperature {p['temperature']:g} · seed {p['seed']}" if "temperature" in p else ""
    return f"**{_sample(p).capitalize()}** · {step}{drawn}"


def _other(p: Payload) -> str:
    """The run that another one makes way for."""
    return f"run {p['for_run']} of project P{p['for_project']}"


def _called(p: Payload) -> str:
    """The name and the tags of a run, as far as the entry has them."""
    name = f" {text.run_name(p['name'])}" if p.get("name") else ""
    return f"{name}, tagged {text.tags(p['tags'].split())}" if p.get("tags") else name


def _order(p: Payload) -> str:
    """What was ordered: the recipe with its overrides, the GPUs or cores and the time limit."""
    overrides = _assigned(p["overrides"])
    return (
        f"recipe {text.code(p['recipe'], 60)}{f' with {line(overrides)}' if overrides else ''} on "
        f"{unit(p).count(p['gpus'])}, at most {text.duration(p['time_limit'])}. It waits for its turn.{_evaluated(p)}"
    )


def _evaluated(p: Payload) -> str:
    """Which of its checkpoints are evaluated as they come, and on what."""
    if "evaluate" not in p:
        return ""
    return f" {text.each_checkpoint(p['evaluate']['every'])} is evaluated on {_tasks(p['evaluate'])}."


def _assigned(overrides: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in overrides.items())


def _model(p: Payload) -> str:
    """A model of the Hub with its revisions."""
    return text.code(p["baseline"], 120)


def _prepared(p: Payload) -> str:
    return text.code(p["prepares"], 60)


def _at_step(p: Payload) -> str:
    """The step that the run has reached; nothing for a run that prepares data, which has no steps."""
    return f" at step {p['step']:,}" if trains(p) or "sample" in p else ""


def _spent(p: Payload) -> str:
    return unit(p).hours(p["spent"])
