"""The kustomize folder that installs Stoa in a cluster: valid manifests, and for each part its own secrets only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from projects.settings import SECRET, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
OPTIONAL = ["machines.yaml"]
"""Manifests whose lines among the resources are comments."""
NEEDS = {
    "migrate": {"database_url"},
    "scheduler": {"database_url", "redis_url"},
    "worker": {"database_url", "redis_url", "store_key", "store_secret"},
    "publisher": {"database_url", "redis_url", "hub_token", "store_key", "store_secret"},
    "bot": {"database_url", "discord_token"},
}


def manifests() -> list[dict[str, Any]]:
    names = [*KUSTOMIZATION["resources"], *OPTIONAL]
    return [document for name in names for document in yaml.safe_load_all((DEPLOY / name).read_text())]


def keys(name: str) -> set[str]:
    """The names of settings in an example of a file with variables."""
    lines = (DEPLOY / f"{name}.env.example").read_text().splitlines()
    return {line.partition("=")[0].removeprefix("STOA_").lower() for line in lines if not line.startswith("#")}


def containers() -> Iterator[dict[str, Any]]:
    [stoa] = [each for each in manifests() if each["kind"] == "StatefulSet"]
    pod = stoa["spec"]["template"]["spec"]
    yield from (*pod["initContainers"], *pod["containers"])


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_the_manifests_are_valid(version: str) -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = next(each for each in manifests() if each["kind"] == "StatefulSet")
    wrong["spec"]["replica"] = wrong["spec"].pop("replicas")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_each_part_gets_its_own_secrets_and_no_other() -> None:
    told = {}
    for container in containers():
        own = {variable["name"].removeprefix("STOA_").lower() for variable in container["env"]}
        assert all("secretKeyRef" in variable["valueFrom"] for variable in container["env"])
        if any(source.get("secretRef", {}).get("name") == "stoa-store" for source in container["envFrom"]):
            own |= keys("store")
        told[container["name"]] = own
    assert told == NEEDS
    assert keys("settings").isdisjoint(SECRET)
    assert keys("secrets") | keys("store") == SECRET


def test_every_variable_is_a_setting_and_every_file_has_an_example() -> None:
    for generator in ("configMapGenerator", "secretGenerator"):
        for generated in KUSTOMIZATION[generator]:
            for file in generated["envs"]:
                assert keys(file.removesuffix(".env")) <= set(Settings.model_fields)


def test_the_api_for_donated_machines_is_a_pod_of_its_own_with_tls() -> None:
    assert f"# - {OPTIONAL[0]}" in (DEPLOY / "kustomization.yaml").read_text()
    [deployment] = [each for each in manifests() if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"] == ["machine", "serve"]
    secret = {one["name"] for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})}
    assert secret == {"STOA_DATABASE_URL"}
    assert [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source] == ["stoa-store"]
    told = {one["name"].removeprefix("STOA_").lower(): one["value"] for one in container["env"] if "value" in one}
    assert Settings(_env_file=None, **told).machines_certificate == "/etc/stoa/tls.crt"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(Path(told[name]).parent) for name in ("machines_certificate", "machines_key")} == {mounted["tls"]}
    assert container["livenessProbe"]["exec"]["command"] == ["stoa", "health", "machine"]
    [service] = [
        each for each in manifests() if each["metadata"]["name"] == "stoa-machines" and "ports" in each["spec"]
    ]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert [port["port"] for port in service["spec"]["ports"]] == [int(told["machines_address"].rpartition(":")[2])]
