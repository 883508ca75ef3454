"""Slices share a stream and its code table while that saves bytes (spec/rationale.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .code_cost import Prefer, choose_code, estimate_bytes
from .codings import Codings
from .layout_choice import Plan, PlannedSlice
from .streams import Mapping, StreamKind

_ALL_PAIRS_UP_TO = 160
_SWEEPS = 2
_EXACT_MAPPINGS = 3
_SWEEPS_UP_TO = 16
_SWEEP_UP_TO = 600
_SHARED_AT_MOST = 160.0

Key = tuple[int, int]
"""Tensor number and slice number."""


@dataclass(slots=True)
class Group:
    """Slices of one kind that share a stream, with the mappings that all of them allow."""

    kind: StreamKind
    codings: Codings
    members: list[Key] = field(default_factory=list)
    cost: float = 0.0

    def best_mapping(self, prefer: Prefer) -> Mapping:
        """Return the mapping of the fewest bytes: exactly, of those with the best estimates."""
        costs = estimate_bytes(self.codings.counts, self.codings.extra_bits, prefer)
        near = [int(i) for i in np.argsort(costs, kind="stable")[:_EXACT_MAPPINGS]]
        if len(near) == 1:
            return self.codings.mappings[near[0]]
        best = min(near, key=lambda i: self._exact_bytes(i, prefer))
        return self.codings.mappings[best]

    def _exact_bytes(self, place: int, prefer: Prefer) -> float:
        counts = np.ceil(self.codings.counts[place]).astype(np.int64)
        return choose_code(counts, prefer).n_bytes + float(self.codings.extra_bits[place]) / 8


def _joined(a: Codings, b: Codings) -> Codings | None:
    """Add up counts under the mappings that both allow; None if there is none."""
    if a.mappings == b.mappings:
        return Codings(a.mappings, a.counts + b.counts, a.extra_bits + b.extra_bits)
    places = {mapping: i for i, mapping in enumerate(b.mappings)}
    pairs = [(i, places[mapping]) for i, mapping in enumerate(a.mappings) if mapping in places]
    if not pairs:
        return None
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    return Codings(
        tuple(a.mappings[i] for i in left),
        a.counts[left] + b.counts[right],
        a.extra_bits[left] + b.extra_bits[right],
    )


def _best_costs(codings: Sequence[Codings | None], prefer: Prefer) -> np.ndarray:
    """Estimated bytes of each under its best mapping, infinite for None: one vectorised estimate."""
    present = [c for c in codings if c is not None]
    out = np.full(len(codings), np.inf)
    if not present:
        return out
    sizes = [len(c.mappings) for c in present]
    costs = estimate_bytes(
        np.concatenate([c.counts for c in present]), np.concatenate([c.extra_bits for c in present]), prefer
    )
    starts = np.cumsum([0, *sizes[:-1]])
    out[[i for i, c in enumerate(codings) if c is not None]] = np.minimum.reduceat(costs, starts)
    return out


class Sharing:
    """Groups of slices, and moves that make them smaller.

    Parameters
    ----------
    plans : list of list of Plan
        For each tensor its alternatives, the one that is best alone first.
    """

    def __init__(self, plans: list[list[Plan]], prefer: Prefer) -> None:
        self._plans = plans
        self._prefer = prefer
        self.chosen = [alternatives[0] for alternatives in plans]
        self.groups: list[Group] = []

    def run(self) -> None:
        """Group the slices of the first plans, then try other plans and places for each tensor."""
        for tensor, plan in enumerate(self.chosen):
            for number, item in enumerate(plan.slices):
                self.groups.append(Group(item.kind, item.codings, [(tensor, number)], item.own_bytes))
        self._merge()
        if len(self._plans) > _SWEEP_UP_TO or self._prefer is Prefer.SPEED:
            return
        for _ in range(_SWEEPS if len(self._plans) <= _SWEEPS_UP_TO else 1):
            before = self._total()
            for tensor in range(len(self._plans)):
                self._replan(tensor)
            self._merge()
            if self._total() > before - 1:
                return

    def _total(self) -> float:
        return sum(g.cost for g in self.groups) + sum(p.fixed_bytes for p in self.chosen)

    def _merge(self) -> None:
        merged: list[Group] = []
        for kind in StreamKind:
            alike = [g for g in self.groups if g.kind is kind]
            if len(alike) > _ALL_PAIRS_UP_TO:
                alike = self._merge_in_order(alike)
            merged.extend(self._merge_pairs(alike) if len(alike) <= _ALL_PAIRS_UP_TO else alike)
        self.groups = merged

    def _merge_in_order(self, groups: list[Group]) -> list[Group]:
        """Put each group into the one of the last few that grows least, if that saves bytes."""
        kept: list[Group] = []
        for group in groups:
            near = kept[-16:]
            costs = _best_costs([_joined(g.codings, group.codings) for g in near], self._prefer)
            growth = costs - np.array([g.cost for g in near])
            if near and float(growth.min()) < group.cost:
                target = near[int(growth.argmin())]
                _absorb(target, group, float(costs[int(growth.argmin())]))
            else:
                kept.append(group)
        return kept

    def _merge_pairs(self, groups: list[Group]) -> list[Group]:
        """Merge the pair with the largest saving until none saves a byte."""
        n = len(groups)
        savings = np.full((n, n), -np.inf)
        for i in range(n - 1):
            self._update_savings(savings, groups, i, range(i + 1, n))
        alive = set(range(n))
        while len(alive) > 1:
            i, j = divmod(int(np.argmax(savings)), n)
            if savings[i, j] <= 0:
                break
            _absorb(groups[i], groups[j], groups[i].cost + groups[j].cost - float(savings[i, j]))
            alive.discard(j)
            savings[j, :] = savings[:, j] = -np.inf
            self._update_savings(savings, groups, i, sorted(alive - {i}))
        return [groups[i] for i in sorted(alive)]

    def _update_savings(
        self, savings: np.ndarray, groups: list[Group], i: int, others: Sequence[int]
    ) -> None:
        costs = _best_costs([_joined(groups[i].codings, groups[j].codings) for j in others], self._prefer)
        for j, cost in zip(others, costs.tolist(), strict=True):
            savings[min(i, j), max(i, j)] = groups[i].cost + groups[j].cost - cost

    def _replan(self, tensor: int) -> None:
        """Take a tensor's slices out and put the best of its plans where it costs least."""
        self._take_out(tensor)
        best_plan, best_cost = self.chosen[tensor], np.inf
        for plan in self._plans[tensor]:
            cost = self._plan_cost(plan, best_cost - 0.5)
            if cost < best_cost - 0.5:
                best_plan, best_cost = plan, cost
        self.chosen[tensor] = best_plan
        for number, item in enumerate(best_plan.slices):
            target, growth = self._placed(item)
            if target is None:
                self.groups.append(Group(item.kind, item.codings, [(tensor, number)], growth))
            else:
                own = Group(item.kind, item.codings, [(tensor, number)])
                _absorb(target, own, target.cost + growth)

    def _plan_cost(self, plan: Plan, enough: float) -> float:
        """Bytes by which a plan makes the file grow; some number beyond `enough` if it is more than that.

        A slice can save no more than its record and its table where it joins a stream.
        """
        least = [max(0.0, item.own_bytes - _SHARED_AT_MOST) for item in plan.slices]
        cost = plan.fixed_bytes + sum(least)
        for item, at_least in zip(plan.slices, least, strict=True):
            if cost >= enough:
                return cost
            cost += self._placed(item)[1] - at_least
        return cost

    def _take_out(self, tensor: int) -> None:
        left: list[Group] = []
        for group in self.groups:
            members = [m for m in group.members if m[0] != tensor]
            if not members:
                continue
            if len(members) < len(group.members):
                group = self._rebuilt(group.kind, members)
            left.append(group)
        self.groups = left

    def _rebuilt(self, kind: StreamKind, members: list[Key]) -> Group:
        codings = self._slice(members[0]).codings
        for member in members[1:]:
            joined = _joined(codings, self._slice(member).codings)
            assert joined is not None
            codings = joined
        return Group(kind, codings, members, codings.best_bytes(self._prefer))

    def _slice(self, key: Key) -> PlannedSlice:
        return self.chosen[key[0]].slices[key[1]]

    def _placed(self, item: PlannedSlice) -> tuple[Group | None, float]:
        """Where a slice costs least: a group or none, and by how much the file grows."""
        own = item.own_bytes
        alike = [g for g in self.groups if g.kind is item.kind]
        if not alike:
            return None, own
        costs = _best_costs([_joined(g.codings, item.codings) for g in alike], self._prefer)
        growth = costs - np.array([g.cost for g in alike])
        least = int(growth.argmin())
        if float(growth[least]) < own:
            return alike[least], float(growth[least])
        return None, own


def _absorb(target: Group, other: Group, cost: float) -> None:
    joined = _joined(target.codings, other.codings)
    assert joined is not None
    target.codings = joined
    target.members = sorted(target.members + other.members)
    target.cost = cost
