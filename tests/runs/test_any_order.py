"""A run that is begun, killed, stopped, damaged, exported and verified in any order: its adapter is the undisturbed run's."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.faults.worlds import RECIPES, World, is_same, make_world
from tests.forked_commands import Command

WORLDS: list[World] = []
MOMENTS, SIGNALS = some.floats(0, 1), some.sampled_from([signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


class AnyOrder(RuleBasedStateMachine):
    """Model of a run's folder: what is known is whether the run has come to its end."""

    @initialize(method=some.integers(0, len(RECIPES) - 1), moment=MOMENTS, sent=SIGNALS)
    def begin(self, method: int, moment: float, sent: signal.Signals) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.world, self.out, self.finished = WORLDS[method % len(WORLDS)], self.folder / "run", False
        self.run_and_stop(moment, sent)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def ended(self, command: Command, *codes: int) -> int:
        code = command.end()
        assert "Traceback" not in command.text, command.text
        assert code in codes, (code, command.text)
        return code

    @rule()
    def run(self) -> None:
        self.ended(self.world.run(self.out), 0)
        self.finished = True

    @rule(moment=MOMENTS, sent=SIGNALS)
    def stop(self, moment: float, sent: signal.Signals) -> None:
        self.run_and_stop(moment, sent)

    def run_and_stop(self, moment: float, sent: signal.Signals) -> None:
        command = self.world.run(self.out)
        time.sleep(moment * self.world.seconds)
        command.signal(sent)
        self.finished |= self.ended(command, 0, -sent, 128 + sent) == 0

    @rule(part=MOMENTS)
    def damage_the_newest_checkpoint(self, part: float) -> None:
        """Where an older one is there, too: the run goes on from it."""
        if self.finished:  # no precondition: it depends on the time, and choices must not
            return
        for stage in self.out.glob("*/"):
            whole = sorted(stage.glob("checkpoint-*/stage.json"), key=lambda path: int(path.parent.name[11:]))
            if len(whole) == 2:
                files = sorted(path for path in whole[-1].parent.iterdir() if path.name != "stage.json")
                os.truncate(files[int(part * (len(files) - 1))], 0)

    @rule(use=some.sampled_from(["export", "verify", "report"]))
    def use(self, use: str) -> None:
        """What a run does not have yet is refused in words."""
        adapter, exported = self.out / "adapter", self.folder / "exported"
        is_there, is_exported = (adapter / "adapter_config.json").is_file(), exported.exists()
        assert is_there or not self.finished
        if use == "export":
            self.ended(Command("export", adapter, exported), 0 if is_there and not is_exported else 1)
        elif use == "verify":
            self.ended(Command("verify", adapter, "--engine", "peft"), 0 if is_there else 1)
        else:
            self.ended(Command("report", self.out), *([0] if self.finished else [0, 1]))

    @invariant()
    def what_is_finished_is_the_undisturbed_adapter(self) -> None:
        if getattr(self, "finished", False):
            assert is_same(self.out, self.world.whole)
            assert not list(self.out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("methods", "examples", "steps"),
    [(["i-lora"], 2, 3), pytest.param(list(RECIPES), 50, 10, marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_any_order(methods: list[str], examples: int, steps: int, tiny_recipe: Any, tmp_path: Path) -> None:
    WORLDS[:] = [make_world(method, tiny_recipe, tmp_path) for method in methods]
    checks = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=examples < 10,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(AnyOrder, settings=checks)
