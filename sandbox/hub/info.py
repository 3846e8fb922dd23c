"""What the Hub tells of a repository: its card, tags, library, task, weights and files at one commit."""

import json
import math
from typing import Any

import yaml

from sandbox.hub.store import Commit, Entry, Repo, Store

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
MAX_HEADER, MAX_JSON = 100 * 2**20, 16 * 2**20

# What a model's class name ends in says what it is for.
TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForConditionalGeneration": "text2text-generation",
}
AUTO_MODELS = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}


def describe(store: Store, repo: Repo, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
    """All that the Hub tells of a repository at a commit; `blobs` gives sizes and ids with the names of its files."""
    card = _card_data(store, commit)
    info: dict[str, Any] = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.refs["private"],
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "downloadsAllTime": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": _card_tags(card),
        "cardData": card,
        "siblings": [_sibling(path, entry, blobs) for path, entry in commit.files.items()],
        "usedStorage": sum({entry.sha256: entry.size for entry in commit.files.values()}.values()),
    }
    return info | {"modelId": repo.id} | _of_model(store, commit, card) if repo.kind == "models" else info


def _of_model(store: Store, commit: Commit, card: dict[str, Any]) -> dict[str, Any]:
    """What the Hub tells of a model beside what it tells of any repository."""
    config = json_file(store, commit, "config.json")
    architectures, kind = _words(config.get("architectures")), _word(config.get("model_type"))
    library = _word(card.get("library_name")) or ("transformers" if kind else None)
    inferred = (task for name in architectures for end, task in TASKS.items() if name.endswith(end))
    task = _word(card.get("pipeline_tag")) or next(inferred, None)
    weights = _parameters(store, commit)
    words = [library, "safetensors" if weights else None, kind, task]
    found: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys([*filter(None, words), *_card_tags(card)])),
        "model-index": card.get("model-index"),
        "widgetData": card.get("widget") or [],
        "spaces": [],
    }
    if config:
        found["config"] = {"architectures": architectures} | ({"model_type": kind} if kind else {})
    if library == "transformers":
        about = {"auto_model": AUTO_MODELS.get(str(task), "AutoModel"), "processor": "AutoTokenizer"}
        found["transformersInfo"] = about | ({"pipeline_tag": task} if task else {})
    if weights:
        found["safetensors"] = {"parameters": weights, "total": sum(weights.values())}
    return found


def _parameters(store: Store, commit: Commit) -> dict[str, int]:
    """How many parameters of each dtype the model's safetensors hold; empty where there are none that can be read."""
    counts: dict[str, int] = {}
    for header in headers(store, commit).values():
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return counts


def headers(store: Store, commit: Commit, index: str = INDEX) -> dict[str, dict[str, Any]]:
    """The headers of a model's safetensors files, by their names: those of the index, or the only one."""
    weight_map = json_file(store, commit, index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else [WEIGHTS]
    found = {name: _header(store, commit.files[name]) for name in names if name in commit.files}
    return {name: header for name, header in found.items() if header}


def _header(store: Store, entry: Entry) -> dict[str, Any]:
    """The header of a safetensors file; empty where the file is none."""
    with store.blob(entry.sha256).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(size) if size <= min(MAX_HEADER, entry.size) else b""
    try:
        header = json.loads(text)
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        known = all(isinstance(t["dtype"], str) and all(isinstance(n, int) for n in t["shape"]) for t in tensors)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return {}
    return header if known else {}


def json_file(store: Store, commit: Commit, path: str) -> dict[str, Any]:
    """A JSON file of a commit; empty where there is none that can be read."""
    entry = commit.files.get(path)
    if entry is None or entry.size > MAX_JSON:
        return {}
    try:
        data = json.loads(store.blob(entry.sha256).read_bytes())
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _card_data(store: Store, commit: Commit) -> dict[str, Any]:
    """The metadata at the head of README.md; empty where there is none that can be read."""
    readme = commit.files.get("README.md")
    if readme is None or readme.lfs:
        return {}
    try:
        return front_matter(store.blob(readme.sha256).read_text(errors="replace"))
    except ValueError:
        return {}


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two `---` lines; ValueError where it is not a mapping."""
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in lines[1:]:
        return {}
    try:
        data = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)])) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(data, dict):
        raise ValueError("the metadata is not a mapping of names to values")
    return data


def _card_tags(card: dict[str, Any]) -> list[str]:
    """The tags that a card gives: its own, its languages, and its datasets, base models and licence by their kinds."""
    tags = [*_words(card.get("tags")), *_words(card.get("language"))]
    prefixes = {"datasets": "dataset", "base_model": "base_model", "license": "license"}
    prefixes |= {name: name for name in ("task_categories", "task_ids", "size_categories", "multilinguality")}
    tags += [f"{prefix}:{word}" for key, prefix in prefixes.items() for word in _words(card.get(key))]
    return list(dict.fromkeys([*tags, "region:us"]))


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _words(value: Any) -> list[str]:
    return [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]


def _sibling(path: str, entry: Entry, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return {"rfilename": path, "size": entry.size, "blobId": entry.oid} | ({"lfs": lfs} if entry.lfs else {})
