"""Which class has which role, and its row of the extended head.

Learned classes get new rows, in the order named, or as the source sorts them; forgotten and
retained classes are rows of the model. Whatever is ambiguous, unknown, named twice or in two roles
is refused here, before an image is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kswap.data.labels import LabelIndex, plain
from kswap.data.scenes import is_background
from kswap.data.table import Source
from kswap.data.text import count, instead, listed, one_line
from kswap.errors import UserError, is_printable
from kswap.settings import ROLES, Role, SourceConfig


@dataclass
class Roles:
    """The classes of every role."""

    id2label: dict[int, str]
    """Rows of the extended head."""
    num_base_classes: int
    class_ids: dict[Role, tuple[int, ...]] = field(default_factory=dict)
    of_source: dict[Role, dict[str, int]] = field(default_factory=dict)
    """Class name as the source has it -> row, for the classes whose images are used."""
    notes: list[str] = field(default_factory=list)


def assign_roles(
    sources: Mapping[Role, Source],
    settings: Mapping[Role, SourceConfig],
    id2label: Mapping[int, str],
    forgotten: Collection[str] = (),
) -> Roles:
    """Give the classes of `sources` their roles.

    Raises:
        UserError: a name is unknown, ambiguous, given twice, in two roles, or has no images.
    """
    model = LabelIndex(id2label)
    gone = {i for name in forgotten for i in model.find(name)}
    roles = Roles(dict(model.id2label), len(model.id2label))
    named = {role: _named(role, settings[role]) for role in ROLES if role in settings}
    _refuse_two_roles(named)
    renamed = {role: _renamed(role, source, settings[role]) for role, source in sources.items()}
    new_names: list[str] = []
    if "learn" in sources:
        new_names = _learn(roles, sources["learn"], renamed["learn"], named["learn"], model, gone)
    _refuse_two_roles({**named, "learn": new_names})
    forget_ids: tuple[int, ...] = ()
    if "forget" in sources:
        forget_ids = _forget(
            roles, sources["forget"], renamed["forget"], named["forget"], model, gone
        )
    roles.class_ids["learn"] = tuple(range(roles.num_base_classes, len(roles.id2label)))
    roles.class_ids["forget"] = forget_ids
    roles.class_ids["retain"] = _retain_ids(roles, named.get("retain"), model, gone)
    if "retain" in sources:
        _retain(roles, sources["retain"], renamed["retain"], named["retain"], model)
    return roles


def _named(role: Role, settings: SourceConfig) -> tuple[str, ...] | None:
    if settings.classes is None:
        return None
    seen: dict[str, str] = {}
    for name in settings.classes:
        if plain(name) in seen:
            raise UserError(f"{role}.classes: {one_line(name)!r} is named twice; name it once")
        seen[plain(name)] = name
    if not settings.classes:
        raise UserError(f"{role}.classes: is empty; name classes, or leave the key out")
    return settings.classes


def _refuse_two_roles(named: Mapping[Role, Collection[str] | None]) -> None:
    holder: dict[str, Role] = {}
    for role, names in named.items():
        for name in names or ():
            other = holder.setdefault(plain(name), role)
            if other != role:
                raise _two_roles(name, other, role)


def _two_roles(name: str, one: Role, other: Role) -> UserError:
    return UserError(
        f"{other}.classes: {one_line(name)!r} is in {one} and {other}; a class has one role, "
        "take it out of one"
    )


def _renamed(role: Role, source: Source, settings: SourceConfig) -> dict[str, str]:
    """Return source class -> name after `rename`, for classes that have images."""
    for name in settings.rename:
        if name not in source.counts:
            raise UserError(
                f"{role}.rename: {source.where} has no class {one_line(name)!r}; "
                f"{instead(name, source.classes)}"
            )
    renamed = {
        name: settings.rename.get(name, name) for name, number in source.counts.items() if number
    }
    bare = [name for name in renamed if name not in settings.rename]
    if source.numbered and bare and settings.classes is None:
        raise UserError(
            f"{role}: the classes of {source.where} are numbers without names ({listed(bare, 5)}); "
            f"give their names in {role}.class_names, such as {{{bare[0]}: cat, …}}"
        )
    if not renamed:
        unknown = f"{source.where} has no images with a class; name another source"
        known = (table.why_empty for table in source.splits.values() if table.why_empty)
        raise UserError(f"{role}: {next(known, unknown)}")
    return renamed


def _learn(
    roles: Roles,
    source: Source,
    renamed: Mapping[str, str],
    named: tuple[str, ...] | None,
    model: LabelIndex,
    gone: set[int],
) -> list[str]:
    """Add a row for each class to learn; return the names."""
    have = LabelIndex(dict(enumerate(dict.fromkeys(renamed.values()))))
    wanted: dict[int, str] = {}  # place in the source -> name of the new row
    for name in named if named is not None else have.id2label.values():
        found = have.find(name)
        if len(found) != 1:
            problem = "fits more than one class" if found else "has no images"
            raise UserError(
                f"learn.classes: {one_line(name)!r} {problem} in {source.where}; "
                f"{instead(name, have.id2label.values())}"
            )
        _refuse_known(name, model, gone)
        _refuse_unwritable(name, source)
        if found[0] in wanted:
            raise UserError(f"learn.classes: {one_line(name)!r} is named twice; name it once")
        wanted[found[0]] = name.strip()
    rows = {place: roles.num_base_classes + i for i, place in enumerate(wanted)}
    roles.id2label |= {rows[place]: name for place, name in wanted.items()}
    places = {name: place for place, name in have.id2label.items()}
    roles.of_source["learn"] = {
        name: rows[places[new]] for name, new in renamed.items() if places[new] in rows
    }
    _note_ignored(roles, "learn", source)
    return list(wanted.values())


def _refuse_unwritable(name: str, source: Source) -> None:
    """A new label is written to files and shown on terminals: text, on one line, in UTF-8."""
    if not name.strip() or not is_printable(name.strip()):
        raise UserError(
            f"learn: {name!a} of {source.where} cannot be the name of a class: it is empty, "
            "or has line breaks, control characters or bytes that are not UTF-8; rename the "
            "folder, or give another name with learn.rename"
        )


def _refuse_known(name: str, model: LabelIndex, gone: set[int]) -> None:
    known = model.find(name)
    if not known:
        return
    label = one_line(model.id2label[known[0]])
    if set(known) <= gone:
        raise UserError(
            f"learn: {one_line(name)!r} was forgotten by an earlier swap and still has a row of "
            "the head; run `kswap export --drop-forgotten` and start from its model"
        )
    raise UserError(
        f"learn: the model has the class {one_line(name)!r} already (its label is {label!r}); "
        "leave it out by naming learn.classes, name it in retain, or give it another name with "
        "learn.rename"
    )


def _forget(
    roles: Roles,
    source: Source,
    renamed: Mapping[str, str],
    named: tuple[str, ...] | None,
    model: LabelIndex,
    gone: set[int],
) -> tuple[int, ...]:
    where = "forget.classes" if named is not None else f"forget: class of {source.where}"
    wanted = named if named is not None else tuple(dict.fromkeys(renamed.values()))
    class_ids = _matched("forget", wanted, model, where)
    _select(roles, "forget", source, renamed, class_ids, model, must_have=class_ids)
    again = [model.id2label[i] for i in class_ids if i in gone]
    if again:
        roles.notes.append(
            f"forget: {listed(again)} forgotten by an earlier swap already, forgotten again"
        )
    return tuple(sorted(class_ids))


def _retain_ids(
    roles: Roles, named: tuple[str, ...] | None, model: LabelIndex, gone: set[int]
) -> tuple[int, ...]:
    forget_ids = set(roles.class_ids["forget"])
    if named is None:
        return tuple(i for i in sorted(model.id2label) if i not in forget_ids and i not in gone)
    class_ids = _matched("retain", named, model, "retain.classes")
    for class_id, name in class_ids.items():
        if class_id in forget_ids:
            raise _two_roles(name, "forget", "retain")
        if class_id in gone:
            raise UserError(
                f"retain.classes: {one_line(name)!r} was forgotten by an earlier swap; take it "
                "out of retain"
            )
    left = [
        model.id2label[i]
        for i in model.id2label
        if i not in class_ids and i not in forget_ids | gone
    ]
    if left:
        roles.notes.append(
            f"retain: {count(len(left), 'class')} of the model in no role: {listed(left)}"
        )
    return tuple(sorted(class_ids))


def _retain(
    roles: Roles,
    source: Source,
    renamed: Mapping[str, str],
    named: tuple[str, ...] | None,
    model: LabelIndex,
) -> None:
    class_ids = {i: model.id2label[i] for i in roles.class_ids["retain"]}
    must_have = _matched("retain", named, model, "retain.classes") if named is not None else {}
    _select(roles, "retain", source, renamed, class_ids, model, must_have=must_have)
    if not roles.of_source["retain"]:
        raise UserError(
            f"retain: {source.where} has no class that the model keeps "
            f"({listed(renamed.values())}); name another source, or map the names with "
            "retain.rename"
        )
    without = [
        label
        for i, label in class_ids.items()
        if i not in roles.of_source["retain"].values()
        and not (source.several and is_background(label))
    ]
    if without:
        roles.notes.append(
            f"retain: {count(len(without), 'class')} without images: {listed(without)}"
        )


def _matched(role: Role, names: Collection[str], model: LabelIndex, where: str) -> dict[int, str]:
    matched: dict[int, str] = {}
    for name in names:
        class_id = model.match(name, where=where)
        if class_id in matched and where.endswith(".classes"):
            raise UserError(
                f"{role}.classes: {one_line(name)!r} and {one_line(matched[class_id])!r} are one "
                f"class of the model ({one_line(model.id2label[class_id])!r}); name it once"
            )
        matched.setdefault(class_id, name)
    return matched


def _select(
    roles: Roles,
    role: Role,
    source: Source,
    renamed: Mapping[str, str],
    class_ids: Mapping[int, str],
    model: LabelIndex,
    *,
    must_have: Mapping[int, str],
) -> None:
    """Keep the source's classes that mean one of `class_ids`; each of `must_have` needs one."""
    of_source = {}
    ambiguous = []
    for name, new in renamed.items():
        found = model.find(new)
        if len(found) == 1 and found[0] in class_ids:
            of_source[name] = found[0]
        elif len(found) > 1 and set(found) & set(class_ids):
            ambiguous.append(new)
    for class_id, name in must_have.items():
        if class_id not in of_source.values():
            hint = (
                f" (its classes are numbers: name them in {role}.class_names)"
                if source.numbered
                else ""
            )
            raise UserError(
                f"{role}.classes: {one_line(name)!r} has no images in {source.where}{hint}; "
                f"{instead(name, renamed)}"
            )
    roles.of_source[role] = of_source
    if ambiguous:
        roles.notes.append(
            f"{role}: {listed(ambiguous)} of {source.where} left out, each fits more than one "
            f"class of the model; say which with {role}.rename, or give these different labels in "
            "the model's config.json"
        )
    _note_ignored(roles, role, source)


def _note_ignored(roles: Roles, role: Role, source: Source) -> None:
    ignored = [name for name in source.counts if name not in roles.of_source[role]]
    full = [name for name in ignored if source.counts[name]]
    empty = [name for name in ignored if not source.counts[name]]
    if full and source.several:
        roles.notes.append(
            f"{role}: {count(len(full), 'class')} of {source.where} without this role: "
            f"{listed(full)}"
        )
    elif full:
        images = count(sum(source.counts[name] for name in full), "image")
        roles.notes.append(
            f"{role}: {images} of {source.where} left out, of {count(len(full), 'class')} "
            f"without this role: {listed(full)}"
        )
    if empty:
        roles.notes.append(
            f"{role}: classes of {source.where} without images, left out: {listed(empty)}"
        )
