"""Task files of a folder that a user names: what is wrong with one, which lm-evaluation-harness leaves out unsaid."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._yaml_loader import load_yaml  # private: the harness has no public one; used here alone

from trainer.schema import ConfigError, as_unicode

DEFINES = frozenset({"dataset_path", "class", "include", "custom_dataset"})
"""Keys by which an entry of a group's list defines a task of its own; without one, the entry changes another task."""


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless every task file in the folder can be read and at least one names a task or a group. A
    file that names none is one that others include."""
    if not folder.is_dir():
        raise ConfigError(f"--include-path {folder} is no folder; give one that holds task files (.yaml).")
    paths = [path for path in sorted(folder.glob("**/*.yaml")) if not path.is_dir()]
    # All files are read, so that a broken one is refused wherever it stands.
    if not [path for path in paths if _names_a_task(path)]:
        raise ConfigError(
            f"--include-path {folder} holds no task; a task file ends in .yaml and has the keys task and dataset_path."
        )


def missing_task(folder: Path, name: str, known: Collection[str]) -> tuple[str, str] | None:
    """A group and the task that it names and that there is not, should `name` be a group of the folder that comes to
    one; the files have been checked."""
    contents = [load_yaml(path, resolve_func=False) for path in sorted(folder.glob("**/*.yaml")) if not path.is_dir()]
    groups = {content["group"]: content["task"] for content in contents if "group" in content}
    seen, ahead = {name}, [name]
    while ahead:
        group = ahead.pop()
        for task in _members(groups.get(group, ())):
            if task not in known:
                return group, task
            if task not in seen:
                seen.add(task)
                ahead.append(task)
    return None


def _members(listed: Any) -> Iterator[str]:
    """The names of tasks and groups that a group's list refers to; what the list itself defines is not one."""
    for one in listed if isinstance(listed, list | tuple) else ():
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict) and "group" in one:
            yield from _members(one.get("task"))
        elif isinstance(one, dict) and isinstance(one.get("task"), str) and not DEFINES.intersection(one):
            yield one["task"]


def _names_a_task(path: Path) -> bool:
    try:
        content = load_yaml(path, resolve_func=False)
    except Exception as error:  # constructors of YAML raise whatever their texts lead to
        raise _refusal(path, f"cannot be read ({_reason(error)})") from error
    if twice := _given_twice(path):
        raise _refusal(path, f"gives the key {_shown(twice)} twice")
    is_group = "group" in content
    if is_group and not (isinstance(content["group"], str) and content["group"]):
        raise _refusal(path, f"has {_shown(content['group'])} as its group, which must be a name")
    task = content.get("task")
    if is_group and not (isinstance(task, list) and task):
        raise _refusal(path, f"has {_shown(task)} as the task of a group, which must be a list of tasks")
    if not is_group and "task" in content and not (isinstance(task, str) and task):
        raise _refusal(path, f"has {_shown(task)} as its task, which must be a name")
    tags = content.get("tag") or []
    if not all(isinstance(tag, str) for tag in (tags if isinstance(tags, list) else [tags])):
        raise _refusal(path, f"has {_shown(tags)} as its tag, which must be a name or a list of names")
    return not {"task", "group", "class"}.isdisjoint(content)


def _given_twice(path: Path) -> str | None:
    """A key of the task that the file gives twice, of which YAML would take the last."""
    node = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return next((str(key) for key in keys if keys.count(key) > 1), None)


def _reason(error: Exception) -> str:
    match error:
        case yaml.reader.ReaderError():
            return "it is not UTF-8 text"
        case yaml.MarkedYAMLError(problem=str(problem), problem_mark=mark) if mark is not None:
            return f"it is not valid YAML, {problem} in line {mark.line + 1}"
        case FileNotFoundError(filename=str(name)):
            return f"there is no {name}"
        case OSError(strerror=str(problem)):
            return problem
        case RecursionError():
            return "it is nested too deeply"
    return str(error).partition("\n")[0] or type(error).__name__


def _refusal(path: Path, problem: str) -> ConfigError:
    return ConfigError(f"The task file {as_unicode(str(path))} {problem}; mend it or take it out of --include-path.")


def _shown(value: Any) -> str:
    return repr(value)[:60]
