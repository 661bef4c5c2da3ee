"""The stages of a run, as data: an order string becomes a tuple of stages.

A role is a function of class and stage. Before the first stage that forgets, a forget class is an
ordinary retained one; before the first that learns, a learn class is not there at all. Once
learned, learn classes are protected by the terms that name their role; once forgotten, forget
classes stay so by theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from kswap.config import SwapConfig
from kswap.errors import UserError
from kswap.settings import Role, StageConfig, StageKind

_KINDS: dict[str, tuple[StageKind, tuple[Role, ...]]] = {
    "L": ("learn", ("learn",)),
    "F": ("forget", ("forget",)),
    "J": ("joint", ("learn", "forget")),
}


@dataclass(frozen=True)
class Stage:
    """One stage: what it aims at, what it protects, and those of its settings that are active."""

    index: int
    """1 for the first stage."""
    kind: StageKind
    target: tuple[Role, ...]
    """Roles the stage is there for."""
    protected: tuple[Role, ...]
    """Roles of earlier stages, and retain, whose terms keep what was reached."""
    config: StageConfig
    """Streams and terms of the roles that are active; all others are taken out."""

    @property
    def name(self) -> str:
        """Name in results.json: `1-learn`, `2-forget` ..."""
        return f"{self.index}-{self.kind}"

    @property
    def active(self) -> tuple[Role, ...]:
        """Roles that have terms in this stage."""
        return (*self.target, *self.protected)

    @property
    def forgets(self) -> bool:
        """Whether forget classes are masked out of what the base model teaches."""
        return "forget" in self.active

    @property
    def knows_learned(self) -> bool:
        """Whether the rows of the learn classes take part."""
        return "learn" in self.active

    def role_of(self, role: Role) -> Role | None:
        """Return the role that units of `role` have at this stage; None: not part of it."""
        if role in self.active:
            return role
        return "retain" if role == "forget" else None


def plan(config: SwapConfig) -> tuple[Stage, ...]:
    """Turn `config.order` into stages.

    Raises:
        UserError: a stage is left without a term for what it is there for.
    """
    stages: list[Stage] = []
    # An image of a scene holds objects of the classes to retain whatever role it is there for.
    scenes = config.task in ("segmentation", "detection")
    done: list[Role] = ["retain"] if config.retain is not None or scenes else []
    for index, letter in enumerate(config.order, start=1):
        kind, target = _KINDS[letter]
        protected = tuple(role for role in done if role not in target)
        roles = (*target, *protected)
        in_any: tuple[Role, ...] = ("retain",) if scenes else ()
        settings = _active(getattr(config.stages, kind), roles, in_any=in_any)
        for role in target:
            if not any(role in term.roles for term in settings.terms.values()):
                raise UserError(
                    f"stages.{kind}.terms: no term with a weight above 0 has the role {role!r}, "
                    f"which the stage is there for; give it one, or "
                    f"take {letter} out of the order {config.order!r}"
                )
        if settings.negate is not None and "learn" in target:
            raise UserError(
                f"stages.{kind}.negate: {settings.negate} would also turn round what the stage "
                f"learns; take a stage F of its own, such as order LF instead of {config.order!r}"
            )
        if settings.dampening is not None:
            _check_dampening(kind, target, settings)
        stages.append(Stage(index, kind, target, protected, settings))
        done += [role for role in target if role not in done]
    return tuple(stages)


def _check_dampening(kind: StageKind, target: tuple[Role, ...], settings: StageConfig) -> None:
    """Raise where a stage that shrinks weights has something to learn, or nothing to keep."""
    if "learn" in target:
        raise UserError(
            f"stages.{kind}.dampening: a stage that learns cannot be dampening alone; leave it "
            "out, or take a stage F of its own, such as order LF"
        )
    if not any(set(term.roles) - {"forget"} for term in settings.terms.values()):
        raise UserError(
            f"stages.{kind}.dampening: it compares what matters to the classes to forget with what "
            "matters to the others, but no term has images of these; add a 'retain:' source and a "
            "term for it"
        )


def _active(
    settings: StageConfig, roles: tuple[Role, ...], *, in_any: tuple[Role, ...] = ()
) -> StageConfig:
    """Leave out terms without weight, what is of no active role, and streams nobody uses.

    Roles `in_any` are found in the images of every stream.
    """
    terms = {
        name: term.model_copy(update={"roles": tuple(role for role in term.roles if role in roles)})
        for name, term in settings.terms.items()
        if term.weight > 0 and set(term.roles) & set(roles)
    }
    used = {role for term in terms.values() for role in term.roles}
    streams = {
        name: stream.model_copy(
            update={"roles": tuple(role for role in stream.roles if role in used)}
        )
        for name, stream in settings.streams.items()
        if set(stream.roles) & used
    }
    drawn = {role for stream in streams.values() for role in stream.roles}
    if missing := sorted(used - drawn - set(in_any)):
        raise UserError(
            f"streams: a term needs images of {missing[0]!r}, but no stream draws that role; "
            "add it to a stream's roles, or set the term's weight to 0"
        )
    return settings.model_copy(update={"terms": terms, "streams": streams})
