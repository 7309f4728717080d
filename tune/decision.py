"""The end of a sweep: the best point against the recipe, on fresh seeds."""

from __future__ import annotations

from dataclasses import dataclass

from tune.axes import Changes
from tune.book import BASELINE, Book, Job, Schedule
from tune.judging import Difference, Estimate, Objective, Standing, difference, pareto, standings
from tune.population import lineage

CONFIRM_SEEDS = 1000
"""Fresh seeds start so far from those of the search."""


@dataclass(frozen=True)
class Decision:
    """What the sweep found."""

    best: Standing
    """Of the search; its score is that which it was chosen by, and so somewhat too good."""
    recipe: Standing | None
    """The recipe in the search; None when its trial did not finish."""
    fresh_best: Estimate | None = None
    """On fresh seeds: the score to believe. None without confirmation."""
    fresh_recipe: Estimate | None = None
    gain: Difference | None = None
    """On fresh seeds, best less recipe."""
    front: tuple[Standing, ...] = ()
    """With two objectives: what no other point beats, cheapest first."""
    against: str = ""
    """Name of the second objective."""

    @property
    def is_better(self) -> bool:
        """A point other than the recipe that is surely better."""
        return self.best.point != BASELINE and self.gain is not None and self.gain.is_better

    @property
    def sentence(self) -> str:
        """In words."""
        if self.front:
            return self._front_sentence
        if self.best.point == BASELINE:
            return "Nothing that was tried is better than the recipe as it is."
        name = (
            f"Point {self.best.point}" if not self.best.trials[0].turns else f"The schedule of point {self.best.point}"
        )
        if self.gain is None:
            return (
                f"{name} leads the search; on fresh seeds it was not compared with the recipe, so luck is not excluded."
            )
        if self.gain.interval is None:
            return f"{name} differs from the recipe by {self.gain.value:+.4f} on one fresh seed, which decides nothing."
        low, high = self.gain.interval
        found = f"{self.gain.value:+.4f} ({low:+.4f} – {high:+.4f}) on fresh seeds"
        if self.gain.is_better:
            return f"{name} is better than the recipe: {found}."
        if self.gain.is_worse:
            return f"{name} led the search by luck: {found}. Keep the recipe."
        return f"{name} is not surely better than the recipe: {found}. More seeds (--confirm) may tell."

    @property
    def _front_sentence(self) -> str:
        cheapest, dearest = self.front[0], self.front[-1]
        if len(self.front) == 1:
            if cheapest.point == BASELINE:
                return f"Nothing that was tried scores higher than the recipe or has a smaller {self.against}."
            return (
                f"No point scores higher than point {cheapest.point} ({cheapest.score.mean:.4f}) or has a smaller "
                f"{self.against} ({cheapest.cost.mean:.4g}): there is nothing to weigh."
            )
        ends = " to ".join(
            f"{one.score.mean:.4f} at {one.cost.mean:.4g} ({_called(one)})" for one in (cheapest, dearest)
        )
        found = f"{len(self.front)} points are on the front of score against {self.against}, from {ends}"
        if self.recipe is None or any(one.point == BASELINE for one in self.front):
            return f"{found}."
        # The front is sorted by both numbers, so the last one that is no dearer than the recipe scores highest of them.
        rival = [one for one in self.front if one.cost.mean <= self.recipe.cost.mean][-1]
        return f"{found}; the recipe is not: {_called(rival)} is as good or better in both."


def _called(one: Standing) -> str:
    return "the recipe" if one.point == BASELINE else f"point {one.point}"


def decide(book: Book, objective: Objective) -> Decision | None:
    """What the book says; None when no trial of the search has finished."""
    found = standings(book.points("search"), objective)
    if not found:
        return None
    best, recipe = found[0], next((one for one in found if one.point == BASELINE), None)
    if objective.against:
        return Decision(best, recipe, front=tuple(pareto(found)), against=objective.against)
    fresh = {one.point: one.score for one in standings(book.points("confirm"), objective)}
    if best.point == BASELINE or best.point not in fresh or BASELINE not in fresh:
        return Decision(best, recipe, fresh.get(best.point), fresh.get(BASELINE))
    one, other = fresh[best.point], fresh[BASELINE]
    return Decision(best, recipe, one, other, difference(one, other))


def confirmation_jobs(
    book: Book, objective: Objective, count: int, first_seed: int, recipe: Changes | None = None
) -> list[Job]:
    """The best point and the recipe, each with the same fresh seeds; the recipe alone when it is the best.

    Settings that changed in flight change at the same steps again.

    Args:
        recipe: the recipe as changes of the space's start; without it {}.
    """
    decision = decide(book, objective)
    if decision is None:
        return []
    schedules: dict[int, Schedule] = {BASELINE: ((0, {}),)}
    if decision.best.point != BASELINE:
        schedules[decision.best.point] = lineage(book, decision.best.trials[0].job.key, recipe or {})
    return [
        Job(point, first_seed + CONFIRM_SEEDS + number, "confirm", dict(first), tuple(later))
        for number in range(count)
        for point, ((_, first), *later) in schedules.items()
    ]
