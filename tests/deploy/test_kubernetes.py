"""The manifests: what a cluster would take, and what fits together."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import click
import kubernetes_validate
import pytest
import yaml

import psserver
from kit.processes import TIMEOUT_S
from kit.variables import OF_CLIENT, OF_SERVER, OF_WORKER
from psserver import admin
from psserver.cli.serve import serve
from psserver.config import ServerConfig
from psserver.rulespec import parse_arguments, resolve
from psworker.cli import run

Object = dict[str, Any]
StartServer = Callable[..., psserver.Server]

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
OLDEST = "1.29"
WITHOUT_SCHEMA = {"ServiceMonitor"}  # The Prometheus operator's.
# Of the operator's definition, what one may want here.
OF_MONITOR = {"endpoints", "jobLabel", "namespaceSelector", "selector", "targetLabels"}
OF_ENDPOINT = {
    *("authorization", "interval", "path", "port", "relabelings", "scheme"),
    "tlsConfig",
}
ENDS_WELL = """
from signal import *

pthread_sigmask(SIG_BLOCK, {SIGTERM})
print("up", flush=True)
print("stopped" if sigtimedwait({SIGTERM}, 60) else "left alone")
"""


@pytest.fixture(scope="module", params=["base", "overlays/large", "overlays/tls"])
def objects(request: pytest.FixtureRequest, kubectl: Any) -> list[Object]:
    """Build each of what there is to apply."""
    built = kubectl("kustomize", str(MANIFESTS / request.param))
    assert (built.returncode, built.stderr) == (0, "")
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(scope="module")
def server(objects: list[Object]) -> Object:
    """Return the server's StatefulSet."""
    [server] = of_kind(objects, "StatefulSet")
    return server


@pytest.fixture(scope="module")
def workers(objects: list[Object]) -> Object:
    """Return the workers' Job."""
    [workers] = of_kind(objects, "Job")
    return workers


@pytest.fixture(scope="module")
def monitor() -> Object:
    """Return what the ServiceMonitor asks for."""
    file = MANIFESTS / "monitoring" / "service-monitor.yaml"
    monitor: Object = yaml.safe_load(file.read_text())["spec"]
    return monitor


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of one kind."""
    return [each for each in objects if each["kind"] == kind]


def container_of(owner: Object) -> Object:
    """Return the only container of a workload."""
    [container] = owner["spec"]["template"]["spec"]["containers"]
    return container


def environment_of(owner: Object, objects: list[Object]) -> dict[str, str]:
    """Return what a workload's container finds in its environment."""
    container, found = container_of(owner), dict[str, str]()
    for source in container["envFrom"]:
        [settings] = [
            each["data"]
            for each in of_kind(objects, "ConfigMap")
            if each["metadata"]["name"] == source["configMapRef"]["name"]
        ]
        found |= settings
    return found | {each["name"]: each["value"] for each in container.get("env", ())}


def ports_of(owner: Object) -> dict[str, int]:
    """Return the ports of a workload's container by name."""
    ports = container_of(owner).get("ports", ())
    return {port["name"]: port["containerPort"] for port in ports}


def is_chosen(labels: Mapping[str, str], selector: Object) -> bool:
    """Say whether a selector, which names labels alone, takes these."""
    assert selector.keys() == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


def chosen(objects: list[Object], selector: Object) -> list[str]:
    """Return the names of the workloads whose pods a selector takes."""
    return [
        each["metadata"]["name"]
        for each in (*of_kind(objects, "StatefulSet"), *of_kind(objects, "Job"))
        if is_chosen(each["spec"]["template"]["metadata"]["labels"], selector)
    ]


def policies_of(objects: list[Object]) -> dict[str, Object]:
    """Return the network policies by the workload that they are for."""
    return {
        name: each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        for name in chosen(objects, each["spec"]["podSelector"])
    }


def consequence(job: Object, *, code: int, condition: str = "") -> str:
    """Return what a Job does about a pod that failed so: the first rule that fits."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"operator": "In", "values": []})
        assert codes["operator"] == "In"
        conditions = rule.get("onPodConditions", [])
        if (
            code in codes["values"]
            or {"type": condition, "status": "True"} in conditions
        ):
            action: str = rule["action"]
            return action
    return "Count"


def read_options(
    command: click.Command,
    arguments: list[str],
    environment: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Return what a command makes of its arguments and its environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return command.make_context("command", arguments).params


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_object_is_as_kubernetes_defines_it(
    objects: list[Object], version: str
) -> None:
    """No unknown field, no wrong type."""
    for each in objects:
        if each["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_servers_settings_are_ones_that_it_takes(
    server: Object, objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, values and rule; it listens where its ports and its volume are."""
    environment = environment_of(server, objects)
    container = container_of(server)
    assert container["args"] == ["sh", "-c", "exec psserver serve > /dev/null"]

    options = read_options(serve, [], environment, monkeypatch)

    assert environment.keys() <= OF_SERVER | OF_CLIENT
    known = inspect.signature(ServerConfig).parameters
    ServerConfig(**{name: options[name] for name in options.keys() & known.keys()})
    resolve(options["rule"], parse_arguments(options["argument"]))
    assert ports_of(server) == {"grpc": options["port"], "http": options["http_port"]}
    assert options["data_dir"] in [
        volume["mountPath"] for volume in container["volumeMounts"]
    ]


