"""The nodes of a run: a part of one node of its pool, or whole nodes that the run gets together."""

from broker.allocations.pools import Pool
from projects.errors import InvalidError


def count(pool: Pool, gpus: int) -> int:
    """The number of nodes that a run on so many of the pool's GPUs or cores has."""
    return -(-gpus // pool.node_gpus)


def check(pool: Pool, gpus: int) -> None:
    """Raise InvalidError unless a run can have so many of the pool's GPUs; its sentence says what it can have."""
    each = pool.node_gpus
    if not 1 <= gpus <= pool.gpus:
        has, fits = pool.unit.count(pool.gpus), f"1 to {pool.gpus}"
        if pool.nodes > 1:
            has += f" on {pool.nodes} nodes of {each}"
        if 1 < each < pool.gpus:
            fits = f"1 to {each}, or a multiple of {each} up to {pool.gpus}"
        raise InvalidError(f"The pool “{pool.name}” has {has}; ask for {fits}.")
    if gpus > each and gpus % each:
        fewer = gpus // each * each
        raise InvalidError(
            f"A run on more than one node of “{pool.name}” gets whole nodes of {pool.unit.count(each)}, and "
            f"{pool.unit.count(gpus)} are not whole nodes; ask for {fewer} or {fewer + each}."
        )


def sizes(pool: Pool) -> list[int]:
    """Round numbers of GPUs that a run can have: doubled up to a node, and then by whole nodes, up to the pool."""
    each = pool.node_gpus
    doubled = {2**n for n in range(each.bit_length())}
    return sorted(doubled | {each * 2**n for n in range(pool.nodes.bit_length())} | {each, pool.gpus})
