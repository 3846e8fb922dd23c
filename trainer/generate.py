"""Text from a checkpoint, sampled by our own model."""

import json
from pathlib import Path

import torch

from trainer import checkpoint, state, tokenizer
from trainer.config import TrainConfig
from trainer.outcome import write_atomically


@torch.no_grad()
def generate(folder: Path, prompt: str, out: Path, max_tokens: int, temperature: float, seed: int) -> str:
    """Continue `prompt` until the end of the document or `max_tokens`, and write `out/sample.json`.

    Temperature 0 takes the likeliest token. Raises ConfigError if `folder` is no checkpoint.
    """
    made = checkpoint.how(folder)
    config = TrainConfig.model_validate(made["config"])
    model = state.build(config)
    state.load_weights(model, folder)
    bpe = tokenizer.load(folder)
    end = tokenizer.end_of_document(bpe)
    generator = torch.Generator().manual_seed(seed)

    prompted = bpe.encode(prompt, add_special_tokens=False).ids
    ids = list(prompted)
    while len(ids) - len(prompted) < max_tokens:
        context_BL = torch.tensor([(ids or [end])[-config.data.sequence_length :]])
        logits_V = model(context_BL)[0, -1, : bpe.get_vocab_size()]
        if temperature == 0:
            token = int(logits_V.argmax())
        else:
            token = int(torch.multinomial(torch.softmax(logits_V / temperature, dim=-1), 1, generator=generator))
        if token == end:
            break
        ids.append(token)
    text: str = bpe.decode(ids[len(prompted) :])
    sample = {"prompt": prompt, "text": text, "tokens": len(ids) - len(prompted), "checkpoint_step": made["step"]}
    write_atomically(out / "sample.json", json.dumps(sample, ensure_ascii=False, indent=2) + "\n")
    return text
