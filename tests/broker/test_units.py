"""What pools count: GPUs, or the cores of CPUs. Hours of the two stand side by side, and make no sum."""

from broker.allocations import units
from broker.allocations.units import Unit
from broker.reports import cluster, endings, entry_units, review_context
from broker.runs.progress import Ending
from projects.projects import Stage
from projects.record import record
from projects.rights import Act
from tests.broker.lab import ADA, Lab


def test_a_pool_counts_cores_where_its_type_says_cpu() -> None:
    counted = {name: Unit.of(name) for name in ("cpu", "CPU core", "AMD EPYC CPUs", "H200", "Radeon")}
    assert [name for name, unit in counted.items() if unit is Unit.CORE] == ["cpu", "CPU core", "AMD EPYC CPUs"]
    assert (Unit.CORE.count(1), Unit.GPU.count(1_000)) == ("1 core", "1,000 GPUs")
    assert (Unit.of_type("cpu", 5_000), Unit.of_type("H200", 5_000)) == ("5,000 cores", "5,000 × H200")
    assert (Unit.CORE.hours(5400), Unit.GPU.hours(3600)) == ("1.5 core-hours", "1 GPU-hour")
    headings = [units.heading(of) for of in ([Unit.CORE], [Unit.GPU], set(Unit))]
    assert headings == ["Core-hours", "GPU-hours", "GPU-hours or core-hours"]


def test_hours_of_gpus_and_of_cores_stand_side_by_side(lab: Lab, project: int, allocation: int) -> None:
    lab.pool("hall", gpu_type="H200", gpus=8, runner="slurm")
    lab.consent(lab.request(project, pool="hall", hours="2"), "2")
    run = lab.launch(project, allocation_id=allocation)
    lab.settle(run, lab.start(run), 300, Ending(0))
    asked = lab.request(project, hours="3")
    with lab.db.read() as session:
        [use] = cluster.usage(session)
        [of_cores] = cluster.usage(session, "laptop")
        ending = endings.of_project(session, ADA, project, Act.STOP, Stage.STOPPED)
        context = review_context.of_request(session, asked)
        entries = entry_units.noted(session, record.since(session, record.project_stream(project), 0, 99))
    assert units.hours(use.granted) == "2 GPU-hours and 1 core-hour"
    assert (units.hours(use.spent), units.hours(of_cores.granted)) == ("0.083 core-hours", "1 core-hour")
    assert units.hours(ending.returned) == "2 GPU-hours and 0.917 core-hours"
    assert units.hours(context.spent) == "0.083 core-hours"
    assert units.hours({}) == "no hours"
    assert units.alike(context.recent, context.units) == "3 hours of GPUs and cores together"
    assert units.alike(context.recent, {Unit.CORE}) == "3 core-hours"
    noted = {(entry.kind, (entry.payload or {}).get("unit")) for entry in entries}
    assert {unit for kind, unit in noted if kind == "allocation.approved"} == {"core", "GPU"}
    assert {unit for kind, unit in noted if kind.startswith("run.")} == {"core"}
    assert {unit for kind, unit in noted if kind.startswith("project.")} == {None}
