"""How often a run reads the corpora of its pool, from the tokens that were counted when they were registered."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from broker.allocations import corpora
from trainer import check as dry_run
from trainer.check import OFTEN as OFTEN
from trainer.check import Reading
from trainer.config import TrainConfig


def of_run(session: Session, pool_id: int, config: TrainConfig, tokens: int, first: int) -> Sequence[Reading]:
    """What a run of `tokens` tokens after step `first` reads on a pool, the corpus that it reads most often first. A
    corpus whose tokens were not counted is left out."""
    wants = corpora.needed(config)
    there = corpora.at_hand(session, pool_id, wants)
    prepared = wants.prepared_in(there)
    if prepared is not None:
        counted = prepared.tokens or 0
        return [Reading(corpus=prepared.name, tokens=counted, epochs=tokens / counted)] if counted else []
    named = {source.name: source.corpus for source in config.data.sources if source.corpus in there}
    known = {name: there[corpus].tokens or 0 for name, corpus in named.items() if corpus is not None}
    return dry_run.readings(config, {name: counted for name, counted in known.items() if counted}, tokens, first)
