"""The files in deploy/: they parse, name what exists, take flags that Flower has, and run as nobody special."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.checkout import ROOT

DEPLOY = ROOT / "deploy"
SERVICES = ("superlink", "supernode")
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OBJECTS = [found for path in MANIFESTS for found in yaml.safe_load_all(path.read_text())]
PODS = [found["spec"]["template"]["spec"] for found in OBJECTS if found["kind"] == "StatefulSet"]


def unit(path):
    """A unit's sections, where a key may stand more than once: the last counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(path.read_text().replace("\\\n", " "))
    return parser


def services(kind=None):
    """Every command in deploy/ that starts a SuperLink or SuperNode, or only those of one kind, as words."""
    found = [service["command"] for service in COMPOSE["services"].values()]
    found += [container["args"] for pod in PODS for container in pod["containers"]]
    found += [unit(path)["Service"]["ExecStart"].split() for path in UNITS]
    found = [[Path(words[0]).name, *words[1:]] for words in found]
    return [words for words in found if words[:2] == ["fedadamw", "flower"] and words[2] in (kind or SERVICES)]


def flags(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def test_there_are_a_superlink_and_a_node_of_every_kind():
    assert len(PODS) == len(MANIFESTS) == 2
    assert sorted(COMPOSE["services"]) == ["gate", "node-0", "node-1", "node-2", "superlink"]
    assert len(services(["superlink"])) == 3
    assert len(services(["supernode"])) == 5


@pytest.mark.parametrize("service", SERVICES)
def test_flower_has_every_flag(service):
    pytest.importorskip("flwr", reason="Flower needs Python 3.11")
    program = Path(sys.executable).parent / f"flower-{service}"
    said = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120).stdout
    known = set(re.findall(r"--[a-z-]+", said))
    used = set().union(*map(flags, services([service])))
    assert used <= known
    assert used


def test_all_is_authenticated_and_nothing_insecure():
    for words in services():
        link = words[2] == "superlink"
        wanted = {"--enable-supernode-auth", "--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"}
        assert flags(words) >= (wanted if link else {"--root-certificates", "--auth-supernode-private-key"})
        assert "127.0.0.1" in " ".join(words) or not link  # only the gate reaches it
    for path in DEPLOY.rglob("*"):
        assert not path.is_file() or "--insecure" not in path.read_text(), path


def test_the_gate_lets_only_nodes_through():
    text = (DEPLOY / "gate.conf").read_text()
    places = re.findall(r"location (.*?) \{\s*(.*?);", text)
    assert places == [
        ("/v1/fleet/", "proxy_pass https://superlink"),
        ("= /health", "proxy_pass https://superlink"),
        ("/", "return 404"),
    ]
    assert "proxy_ssl_verify on;" in text


def test_services_are_users_without_rights():
    assert re.findall(r"^USER (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M) == ["10001:10001"]
    for name, service in COMPOSE["services"].items():
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["livenessProbe"]
    for path in UNITS:
        service = unit(path)["Service"]
        assert service["User"] == "fedadamw"
        assert {service[key] for key in ("NoNewPrivileges", "PrivateTmp")} == {"yes"}
        assert service["ProtectSystem"] == "strict"


def test_secrets_are_files():
    for service in COMPOSE["services"].values():
        assert "environment" not in service
    for pod in PODS:
        assert not any("env" in container or "envFrom" in container for container in pod["containers"])
    assert all("file" in secret for secret in COMPOSE["secrets"].values())
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert {"secrets/", "data/"} <= set(ignored)


def test_every_file_that_is_named_is_there():
    text = (DEPLOY / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DEPLOY / link).exists(), link
    mounted = [v.split(":")[0] for s in COMPOSE["services"].values() for v in s.get("volumes", ())]
    own = [Path(place) for place in mounted if place.startswith("./")]
    assert own
    for place in own:
        assert place.parts[0] in ("secrets", "data") or (DEPLOY / place).is_file(), place
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    kept = set(re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M))
    names = {name for line in copied for name in line.split()}
    assert names == kept
    assert all((DEPLOY.parent / name).exists() for name in names)
    listed = set(re.findall(r"\]\(((?!\.\.)[^)#]+)\)", text))
    files = {str(p.relative_to(DEPLOY)) for p in DEPLOY.rglob("*") if p.is_file()}
    parts = {name for name in files if Path(name).parts[0] not in ("secrets", "data")}
    assert parts - {"README.md", ".gitignore"} == listed


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_units(path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if path.stem.rstrip("@") in line]
    assert all("is not executable" in line for line in complaints), done.stderr
