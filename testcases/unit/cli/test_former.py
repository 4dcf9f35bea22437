# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line takes the names of version 0.1, tells the new ones, and shows only those in its help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.cli import main as cli
from framework.cli import replay as replay_cli
from framework.cli import snapshot as snapshot_cli
from framework.common.errors import UsageError
from framework.snapshot.store import SnapshotStore


def parsed(monkeypatch: pytest.MonkeyPatch, module: object, handler: str, *arguments: str) -> dict[str, object]:
    """The options that a command's handler gets."""
    found: dict[str, object] = {}
    monkeypatch.setattr(module, handler, lambda options, _output: found.update(vars(options)) or 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0
    return found


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDCHECK_CACHE", str(tmp_path / "cache"))


def test_template_is_snapshot(capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("snapshot", "template"):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "list", "--json"])
        assert ended.value.code == 0
        out, err = capfd.readouterr()
        assert json.loads(out) == []
        assert ("`template` is now `snapshot`; the old name goes with 0.3" in err) == (command == "template")


def test_a_checkpoint_may_be_called_moment(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    options = parsed(monkeypatch, snapshot_cli, "_build", "template", "build", "--moment", "dom0")
    assert options["checkpoint"] == "dom0"
    assert "--moment is now --checkpoint" in capfd.readouterr().err
    assert parsed(monkeypatch, snapshot_cli, "_build", "snapshot", "build")["checkpoint"] == "ready"


def test_replays_old_options_are_the_new_ones(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = parsed(monkeypatch, replay_cli, "_replay", "replay", "true", "--moment=parked", "--patience", "7")
    assert (options["checkpoint"], options["idle_timeout"]) == ("parked", 7)
    err = capfd.readouterr().err
    assert "--moment is now --checkpoint" in err
    assert "--patience is now --idle-timeout" in err
    options = parsed(monkeypatch, replay_cli, "_replay", "replay", "true")
    assert (options["checkpoint"], options["idle_timeout"]) == ("ready", 300)
    assert "is now" not in capfd.readouterr().err


def test_an_old_option_takes_no_other_values(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "true", "--patience", "long"])
    assert ended.value.code == 2
    assert "expected a number" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["replay", "--help"], ["snapshot", "build", "--help"]])
def test_help_shows_the_new_names_only(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    shown = capfd.readouterr().out
    assert "snapshot" in shown or "--checkpoint" in shown
    assert not any(old in shown for old in ("template", "--moment", "--patience"))


def test_the_old_variable_bounds_snapshots(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MEDCHECK_TEMPLATES_MIB", "many")
    with pytest.raises(UsageError):
        SnapshotStore()
    monkeypatch.setenv("MEDCHECK_SNAPSHOTS_MIB", "7")
    assert SnapshotStore()._most == 7 << 20
    with pytest.raises(SystemExit):
        cli.main(["snapshot", "list"])
    assert "MEDCHECK_TEMPLATES_MIB is now MEDCHECK_SNAPSHOTS_MIB" in capfd.readouterr().err
