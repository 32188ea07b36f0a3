"""Previews, and what was accepted, in step with the history."""

from __future__ import annotations

from Testing.Extension.bench import Bench


def test_an_answer_after_other_steps_is_a_step_of_its_own(bench: Bench) -> None:
    bench.click(8, 7, 2)
    bench.scroll(3)
    bench.click(9, 9, 3)
    bench.workers.answer()
    bench.scroll(2)
    bench.workers.answer()
    bench.assertAnswered(2)
    bench.scroll(6)
    bench.live.undo()
    bench.assertNothing(2)
    bench.assertAnswered(3)
    bench.live.undo()
    bench.assertNothing(3)
