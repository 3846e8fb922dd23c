"""The bot's benchmark does not flatter: what was too late to be seen does not leave the quick ones alone."""

from bench.bot import Seen, delays


def test_a_delay_counts_where_it_had_time_to_be_late() -> None:
    """Every other step is shown 3 seconds after its commit, the rest after 100; it ends at 240, the bound is 120."""
    seen = Seen(began=0.0, ended=240.0)
    shown: dict[int, list[tuple[float, int]]] = {1: [], 2: []}
    for at in range(0, 240, 10):
        for run_id, delay in ((1, 3.0), (2, 100.0)):
            seen.written[run_id].append((float(at), at))
            if at + delay <= seen.ended:
                shown[run_id].append((at + delay, at))
    assert delays(seen, shown, 120.0) == [3.0] * 12 + [100.0] * 12
    assert max(delays(seen, {1: shown[1], 2: []}, 120.0)) == 240.0, "what was never shown has waited all the time"
    assert delays(seen, shown, 240.0) == []