@pytest.fixture
def psworker(tmp_path: Path) -> Callable[[str], Mapping[str, str]]:
    """Put a script in the place of `psworker`; return the environment to find it in."""

    def psworker(script: str) -> Mapping[str, str]:
        stand_in = tmp_path / "psworker"
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
        return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    return psworker


def test_every_worker_reads_a_part_of_its_own(
    workers: Object,
    objects: list[Object],
    psworker: Callable[[str], Mapping[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many parts as workers; options and values are ones that it takes."""
    spec = workers["spec"]
    environment = environment_of(workers, objects)
    found = psworker("""printf '%s\\n' "$@" """)
    index = {"JOB_COMPLETION_INDEX": str(spec["completions"] - 1)}  # As the Job sets.

    ran = subprocess.run(
        container_of(workers)["args"],
        env={**found, **environment, **index},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    command, *arguments = ran.stdout.splitlines()
    assert command == "run"
    settings = {name: environment[name] for name in environment.keys() - {"TASK"}}
    del settings["WORKERS"]
    assert settings.keys() <= OF_WORKER
    settings["PSWORKER_APP_DIR"] = "."  # That of the image is not here.
    options = read_options(run, arguments, settings, monkeypatch)
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] == options["shard"].count
    assert options["shard"].index == spec["completions"] - 1
    assert options["name"] == f"worker-{spec['completions'] - 1}"


def test_a_worker_that_is_told_to_stop_is_not_taken_for_done(
    workers: Object, psworker: Callable[[str], Mapping[str, str]]
) -> None:
    """It ends with 0 then, which would end its part of the Job for good."""
    found = psworker(f"exec {sys.executable} -c '{ENDS_WELL}'")
    with subprocess.Popen(
        container_of(workers)["args"], env=found, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "up\n"

        shell.send_signal(signal.SIGTERM)

        assert shell.stdout.read() == "stopped\n"
        assert shell.wait(TIMEOUT_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_by_itself_says_how(
    workers: Object, psworker: Callable[[str], Mapping[str, str]], code: int
) -> None:
    """2 ends the whole Job, 1 is tried again."""
    found = psworker(f"exit {code}")

    ran = subprocess.run(container_of(workers)["args"], env=found, timeout=TIMEOUT_S)

    assert ran.returncode == code


def test_a_worker_that_fails_is_treated_by_what_it_failed_of(workers: Object) -> None:
    """A crash is tried again ten times; a drained node does not count among these.

    A wrong option ends the whole Job, as it is every worker's.
    """
    assert workers["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert workers["spec"]["backoffLimitPerIndex"] == 10
    assert consequence(workers, code=1) == "Count"
    assert consequence(workers, code=143, condition="DisruptionTarget") == "Ignore"
    assert consequence(workers, code=2) == "FailJob"


def test_probes_ask_what_the_server_answers(
    server: Object, objects: list[Object], start_server: StartServer
) -> None:
    """Health at the gRPC port, and whether it is alive at the other; of no token."""
    container, ports = container_of(server), ports_of(server)
    running = start_server(http_port=0, tokens="viewer that-no-probe-ever-shows")

    assert admin.is_healthy(running.address)
    # Kubernetes' own gRPC probe speaks no TLS.
    has_tls = "PSSERVER_TLS_CERT" in environment_of(server, objects)
    for name in ("startupProbe", "readinessProbe"):
        if has_tls:
            assert container[name]["exec"] == {"command": ["psserver", "health"]}
        else:
            assert container[name]["grpc"] == {"port": ports["grpc"]}
    alive = container["livenessProbe"]["httpGet"]
    assert alive["port"] in ports
    assert alive.get("scheme", "HTTP") == ("HTTPS" if has_tls else "HTTP")
    with urlopen(f"{running.http_address}{alive['path'].removeprefix('/')}") as answer:
        assert answer.status == 200


def test_what_a_pod_is_given_of_secrets_is_what_it_asks_for(
    server: Object, workers: Object, objects: list[Object], secrets: Path
) -> None:
    """Each from a Secret of the files that the script makes for it, and no other's."""
    for owner in (server, workers):
        environment = environment_of(owner, objects)
        asked = {value for value in environment.values() if value.startswith("/run/")}
        pod = owner["spec"]["template"]["spec"]
        mounts = {
            mount["name"]: mount["mountPath"]
            for mount in container_of(owner)["volumeMounts"]
        }
        given = {
            f"{mounts[volume['name']]}/{file.name}"
            for volume in pod["volumes"]
            if "secret" in volume
            for file in (secrets / volume["secret"]["secretName"][8:]).iterdir()
        }
        assert asked <= given
        assert bool(asked) == any("_TLS_" in name for name in environment)
        assert "fsGroup" in pod["securityContext"] or not asked


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the script that makes certificates and tokens."""
    folder = tmp_path_factory.mktemp("secrets")
    script = MANIFESTS.parent / "make-certificates.sh"
    subprocess.run([script, folder], check=True, timeout=TIMEOUT_S)
    return folder


def test_a_stop_has_time_for_the_last_checkpoint(server: Object) -> None:
    """A minute and more, after the calls in flight had theirs."""
    grace_s = inspect.signature(psserver.Server.stop).parameters["grace_s"].default

    allowed_s = server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    assert allowed_s >= grace_s + 60


def test_whoever_is_meant_is_found(
    objects: list[Object], server: Object, workers: Object
) -> None:
    """Services, network policies, the disruption budget, and workloads themselves."""
    serves, works = server["metadata"]["name"], workers["metadata"]["name"]
    ports = ports_of(server)

    assert chosen(objects, server["spec"]["selector"]) == [serves]
    [budget] = of_kind(objects, "PodDisruptionBudget")
    assert chosen(objects, budget["spec"]["selector"]) == [serves]
    services = {
        each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service")
    }
    assert services[server["spec"]["serviceName"]]["clusterIP"] == "None"
    for service in services.values():
        assert chosen(objects, {"matchLabels": service["selector"]}) == [serves]
        assert {each["targetPort"] for each in service["ports"]} <= ports.keys()
    host, port = environment_of(workers, objects)["PSWORKER_SERVER"].split(":")
    assert int(port) in [each["port"] for each in services[host]["ports"]]
    policies = policies_of(objects)
    assert policies.keys() == {serves, works}
    calls, scrapes = policies[serves]["ingress"]
    assert [
        chosen(objects, each["podSelector"])
        for each in (*calls["from"], *policies[works]["egress"][0]["to"])
    ] == [[works], [serves]]
    assert [*calls["ports"], *scrapes["ports"]] == [
        {"port": ports["grpc"]},
        {"port": ports["http"]},
    ]
    assert policies[works]["egress"][0]["ports"] == calls["ports"]


def test_workers_may_look_names_up_wherever_the_cluster_does(
    objects: list[Object], workers: Object
) -> None:
    """Else none would find the server."""
    policy = policies_of(objects)[workers["metadata"]["name"]]

    everywhere = [each["ports"] for each in policy["egress"] if "to" not in each]

    assert "Egress" in policy["policyTypes"]
    assert everywhere == [[{"port": 53, "protocol": name} for name in ("UDP", "TCP")]]


def test_the_server_is_evicted_by_nobody(objects: list[Object]) -> None:
    """All workers would wait for it."""
    [budget] = of_kind(objects, "PodDisruptionBudget")

    assert budget["spec"]["maxUnavailable"] == 0


def test_pods_may_do_no_more_than_they_need(server: Object, workers: Object) -> None:
    """What Kubernetes calls restricted, and a file system that stays as it is."""
    for owner in (server, workers):
        pod = owner["spec"]["template"]["spec"]
        container = container_of(owner)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() == {"memory"}


def test_prometheus_finds_the_server_once(objects: list[Object]) -> None:
    """Else every figure would be there twice."""
    for monitor in of_kind(objects, "ServiceMonitor"):
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint.keys() <= OF_ENDPOINT
        found = [
            service["metadata"]["name"]
            for service in of_kind(objects, "Service")
            if is_chosen(service["metadata"]["labels"], monitor["spec"]["selector"])
            and endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
        ]
        assert found == ["asyncps"]


def test_the_service_monitor_is_as_the_operator_defines_it(monitor: Object) -> None:
    """A field of another name would do nothing."""
    [endpoint] = monitor["endpoints"]

    assert monitor.keys() <= OF_MONITOR
    assert endpoint.keys() <= OF_ENDPOINT


def test_servers_of_two_namespaces_are_two_instances(
    monitor: Object, promtool: Any, tmp_path: Path
) -> None:
    """Rules and dashboard tell servers apart by the instance alone."""
    [endpoint] = monitor["endpoints"]
    relabelings = [
        {re.sub("[A-Z]", r"_\g<0>", key).lower(): value for key, value in each.items()}
        for each in endpoint["relabelings"]  # The operator's keys, then Prometheus's.
    ]
    pods = [
        {
            "targets": [f"{namespace}:7071"],
            "labels": {
                "__meta_kubernetes_namespace": namespace,
                "__meta_kubernetes_pod_name": "asyncps-server-0",
            },
        }
        for namespace in ("one", "two")
    ]
    job = {
        "job_name": "x",
        "static_configs": pods,
        "relabel_configs": relabelings,
    }
    file = tmp_path / "prometheus.json"  # JSON is YAML.
    file.write_text(json.dumps({"scrape_configs": [job]}))

    found = promtool("check", "service-discovery", "--timeout=1s", str(file), "x")

    assert (found.returncode, found.stderr) == (0, "")
    assert {each["labels"]["instance"] for each in json.loads(found.stdout)} == {
        "one/asyncps-server-0",
        "two/asyncps-server-0",
    }
