"""Opens branches of a Hub repository with transformers and compares their logits with those that the trainer wrote.

`HF_ENDPOINT=… python -m demo.verify REPO BRANCH…` prints a line a branch, and a last one on all; status 1 where any
differs by more than the tolerance.
"""

import sys

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 1e-4


def difference(repo: str, branch: str) -> float:
    """The largest absolute difference between transformers' logits and the trainer's, on the checkpoint's probe."""
    model = AutoModelForCausalLM.from_pretrained(repo, revision=branch, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    AutoTokenizer.from_pretrained(repo, revision=branch)
    probe = load_file(hf_hub_download(repo, "probe.safetensors", revision=branch))
    with torch.no_grad():
        logits = model(probe["ids"]).logits
    return float((logits - probe["logits"]).abs().max())


def main() -> None:
    """Check the branches that the command line names."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    repo, *branches = sys.argv[1:]
    worst = 0.0
    for branch in branches:
        found = difference(repo, branch)
        print(f"{branch}: the logits differ by {found:.1e}", flush=True)
        worst = max(worst, found)
        if found > TOLERANCE:
            sys.exit(f"{branch} of {repo}: the logits differ by {found:.2e}")
    print(f"{len(branches)} checkpoints open; the logits differ by {worst:.1e} at most")


if __name__ == "__main__":
    main()
