"""What the tests fork Stoa's parts from has imported, and made ready, once for all of them."""

import gc

from sqlalchemy.orm import configure_mappers

import bot.client
import broker.runners.carrier
import broker.runners.pod
import broker.runners.supervisor
import cli.main
import cli.services
import sandbox.__main__
import sandbox.hub.server
import tests.forked
import trainer.__main__

PARTS = (
    bot.client,
    broker.runners.carrier,
    broker.runners.pod,
    broker.runners.supervisor,
    cli.main,
    cli.services,
    sandbox.__main__,
    sandbox.hub.server,
    tests.forked,
    trainer.__main__,
)

configure_mappers()
# A collection of garbage in a forked process would look at all of it, and so copy the memory that they share.
gc.freeze()
