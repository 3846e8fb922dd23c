"""What the tests fork trainers from has imported once for all of them: a rank is a process of its own, without the
seconds of CPU that the imports of PyTorch and DeepSpeed would take."""

import gc

import deepspeed.runtime.pipe.engine
import torch._dynamo

import trainer.__main__
import trainer.distributed.rank
import trainer.engine.distributed
import trainer.engine.local
import trainer.train

IMPORTED = (
    deepspeed.runtime.pipe.engine,
    torch._dynamo,
    trainer.__main__,
    trainer.distributed.rank,
    trainer.engine.distributed,
    trainer.engine.local,
    trainer.train,
)

# A collection of garbage in a forked process would look at all of it, and so copy the memory that they share.
gc.freeze()
