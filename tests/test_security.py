"""What comes from outside reaches neither a shell nor the network, and pins are compared with what is known of them."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import audit_pins
import pytest
import yaml
from conftest import ROOT, TINY, Project

from stages import plan, rules

HOSTILE = "x; touch pwned; $(touch pwned) `touch pwned` ' \" \\ & | > < * ${plan} {wildcards} <script>alert(1)</script>"


def test_a_run_asks_nothing_of_the_network(finished):
    """All stages of the fixture ran with connections refused and written down."""
    log = finished.root / "logs/network"
    assert not log.exists(), log.read_text()


def test_the_guard_of_that_test_refuses_and_writes_down(tmp_path):
    guard = {"PYTHONPATH": str(ROOT / "tests/no_network"), "NETWORK_LOG": str(tmp_path / "log")}
    ask = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"
    done = subprocess.run(
        [sys.executable, "-c", ask], check=False, env={**os.environ, **guard}, capture_output=True, text=True
    )
    assert done.returncode != 0 and "the network is refused" in done.stderr
    assert "socket." in (tmp_path / "log").read_text()


def hostile_experiment():
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "image_folder", "root": HOSTILE, "size": 8, "heldout_share": 0.2, "split_seed": 0}
    experiment["quality"] = {"weights": HOSTILE, "protocols": ["pytorch_fid"], "batch_size": 8}
    experiment["arms"]["theirs"] = {"generator": {"folder": HOSTILE}, "sample": {}}
    rules.check(experiment)  # paths may hold anything
    return experiment


def test_no_path_of_params_reaches_a_command(tmp_path, monkeypatch):
    """What DVC would hand to a shell, for an experiment whose every path is hostile."""
    from dvc.repo import Repo

    project = Project.create(tmp_path / "project", TINY)
    experiment = hostile_experiment()
    (project.root / "params.yaml").write_text(yaml.safe_dump(experiment))
    (project.root / "plan.json").write_text(plan.text(plan.expand(experiment)))
    monkeypatch.chdir(project.root)
    repo = Repo()
    commands = {stage.addressing: stage.cmd for stage in repo.index.stages}
    sources = {dep.def_path for stage in repo.index.stages for dep in stage.deps}
    repo.close()
    assert len(commands) > 20 and HOSTILE in sources
    for name, command in commands.items():
        assert re.fullmatch(r"python -m stages\.[a-z]+( --reference|( --[a-z]+ [A-Za-z0-9_+-]+)*)", command), name
        assert re.fullmatch(r"[a-z]+(_[a-z]+)?(@[A-Za-z0-9_+-]+)?", name)  # what Snakemake hands to a shell


@pytest.mark.parametrize(
    "name", [HOSTILE, "a b", "a;b", "$(b)", "`b`", "<b>", "../b", "a/b", "a.b", "-b", "a\n", "a@b", "ä"]
)
def test_names_of_arms_are_checked(tmp_path, name):
    experiment = yaml.safe_load(TINY)
    experiment["arms"][name] = experiment["arms"]["ddpm"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(ValueError):
        rules.load(tmp_path / "params.yaml")


def test_no_code_of_the_project_starts_a_shell():
    """ruff's S602, S604, S605 look for it, and nothing silences them."""
    code = [path for folder in ("stages", "workflow", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(code) > 50
    for path in code:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"shell\s*=\s*True|os\.(system|popen)\(|noqa:.*S60[245]", text), path


@pytest.fixture
def database():
    """A made-up database of vulnerabilities: .asked, .answers = dict name -> list of ids."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked = [(q["package"]["ecosystem"], q["package"]["name"], q["version"]) for q in query["queries"]]
            found = [server.answers.get(name, []) for _, name, _ in server.asked]
            body = json.dumps(
                {"results": [{"vulns": [{"id": i} for i in ids]} if ids else {} for ids in found]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.answers = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PINS = """\
torch==2.12.1 ; sys_platform == 'linux' \\
    --hash=sha256:00
    # via diffusers
Jinja2==3.1.6 \\
    --hash=sha256:11
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:22
"""


def test_pins_are_compared_with_the_database(database, tmp_path, monkeypatch, capsys):
    (tmp_path / "requirements.txt").write_text(PINS)
    monkeypatch.chdir(tmp_path)
    address = f"http://127.0.0.1:{database.server_port}"
    audit_pins.main([address])
    assert database.asked == [("PyPI", "torch", "2.12.1"), ("PyPI", "Jinja2", "3.1.6"), ("PyPI", "colorama", "0.4.6")]
    assert capsys.readouterr().out == "3 pins: nothing is known against them\n"
    database.answers = {"Jinja2": ["GHSA-1", "PYSEC-2"]}
    with pytest.raises(
        ValueError, match=r"^1 of 3 pins has known vulnerabilities: Jinja2 3\.1\.6 \(GHSA-1, PYSEC-2\)$"
    ):
        audit_pins.main([address])


def test_a_database_that_cannot_be_reached_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "requirements.txt").write_text(PINS)
    monkeypatch.chdir(tmp_path)
    audit_pins.main(["http://127.0.0.1:9"])
    told = capsys.readouterr().err
    assert (
        told.startswith("the pins were not checked: http://127.0.0.1:9 cannot be reached (") and told.count("\n") == 1
    )


def test_the_lock_of_the_project_is_read_whole():
    pins = audit_pins.pins((ROOT / "requirements.txt").read_text())
    assert len(pins) == len(re.findall(r"^\S+==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)) > 150
    assert ("dvc", "3.67.1") in pins
